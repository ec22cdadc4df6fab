"""Makes the pictures of the pages, and the tables between their markers: python -m docs.make"""

import collections
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np

import main
from docs.pictures import PICTURES
from resnet_v1 import resnet_v1
from resnet_v2 import resnet_v2
from study import analysis, flatness, speed, why
from study.analysis import (
    accuracy,
    cross_entropy,
    differences,
    half_interval,
    log_of_squares,
    loss_differences,
    study,
    values_by_seed,
)
from study.rows import PREDICTIONS, REPORTED_IN_2018
from training.files import read_csv, write_text
from training.settings import comments_of

DOCS = Path(__file__).parent
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
DEPTHS = {1: (20, 32, 44, 56, 110, 164, 1001), 2: (20, 56, 110, 164, 1001)}
# The rows of the README's table.
ANSWER = (
    "paper",
    "paper, peak",
    "default",
    "relu, weight decay 2e-4",
    "v2, paper, peak",
    "augmented, paper, peak",
)


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
    header += (f"p of equality (±{analysis.MARGIN})", "training loss − relu's", "runs on")
    lines, (rows, more, cost) = [], _compared()
    for row, difference in more.items():
        if difference.seeds > 1:
            versus = *_in_cells(difference), difference_in_words(cost.get(row), digits=3)
            cells = *_means(rows[row]), *versus, _setups(rows[row])
            lines.append((row, difference.seeds, *cells))
    return table(header, lines)


def _compared():
    """The comparisons, and their differences of accuracy and of loss, each {row: …}."""
    rows = study()
    return rows, differences(rows, accuracy), loss_differences(rows)


def difference_in_words(difference, digits=4):
    """A difference as the tables show it: the mean, and half of the paired interval."""
    return "" if difference is None else in_words(difference.mean, difference.paired, digits)


def in_words(mean, half, digits=4):
    """A mean with its sign, and half of its interval where there is one."""
    return f"{mean:+.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def p_in_words(p):
    """A p as the tables show it; nothing where there is none."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _means(found):
    """The mean test accuracy of a row, and that of relu with the same seeds."""
    return (f"{mean:.4f}" for mean in values_by_seed(found, accuracy).mean(axis=0))


def _in_cells(difference):
    unpaired = "" if difference.unpaired is None else f"± {difference.unpaired:.4f}"
    p = p_in_words(difference.p), p_in_words(difference.equivalence)
    return difference_in_words(difference), unpaired, *p


def _setups(found):
    """What the runs of a row were made on, with their number."""
    setups = (
        f"{group.device.partition(':')[0]} {group.precision.removeprefix('mixed_')}"
        for group, _ in found.pairs
    )
    return ", ".join(f"{n} {setup}" for setup, n in collections.Counter(setups).most_common())


def single_table():
    """A line for each row that has one seed, beside the report of 2018."""
    lines, (rows, more, cost) = [], _compared()
    for row, difference in more.items():
        if difference.seeds == 1:
            report = f"{REPORTED_IN_2018[row]:.4f}" if row in REPORTED_IN_2018 else ""
            test, _ = _means(rows[row])
            versus = difference_in_words(difference), difference_in_words(cost.get(row), digits=3)
            lines.append((row, report, test, *versus))
    header = ("row", "test in 2018", "test", "− relu's (or tanh's)", "training loss − relu's")
    return table(header, lines)


def answer_table():
    """The README's rows, in the columns that answer the question."""
    lines, (rows, more, cost) = [], _compared()
    for row in ANSWER:
        versus = difference_in_words(more[row]), p_in_words(more[row].p)
        cells = *_means(rows[row]), *versus, difference_in_words(cost.get(row), digits=3)
        lines.append((row, *cells, more[row].seeds))
    header = ("row", "test accuracy", "relu's", "difference", "p (Holm)", "training loss − relu's")
    return table((*header, "seeds"), lines)


def contrasts_table():
    """What was predicted of the differences that decide, and what came out."""
    lines = []
    for (row, other), prediction in PREDICTIONS.items():
        found = study({row: other})  # one row, so its p is not corrected
        difference, fit, squares = (
            differences(found, measure).get(row)
            for measure in (accuracy, cross_entropy, log_of_squares)
        )
        cells = ["", "no run yet", *[""] * 5]
        if difference:
            ratio = f"{np.exp(squares.mean):.2f}" if squares else ""
            cells = [difference.seeds, *_in_cells(difference)]
            cells += [difference_in_words(fit, digits=3), ratio]
        lines.append((f"{row} − {other}", prediction, *cells))
    header = ("difference of test accuracy", "prediction", "seeds", "paired", "unpaired")
    header += ("p, not corrected", f"p of equality (±{analysis.MARGIN})")
    return table((*header, "difference of cross-entropy", "ratio of squared weights"), lines)


def flatness_table():
    """For each kept model its accuracy, and how much of it is lost by each size of the noise."""
    by_model, lines = {}, []
    for line in read_csv(flatness.RESULTS):
        sizes = by_model.setdefault(line["model"], {})
        sizes.setdefault(float(line["size"]), []).append(float(line["accuracy"]))
    for model, sizes in by_model.items():
        (whole,) = sizes[0]
        changes = [np.array(sizes[size]) - whole for size in flatness.SIZES]
        cells = (in_words(change.mean(), half_interval(change)) for change in changes)
        lines.append((f"`{model}`", f"{whole:.4f}", *cells))
    return table(("model", "no noise", *(f"{size:.1%}" for size in flatness.SIZES)), lines)


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


TABLES = {
    "settings": settings_table,
    "networks": networks_table,
    "growth": growth_table,
    "study": study_table,
    "single": single_table,
    "contrasts": contrasts_table,
    "answer": answer_table,
    "flatness": flatness_table,
    "speed": speed_table,
}


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
