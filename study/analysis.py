"""What the results of the study say: means over seeds, and differences to relu."""

import json
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from study.rows import ROWS, is_accelerated, plain_row
from training.files import read_csv

MEASURES = ("test_accuracy", "best_test_accuracy", "train_accuracy", "train_loss")
RESULTS = Path(__file__).parent / "results" / "experiments.csv"
MARGIN = 0.004  # of test accuracy: a difference within ± this counts as none
MANY = 8  # seeds: with fewer the equivalence test shows nothing


def key_of(line):
    """What tells a line of the results from the others.

    That is (row, seed, epochs, data, settings, *setup, sources). The setup is the kind of device,
    versions and precision: other ones round in other ways. A row made by other code is another one.
    """
    columns = "row", "seed", "epochs", "data", "sources"
    *run, sources = (str(line[column]) for column in columns)
    settings = {"precision": "float32"} | json.loads(line.get("settings", "{}"))
    setup = line.get("device"), line.get("versions"), settings["precision"]
    return *run, json.dumps(settings, sort_keys=True), *setup, sources


def same_code(lines):
    """{(sources, precision): the latest sources that make the same numbers}, as the lines show.

    Two are taken to make the same if there are runs that both have made, on the same setup, some of
    them with GAAF, and each of these ended alike, to the last digit. No third one may belie it.
    Runs in float32 count for every precision, and those in half precision for their own.
    """
    made, groups = {}, {}  # {maker: its runs}; {latest maker: (those that make the same, runs)}
    keys = [key_of(line) for line in lines]
    for line, (*run, sources) in zip(lines, keys, strict=True):
        precision = run[-1]
        counts_for = {key[-2] for key in keys} if precision == "float32" else {precision}
        for each in sorted(counts_for):
            numbers = [line.get(column) for column in MEASURES]
            made.setdefault((sources, each), {})[*run] = numbers
    for maker, runs in made.items():
        makers, together = [maker], dict(runs)
        for latest, (others, theirs) in list(groups.items()):
            if latest[1] == maker[1] and _agree(runs, theirs):
                del groups[latest]
                makers += others
                together |= theirs
        groups[maker] = makers, together
    return {maker: latest[0] for latest, (makers, _) in groups.items() for maker in makers}


def _agree(runs, others):
    """Whether both, {run: its numbers}, share runs, some of them with GAAF, and these are alike."""
    both = runs.keys() & others.keys()
    accelerated = any(is_accelerated(row) for row, *_ in both)
    return accelerated and all(runs[run] == others[run] for run in both)


class Row(NamedTuple):
    """The runs of a row that are compared, {seed: line of the results}, and those of its plain row.

    All have as many epochs, and were made by the same sources, as `same_code` has it, on the same
    setup; that is (sources, device, versions, precision).
    """

    epochs: int
    made_by: tuple
    runs: dict
    plain: dict

    @property
    def paired(self):
        """The runs of the plain row whose seeds this one has."""
        return {seed: self.plain[seed] for seed in self.runs if seed in self.plain}


def study(pairs=None):
    """{row: `Row`} of the rows that have been run, each beside the row that it is compared with.

    Only the longest runs count, and only those that the same code made on the same setup. Of
    several such groups the one counts that has the other row too, and of these the one with the
    most runs, or else the latest. Only the data set with the most runs counts.

    Args:
        pairs: {row: the row that it is compared with}. Default: each row, and its plain row.
    """
    pairs = pairs or {row: plain_row(row) for row in ROWS}
    groups, latest, found = *_groups(read_csv(RESULTS)), {}
    for row, other in pairs.items():
        ours = {group: rows[row] for group, rows in groups.items() if row in rows}
        if ours:
            group = max(ours, key=lambda g: (g[0], other in groups[g], len(ours[g]), latest[g]))
            others = {} if other == row else groups[group].get(other, {})
            found[row] = Row(*group, ours[group], others)
    return found


def _groups(results):
    """What is alike but for row and seed: {group: {row: {seed: line}}}, {group: its last line}."""
    data = statistics.mode(line["data"] for line in results)
    same, groups, latest = same_code(results), {}, {}
    for number, line in enumerate(results):
        if line["data"] == data:
            row, seed, epochs, _, _, *setup, sources = key_of(line)
            group = int(epochs), (same[sources, setup[-1]], *setup)
            groups.setdefault(group, {}).setdefault(row, {})[seed] = line
            latest[group] = number
    return groups, latest


def column(name):
    """A measure of a run: the number in a column of its line; nan where it is not known."""
    return lambda line: float(line[name] or "nan")


accuracy, loss, penalty = map(column, ("test_accuracy", "train_loss", "penalty"))


def mean_of(found, measure):
    """The mean of a measure over runs, {seed: line of the results}."""
    return np.mean([measure(line) for line in found.values()])


class Difference(NamedTuple):
    """How a measure of a row differs from that of the other row."""

    mean: float
    paired: float | None  # half of the 95 % interval, paired by seed
    unpaired: float | None  # half of the 95 % interval by Welch, which takes all runs of both
    p: float | None  # of the paired t-test, by Holm's method corrected for all rows
    equivalence: float | None  # p of the equivalence test at ±MARGIN; from MANY seeds on


def differences(found, measure):
    """{row: `Difference`} of the rows that share seeds with the other row.

    Args:
        found: What `study` returns.
        measure: Function from a line of the results to a number; nan where it is not known.
    """
    pairs = {row: _paired(pair, measure) for row, pair in found.items()}
    pairs = {row: values for row, values in pairs.items() if values}
    p = _corrected({row: _p_of_zero(x) for row, x in pairs.items() if len(set(x)) > 1})
    return {
        row: Difference(
            np.mean(values),
            stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else None,
            _welch(found[row], measure),
            p.get(row),
            _p_of_equivalence(values) if len(values) >= MANY else None,
        )
        for row, values in pairs.items()
    }


def _paired(pair, measure):
    """The differences of the seeds that both rows have."""
    both = [(line, pair.plain[seed]) for seed, line in pair.runs.items() if seed in pair.plain]
    values = (measure(ours) - measure(theirs) for ours, theirs in both)
    return [round(x, 9) for x in values if np.isfinite(x)]  # 0.81 - 0.8 is to be 0.82 - 0.81


def _p_of_zero(values):
    """p of the t-test of a mean of 0."""
    return stats.ttest_1samp(values, 0).pvalue


def _p_of_equivalence(values):
    """p of the two one-sided t-tests (TOST) of a mean that is not within ±MARGIN."""
    below = stats.ttest_1samp(values, -MARGIN, alternative="greater").pvalue
    above = stats.ttest_1samp(values, MARGIN, alternative="less").pvalue
    return max(below, above)


def _corrected(p):
    """{row: p} by Holm's method: the smallest counts as often as there are rows."""
    corrected, largest = {}, 0
    for i, row in enumerate(sorted(p, key=p.get)):
        largest = corrected[row] = min(1, max(largest, (len(p) - i) * p[row]))
    return corrected


def _welch(pair, measure):
    """Half of the 95 % interval of the difference of means, of runs that are not paired."""
    ours, theirs = (
        [x for x in map(measure, runs.values()) if np.isfinite(x)]
        for runs in (pair.runs, pair.plain)
    )
    if min(len(ours), len(theirs)) < 2:
        return None
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    return (high - low) / 2


def in_words(difference, digits=4):
    """A difference as the tables show it: the mean, and half of the paired interval."""
    if difference is None:
        return ""
    if difference.paired is None:
        return f"{difference.mean:+.{digits}f}"
    return f"{difference.mean:+.{digits}f} ± {difference.paired:.{digits}f}"


def p_in_words(p):
    """A p as the tables show it; nothing where there is none."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
