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

    Two are taken to make the same in a precision if there are runs in it that both have made, on
    the same setup, some of them with GAAF, and each of these ended alike, to the last digit. No
    third one may belie it. Another precision computes GAAF in another way, so it shows nothing.
    """
    made, groups = {}, {}  # {maker: its runs}; {latest maker: (those that make the same, runs)}
    for line in lines:
        *run, sources = key_of(line)
        maker = sources, run[-1]
        made.setdefault(maker, {})[*run] = [line.get(column) for column in MEASURES]
    for maker, runs in made.items():
        makers, together = [maker], dict(runs)
        for latest in [x for x, (_, theirs) in groups.items() if _agree(runs, theirs)]:
            others, theirs = groups.pop(latest)
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


def study():
    """{row: `Row`} of the rows that have been run: the longest runs, all of one maker.

    Of several makers, those whose group has the plain row and the most runs count, of these the
    latest. Data sets but the one with the most runs are left out. A plain row has none to compare
    it with.
    """
    results, found, groups = read_csv(RESULTS), {}, {}
    data = statistics.mode(x["data"] for x in results)
    lines, same = [x for x in results if x["data"] == data], same_code(results)
    latest = {}
    for i, x in enumerate(lines):
        row, seed, epochs, _, _, *setup, code = key_of(x)
        group = int(epochs), (same[code, setup[-1]], *setup)
        groups.setdefault(group, {}).setdefault(row, {})[seed] = x
        latest[group] = i
    for row in ROWS:
        ours = {group: rows[row] for group, rows in groups.items() if row in rows}
        if ours:
            plain = plain_row(row)
            group = max(ours, key=lambda g: (g[0], plain in groups[g], len(ours[g]), latest[g]))
            versus = {} if plain == row else groups[group].get(plain, {})
            found[row] = Row(*group, ours[group], versus)
    return found


def column(name):
    """A measure of a run: the number in a column of its line; nan where it is not known."""
    return lambda line: float(line[name] or "nan")


accuracy, loss, penalty = map(column, ("test_accuracy", "train_loss", "penalty"))


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
    for row, (*_, runs, plain) in found.items():
        paired = (measure(line) - measure(plain[s]) for s, line in runs.items() if s in plain)
        pairs[row] = [round(x, 9) for x in paired if np.isfinite(x)]  # 0.81 - 0.8 is 0.82 - 0.81
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
