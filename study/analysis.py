"""What the results of the study say: means over seeds, and differences to relu."""

import statistics

import numpy as np
from scipy import stats

from study.experiments import RESULTS, ROWS, plain_row
from training.files import read_csv


def study():
    """{row: (epochs, its longest runs, those of its plain row)}; runs are {seed: line}.

    Rows that have not been run are left out, and data sets but the one with the most runs. A plain
    row has none to be compared with.
    """
    results, found = read_csv(RESULTS), {}
    data = statistics.mode(x["data"] for x in results)
    results = [x for x in results if x["data"] == data]
    for row in ROWS:
        epochs = max((int(x["epochs"]) for x in results if x["row"] == row), default=0)
        plain = plain_row(row)
        versus = {} if plain == row else runs_of(plain, epochs, results)
        if epochs:
            found[row] = (epochs, runs_of(row, epochs, results), versus)
    return found


def runs_of(row, epochs, results):
    """{seed: line of the results} of the runs of a row with that many epochs."""
    wanted = (row, str(epochs))
    return {x["seed"]: x for x in results if (x["row"], x["epochs"]) == wanted}


def column(name):
    """A measure of a run: the number in a column of its line; nan while experiments.py lacks it."""
    return lambda line: float(line[name] or "nan")


accuracy, penalty = column("test_accuracy"), column("penalty")


def cross_entropy(line):
    """A measure of a run: its training loss without the weight penalty that is part of it."""
    return column("train_loss")(line) - penalty(line)


def mean_of(found, measure):
    """The mean of a measure over runs, {seed: line of the results}."""
    return np.mean([measure(line) for line in found.values()])


def differences(found, measure):
    """{row: (mean, half, p)} of how a measure differs from the plain row's, paired by seed.

    Half is that of the 95 % interval of this row alone; p of the paired t-test, by Holm's method
    corrected for all rows that have two pairs or more. Others have None for both. Runs whose
    measure is not known yet are left out.

    Args:
        found: What `study` returns.
        measure: Function from a line of the results to a number.
    """
    pairs = {}
    for row, (_, runs, plain) in found.items():
        paired = (measure(line) - measure(plain[s]) for s, line in runs.items() if s in plain)
        pairs[row] = [x for x in paired if np.isfinite(x)]
    tested = {row: stats.ttest_1samp(x, 0).pvalue for row, x in pairs.items() if len(set(x)) > 1}
    corrected, p = {}, 0
    for i, row in enumerate(sorted(tested, key=tested.get)):
        p = corrected[row] = min(1, max(p, (len(tested) - i) * tested[row]))
    return {
        row: (np.mean(x), _half_of_interval(x) if len(x) > 1 else None, corrected.get(row))
        for row, x in pairs.items()
        if x
    }


def _half_of_interval(values):
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def in_words(difference, digits=4):
    """A difference as the table shows it; nothing where there is none."""
    if difference is None:
        return ""
    mean, half, p = difference
    if half is None:
        return f"{mean:+.{digits}f} (one run)"
    p = "" if p is None else " (p < 0.001)" if p < 0.001 else f" (p {p:.3f})"
    return f"{mean:+.{digits}f} ± {half:.{digits}f}{p}"
