"""The pictures of the pages."""

import json
from hashlib import sha256

import numpy as np
from matplotlib.figure import Figure

import gaaf
from study import analysis, why
from study.analysis import accuracy, differences, loss_differences, study
from training.files import replace_file

FUNCTIONS = (
    ("GAAF_relu (shift −1, slope 1)", gaaf.GAAF("relu")),
    ("GAAF_relu, paper's shape (0.5, 5)", gaaf.GAAF("relu", shift=0.5, slope=5)),
    ("GAAF_tanh", gaaf.GAAF("tanh")),
)
SHOWN_BY_DEPTH = ("relu", "paper", "paper, peak", "GAAF_relu", "GAAF_relu, peak", "bsilu")
# A network has the same colour in all parts of a picture.
ONCE_EACH = dict.fromkeys([*why.NETWORKS, *SHOWN_BY_DEPTH])
COLOR_OF = {name: f"C{i}" for i, name in enumerate(ONCE_EACH)}
# The groups of rows in the picture.
GROUPS = {
    "GAAF": ("paper", "paper, peak", "default", "default, half the decay", "bsilu"),
    "relu with more weight decay": ("relu, weight decay 2e-4", "weight decay matched"),
    "relu with a smaller gradient": ("relu, gain 0.93",),
    "AdamW": ("AdamW, paper", "AdamW, paper, peak", "AdamW, default"),
    "ResNet-20 v2": ("v2, paper, peak",),
    "augmented, 200 epochs": (
        "augmented, paper, peak",
        "augmented, default",
        "augmented, weight decay matched",
    ),
}


def save(figure, path, results=None):
    """Writes a picture, and into it a digest of the results that it shows."""
    metadata = {"Source": sha256(results.read_bytes()).hexdigest()} if results else {}
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=110, metadata=metadata))


def value_and_gradient(function, x):
    return np.asarray(function(x)), np.asarray(gaaf.gradient(function, x))


def plot_activations(path):
    """Draws φ_new, its gradient and s; below, φ_new − φ enlarged to where the sawtooth shows."""
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=(3, 1.3))
    for (title, function), above, below in zip(FUNCTIONS, *axes, strict=True):
        x = np.linspace(-6, 6, 2001)
        y, gradient = value_and_gradient(function, x)
        _, plain = value_and_gradient(function.activation, x)
        above.plot(x, y, label="φ_new")
        above.plot(x, gradient, label="φ_new′")
        above.plot(x, gradient - plain, "k--", lw=1, label="s = φ_new′ − φ′")
        above.set(title=title, xlabel="x", ylim=(-1.1, 2.3))
        x = np.linspace(-1.0003, -0.9997, 4001)
        below.plot(x, value_and_gradient(function, x)[0] - np.asarray(function.activation(x)))
        below.set(xlabel="x, six periods of the sawtooth", ylabel="φ_new − φ", ylim=(-6e-5, 6e-5))
        below.ticklabel_format(useOffset=False)
        below.set_xticks([-1.0002, -1, -0.9998])
        above.legend(loc="lower right")
        above.grid(alpha=0.3)
        below.grid(alpha=0.3)
    save(figure, path)


def plot_study(path):
    """Draws the differences to relu of the rows with several seeds, in groups."""
    found = study()
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    by_accuracy = differences(found, accuracy)
    names = names_in_groups(by_accuracy)
    for axes, rows in ((left, by_accuracy), (right, loss_differences(found))):
        plot_differences(axes, rows, names)
        axes.axvline(0, color="k", lw=1)
        axes.grid(alpha=0.3, axis="x")
    labels = [
        f"{name} ({by_accuracy[name].seeds})" if name in by_accuracy else name for name in names
    ]
    left.set_yticks([-y for y in range(len(names))], labels)
    left.set_xlim(-0.03, 0.03)  # a long interval would make the others too short to see
    left.axvspan(-analysis.MARGIN, analysis.MARGIN, color="k", alpha=0.1)
    left.set(xlabel=f"test accuracy − relu's (grey: within ±{analysis.MARGIN})")
    right.set(xlabel="training loss − relu's")
    title = "mean (number of seeds) and 95 % interval, not corrected; long intervals may be cut off"
    figure.suptitle(title, fontsize="medium")
    save(figure, path, analysis.RESULTS)


def names_in_groups(rows):
    """The names of the rows with several runs, from the top; above each group "its name:"."""
    names = []
    for group, members in GROUPS.items():
        shown = [row for row in members if row in rows and rows[row].paired is not None]
        if shown:
            names += [f"{group}:", *shown]
    return names


def plot_differences(axes, rows, names):
    """Draws a point with its interval for each of the names that is a row, in colours by group."""
    color_of = {row: f"C{i}" for i, members in enumerate(GROUPS.values()) for row in members}
    for y, row in enumerate(names):
        if row in rows:
            mean, half, *_ = rows[row]
            axes.errorbar(mean, -y, xerr=half, fmt="o", color=color_of[row], capsize=3)


def plot_why(path):
    """Draws what why.py has measured: gradients, inputs of the activations, loss, and depth."""
    found = json.loads(why.RESULTS.read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 7), layout="constrained")
    (gradients, inputs), (loss, stem) = figure.subplots(2, 2)
    middle = (np.array(found["edges"][1:]) + found["edges"][:-1]) / 2
    for name, network in found["networks"].items():
        epochs = [list(epoch.values()) for epoch in network["gradients"]]
        look = {"color": COLOR_OF[name], "label": name}
        gradients.semilogy(epochs[-1], ".-", **look)
        gradients.semilogy(epochs[0], ":", color=COLOR_OF[name])
        inputs.plot(middle, network["inputs"], **look)
        loss.plot(range(1, len(network["loss"]) + 1), network["loss"], ".-", **look)
    gradients.set(xlabel="convolution", ylabel="mean |∂loss/∂kernel|")
    gradients.set_title("after the last epoch; dotted: after the first", fontsize="small")
    inputs.set(xlabel="input of an activation", ylabel="share in 0.1 of x")
    loss.set(xlabel="epoch", ylabel="training loss")
    for name in SHOWN_BY_DEPTH:
        for version, line in ((1, ".-"), (2, ".:")):
            by_depth = found["stem"][f"{name}, v{version}"]
            depths = [int(depth) for depth in by_depth]
            label = name if version == 1 else None
            look = {"color": COLOR_OF[name], "label": label}
            stem.semilogy(depths, list(by_depth.values()), line, **look)
    stem.set_title("version 1; dotted: version 2", fontsize="small")
    limit = np.sqrt(np.finfo("float32").max)
    stem.axhline(limit, color="k", ls=":", label="beyond, its square is infinite in float32")
    stem.set(xlabel="depth", ylabel="mean |∂loss/∂kernel|, stem, untrained")
    stem.set_ylim(top=1e56)  # so that the legend hides nothing
    for axes in (gradients, inputs, loss, stem):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")
    save(figure, path, why.RESULTS)


PICTURES = {"gaaf.png": plot_activations, "study.png": plot_study, "why.png": plot_why}
