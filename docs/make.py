"""Makes the pictures of the pages, and the tables between their markers: python -m docs.make"""

import dataclasses
import itertools
import json
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import gaaf
import main
from resnet_v1 import resnet_v1
from resnet_v2 import resnet_v2
from study import analysis, speed, why
from study.analysis import accuracy, differences, in_words, loss, mean_of, p_in_words, study
from study.rows import PREDICTIONS
from training.files import read_csv, replace_file, write_text
from training.settings import comments_of

DOCS = Path(__file__).parent
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
DEPTHS = {1: (20, 32, 44, 56, 110, 164, 1001), 2: (20, 56, 110, 164, 1001)}
FUNCTIONS = (
    ("GAAF_relu (shift −1, slope 1)", gaaf.GAAF("relu")),
    ("GAAF_relu, paper's shape (0.5, 5)", gaaf.GAAF("relu", shift=0.5, slope=5)),
    ("GAAF_tanh", gaaf.GAAF("tanh")),
)
SHOWN_BY_DEPTH = ("relu", "GAAF_relu", "GAAF_relu, peak", "paper", "paper, peak", "bsilu")
# The rows of the README's table, which decide.
ANSWER = (
    "paper",
    "paper, peak",
    "default",
    "relu, weight decay 2e-4",
    "v2, paper, peak",
    "augmented, paper, peak",
)
# The groups of rows in the picture.
GROUPS = {
    "GAAF": ("paper", "paper, peak", "default", "bsilu"),
    "relu with more weight decay": ("relu, weight decay 2e-4", "weight decay matched"),
    "AdamW": ("AdamW, paper", "AdamW, paper, peak", "AdamW, default"),
    "ResNet-20 v2": ("v2, paper, peak",),
    "augmented, 200 epochs": (
        "augmented, paper, peak",
        "augmented, default",
        "augmented, weight decay matched",
    ),
}
# Test accuracy in the report of 2018, by the rows of the study.
EARLIER = {
    "relu": 0.8084,
    "shift 5": 0.6517,
    "shift 4": 0.6924,
    "shift 3": 0.7042,
    "shift 2": 0.7441,
    "shift 1": 0.78,
    "shift 0": 0.7886,
    "shift -0.5": 0.7945,
    "shift -1": 0.7948,
    "shift -2": 0.78,
    "shift -3": 0.7768,
    "shift -4": 0.7733,
    "no s": 0.6603,
    "round": 0.8054,
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


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def settings_table():
    comments = comments_of(main.Settings)
    rows = [
        (f"`{field.name}`", f"`{field.default}`", comments[field.name])
        for field in dataclasses.fields(main.Settings)
    ]
    return table(("setting", "default", "what it is"), rows)


def networks_table():
    rows = [
        network_row(resnet((32, 32, 3), depth))
        for resnet, version in ((resnet_v1, 1), (resnet_v2, 2))
        for depth in DEPTHS[version]
    ]
    return table(("network", "blocks", "parameters"), rows)


def network_row(network):
    depth, version = re.findall(r"\d+", network.name)
    bottleneck = any(x.name == "stage1_block1_conv3" for x in network.layers)
    block = "bottleneck" if bottleneck else "basic"
    return f"ResNet-{depth} v{version}", block, f"{network.count_params():,}"


def growth_table():
    """How much larger than with the plain activation the stem's gradient is."""
    stem = json.loads(why.RESULTS.read_text(encoding="utf-8"))["stem"]
    lines = []
    for name in why.BY_DEPTH:
        if (plain := "tanh" if "tanh" in name else "relu") == name:
            continue
        cells = []
        for version, depth in itertools.product((1, 2), why.DEPTHS):
            found = stem[f"{name}, v{version}"][str(depth)]
            ratio = found / stem[f"{plain}, v{version}"][str(depth)]
            cells.append(f"{np.log2(ratio):.0f}".replace("inf", "∞").replace("nan", "NaN"))
        lines.append((name, *cells))
    networks = (f"{depth} v{version}" for version, depth in itertools.product((1, 2), why.DEPTHS))
    return table(("activation", *networks), lines)


def study_table():
    """A line for each row that has several seeds: its differences to relu, and what tests say."""
    header = ("row", "seeds", "test", "relu's", "difference, paired", "unpaired", "p (Holm)")
    header += (f"p, beyond ±{analysis.MARGIN}", "training loss − relu's", "on")
    lines, rows = [], study()
    more, cost = differences(rows, accuracy), differences(rows, loss)
    for row, found in rows.items():
        if len(found.runs) > 1 and found.plain:
            means = (f"{mean_of(x, accuracy):.4f}" for x in (found.runs, found.paired))
            versus = *_in_cells(more[row]), in_words(cost[row], digits=3)
            lines.append((row, len(found.paired), *means, *versus, _setup(found)))
    return table(header, lines)


def _in_cells(difference):
    unpaired = "" if difference.unpaired is None else f"± {difference.unpaired:.4f}"
    p = p_in_words(difference.p), p_in_words(difference.equivalence)
    return in_words(difference), unpaired, *p


def _setup(found):
    """What the runs of a row were made on."""
    _, device, _, precision = found.made_by
    return f"{device}, {precision.removeprefix('mixed_')}"


def single_table():
    """A line for each row that has one seed, beside the report of 2018."""
    lines, rows = [], study()
    more, cost = differences(rows, accuracy), differences(rows, loss)
    for row, found in rows.items():
        if len(found.runs) == 1 and found.plain:
            report = f"{EARLIER[row]:.4f}" if row in EARLIER else ""
            test = f"{mean_of(found.runs, accuracy):.4f}"
            versus = in_words(more[row]), in_words(cost[row], digits=3)
            lines.append((row, report, test, *versus))
    header = ("row", "test in 2018", "test", "− relu's (or tanh's)", "training loss − relu's")
    return table(header, lines)


def answer_table():
    """The rows that decide, in the columns that answer the question."""
    rows, lines = study(), []
    more, cost = differences(rows, accuracy), differences(rows, loss)
    for row in ANSWER:
        means = (f"{mean_of(x, accuracy):.4f}" for x in (rows[row].runs, rows[row].paired))
        versus = in_words(more[row]), p_in_words(more[row].p), in_words(cost[row], digits=3)
        lines.append((row, *means, *versus, len(rows[row].runs)))
    header = ("row", "test accuracy", "relu's", "difference", "p (Holm)", "training loss − relu's")
    return table((*header, "runs"), lines)


def contrasts_table():
    """What was predicted of the differences that decide, and what came out."""
    lines = []
    for (row, other), prediction in PREDICTIONS.items():
        found = study({row: other})
        difference = differences(found, accuracy).get(row)
        cells = (
            (len(found[row].paired), *_in_cells(difference)) if difference else ("", "no run yet")
        )
        lines.append((f"{row} − {other}", prediction, *cells, *[""] * (5 - len(cells))))
    header = ("difference of test accuracy", "prediction", "seeds", "paired", "unpaired")
    return table((*header, "p", f"p, beyond ±{analysis.MARGIN}"), lines)


def plot_study(path):
    """Draws the differences to relu of the rows with several seeds, in groups."""
    found = study()
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, measure in ((left, accuracy), (right, loss)):
        names = plot_differences(axes, differences(found, measure))
        axes.axvline(0, color="k", lw=1)
        axes.grid(alpha=0.3, axis="x")
    left.set_yticks([-y for y in range(len(names))], names)
    left.axvspan(-analysis.MARGIN, analysis.MARGIN, color="k", alpha=0.1)
    left.set(xlabel=f"test accuracy − relu's (grey: within ±{analysis.MARGIN})")
    right.set(xlabel="training loss − relu's")
    figure.suptitle("means of several seeds, with their 95 % intervals", fontsize="medium")
    save(figure, path, analysis.RESULTS)


def plot_differences(axes, rows):
    """Draws a line for each row, below the name of its group; returns the names, from the top."""
    names = []
    for color, (group, members) in enumerate(GROUPS.items()):
        shown = [row for row in members if row in rows and rows[row].paired is not None]
        if shown:
            names += [f"{group}:", *shown]
        for y, row in enumerate(shown, len(names) - len(shown)):
            mean, half, *_ = rows[row]
            axes.errorbar(mean, -y, xerr=half, fmt="o", color=f"C{color}", capsize=3)
    return names


def speed_table():
    """For each device a line a figure, with what was measured in bfloat16 beside it."""
    rows, parts = read_csv(speed.RESULTS), []
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        by_precision = {(row["figure"], row["precision"]): row["value"] for row in here}
        precisions = sorted({row["precision"] for row in here})  # float32 comes first
        figures = dict.fromkeys(row["figure"] for row in here)
        lines = [(f, *(by_precision.get((f, p), "") for p in precisions)) for f in figures]
        parts.append(table(("figure", *precisions), lines))
        where = dict.fromkeys(f"{device} with {r['versions']}, {r['rounds']} rounds" for r in here)
        parts.append(f"Measured on {'; on '.join(where)}.")
    return "\n\n".join(parts)


def plot_why(path):
    """Draws what why.py has measured: gradients, inputs of the activations, loss, and depth."""
    found = json.loads(why.RESULTS.read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 7), layout="constrained")
    (gradients, inputs), (loss, stem) = figure.subplots(2, 2)
    middle = (np.array(found["edges"][1:]) + found["edges"][:-1]) / 2
    for name, network in found["networks"].items():
        epochs = [list(epoch.values()) for epoch in network["gradients"]]
        (line,) = gradients.semilogy(epochs[-1], ".-", label=name)
        gradients.semilogy(epochs[0], ":", color=line.get_color())
        inputs.plot(middle, network["inputs"], label=name)
        loss.plot(range(1, len(network["loss"]) + 1), network["loss"], ".-", label=name)
    gradients.set(xlabel="convolution", ylabel="mean |∂loss/∂kernel|")
    gradients.set_title("after the last epoch; dotted: after the first", fontsize="small")
    inputs.set(xlabel="input of an activation", ylabel="share in 0.1 of x")
    loss.set(xlabel="epoch", ylabel="training loss")
    for i, name in enumerate(SHOWN_BY_DEPTH):
        for version, line in ((1, ".-"), (2, ".:")):
            by_depth = found["stem"][f"{name}, v{version}"]
            depths = [int(depth) for depth in by_depth]
            label = name if version == 1 else None
            stem.semilogy(depths, list(by_depth.values()), f"C{i}{line}", label=label)
    stem.set_title("version 1; dotted: version 2", fontsize="small")
    limit = np.sqrt(np.finfo("float32").max)
    stem.axhline(limit, color="k", ls=":", label="beyond, its square is infinite in float32")
    stem.set(xlabel="depth", ylabel="mean |∂loss/∂kernel|, stem, untrained")
    stem.set_ylim(top=1e56)  # so that the legend hides nothing
    for axes in (gradients, inputs, loss, stem):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, stem):
        axes.legend(fontsize="small")
    save(figure, path, why.RESULTS)


TABLES = {
    "settings": settings_table,
    "networks": networks_table,
    "growth": growth_table,
    "study": study_table,
    "single": single_table,
    "contrasts": contrasts_table,
    "answer": answer_table,
    "speed": speed_table,
}
PICTURES = {"gaaf.png": plot_activations, "study.png": plot_study, "why.png": plot_why}


def with_tables(text):
    """Returns a page's text with its tables made anew."""

    def made(match):
        return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"

    marked = r"(<!-- (\w+): made by docs/make.py -->\n).*?(<!-- end of \2 -->)"
    return re.sub(marked, made, text, flags=re.S)


if __name__ == "__main__":
    for name, plot in PICTURES.items():
        plot(DOCS / name)
    for page in PAGES:
        write_text(page, with_tables(page.read_text(encoding="utf-8")))
