"""What the results of the study say: means over seeds, and differences to relu with intervals."""

import numpy as np
from scipy import stats

from study.experiments import RESULTS, ROWS, plain_row
from training.files import read_csv


def study():
    """{row: (epochs, its longest runs, those of its plain row)}; runs are {seed: line}.

    Rows that have not been run are left out. A plain row has none to be compared with.
    """
    results, found = read_csv(RESULTS), {}
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


def difference(runs_of_row, runs_of_plain, measure):
    """The mean difference of a measure of each run, paired by seed, and half of its 95 % interval.

    Half is None where there is one pair alone, and both are where there is none.
    """
    pairs = [
        measure(line) - measure(runs_of_plain[seed])
        for seed, line in runs_of_row.items()
        if seed in runs_of_plain
    ]
    if len(pairs) < 2:
        return (pairs[0] if pairs else None), None
    return np.mean(pairs), stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs)


def in_words(mean, half, digits=4):
    """A difference as the table shows it."""
    if mean is None:
        return ""
    ending = "(one run)" if half is None else f"± {half:.{digits}f}"
    return f"{mean:+.{digits}f} {ending}"
