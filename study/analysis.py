"""What the results of the study say: means over seeds, and differences to relu."""

import json
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from study.rows import ROWS, decay_of, is_accelerated, plain_row
from training.files import read_csv

MEASURES = ("test_accuracy", "best_test_accuracy", "train_accuracy", "train_loss")
RESULTS = Path(__file__).parent / "results" / "experiments.csv"
MARGIN = 0.004  # of test accuracy: a difference within ± this counts as none
MANY = 8  # seeds: with fewer the equivalence test shows nothing


def key_of(line):
    """What tells a line of the results from the others.

    That is (row, seed, epochs, data, settings, *setup, sources). The setup is the device, versions
    and precision: other ones round in other ways. A row made by other code is another one.
    """
    columns = "row", "seed", "epochs", "data", "sources"
    *run, sources = (str(line[column]) for column in columns)
    settings = {"precision": "float32"} | json.loads(line.get("settings", "{}"))
    setup = line.get("device"), line.get("versions"), settings["precision"]
    return *run, json.dumps(settings, sort_keys=True), *setup, sources


def same_code(lines):
    """{(sources, precision): the latest sources that make the same numbers}, as the lines show.

    Two codes count as one if they share runs on the same setup, at least one of these with GAAF,
    and all shared runs have equal results, to the last digit. A code joins others only if it agrees
    with all of them. Runs in float32 count for every precision, those in half precision for it.
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
            if latest[1] == maker[1] and _agree(together, theirs):
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


class Group(NamedTuple):
    """What runs must have in common to be compared."""

    epochs: int
    sources: str  # the latest that make the same numbers, as `same_code` has them
    device: str
    versions: str
    precision: str


class Comparison(NamedTuple):
    """The runs of a row, and those of the row that it is compared with, {(`Group`, seed): line}."""

    runs: dict
    others: dict

    @property
    def pairs(self):
        """{(`Group`, seed): (line, line of the other row)}. Only these runs are compared."""
        return {key: (self.runs[key], self.others[key]) for key in self.runs if key in self.others}


def study(pairs=None):
    """{row: `Comparison`} of the rows that have been run.

    Of each row the longest runs count: those of all groups in which the other row has been run too,
    or else of all groups. Only the data set with the most rows counts.

    Args:
        pairs: {row: the row that it is compared with}. Default: each row, and its plain row.
    """
    pairs = pairs or {row: plain_row(row) for row in ROWS}
    groups, found = _groups(read_csv(RESULTS)), {}
    for row, other in pairs.items():
        with_row = [group for group, rows in groups.items() if row in rows]
        if not with_row:
            continue
        longest = max(group.epochs for group in with_row)
        chosen = [group for group in with_row if group.epochs == longest]
        chosen = [group for group in chosen if other in groups[group]] or chosen
        others = {} if other == row else _runs_of(other, groups, chosen)
        found[row] = Comparison(_runs_of(row, groups, chosen), others)
    return found


def _runs_of(row, groups, chosen):
    """{(group, seed): line} of a row in some of the groups."""
    return {
        (group, seed): line for group in chosen for seed, line in groups[group].get(row, {}).items()
    }


def _groups(results):
    """The results as {`Group`: {row: {seed: line}}}; of a row, those with its latest settings."""
    combinations = dict.fromkeys((line["row"], line["data"]) for line in results)  # each once
    data = statistics.mode(data for _, data in combinations)
    same, groups = same_code(results), {}
    latest = {line["row"]: _settings_of(line) for line in results}
    for line in results:
        if line["data"] == data and latest[line["row"]] == _settings_of(line):
            row, seed, epochs, _, _, *setup, sources = key_of(line)
            group = Group(int(epochs), same[sources, setup[-1]], *setup)
            groups.setdefault(group, {}).setdefault(row, {})[seed] = line
    return groups


def _settings_of(line):
    """The settings of a row; any row may run in each precision."""
    return json.loads(line.get("settings", "{}")) | {"precision": "any"}


def measure_of(column):
    """The function from a line to the number in that column; nan where it is not known."""
    return lambda line: float(line[column] or "nan")


accuracy, loss = measure_of("test_accuracy"), measure_of("train_loss")


def cross_entropy(line):
    """The training loss without the penalty, whose scale depends on the weight decay."""
    return loss(line) - measure_of("penalty")(line)


def log_of_squares(line):
    """Of the squared weights. Its mean difference is the log of their geometric mean ratio."""
    return np.log(measure_of("squares")(line))


class Difference(NamedTuple):
    """How a measure of a row differs from that of the other row."""

    mean: float
    paired: float | None  # half of the 95 % interval, paired by seed
    unpaired: float | None  # half of the 95 % interval by Welch
    p: float | None  # of the paired t-test, by Holm's method corrected for all rows
    equivalence: float | None  # p of the equivalence test at ±MARGIN; from MANY seeds on
    seeds: int  # of which the measure of both rows is known


def differences(found, measure):
    """{row: `Difference`} of the rows that share seeds with the other row in some group.

    Args:
        found: What `study` returns.
        measure: Function from a line of the results to a number; nan where it is not known.
    """
    pairs = {row: values_by_seed(each, measure) for row, each in found.items()}
    # Rounded, so that 0.81 − 0.8 is 0.82 − 0.81.
    by_row = {row: np.round(x[:, 0] - x[:, 1], 9) for row, x in pairs.items() if len(x)}
    p = _corrected({row: _p_of_zero(x) for row, x in by_row.items() if len(set(x)) > 1})
    return {
        row: Difference(
            np.mean(values),
            half_interval(values),
            _welch(*pairs[row].T),
            p.get(row),
            _p_of_equivalence(values) if len(values) >= MANY else None,
            len(values),
        )
        for row, values in by_row.items()
    }


def loss_differences(found):
    """`differences` of the training loss, for rows with the weight decay of their plain row.

    The loss has the penalty in it. With another decay, it is another measure.
    """
    alike = [row for row in found if decay_of(row) == decay_of(plain_row(row))]
    return differences({row: found[row] for row in alike}, loss)


def values_by_seed(comparison, measure):
    """A measure of a row and of the other one, of shape (seeds, 2): means over the groups.

    A seed has the same order of images in each group, so its runs may not be independent. They
    count once. A pair of runs counts only if both values are known.
    """
    by_seed = {}
    for (_, seed), lines in comparison.pairs.items():
        values = [measure(line) for line in lines]
        if np.isfinite(values).all():
            by_seed.setdefault(seed, []).append(values)
    return np.array([np.mean(values, axis=0) for values in by_seed.values()])


def half_interval(values):
    """Half of the 95 % interval of the mean; None for a single value."""
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else None


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


def _welch(ours, theirs):
    """Half of the 95 % interval of the difference of means, as if the seeds were not paired."""
    if len(ours) < 2:
        return None
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    return (high - low) / 2
