"""The study of whether GAAF helps: trains the rows of study/rows.py, and collects the results.

    python -m study.experiments --data PATH                     # all rows, 200 epochs, 3 seeds
    python -m study.experiments --data PATH --epochs 20 --seeds 1 relu "shift -1" paper

The same command again goes on where it was stopped, and trains nothing that is done. Results go
into study/results/experiments.csv, a line a run; the tables in docs/study.md come from there.
Runs of another machine are added from their folder, of which run.json, config.json and history.csv
are enough:

    python -m study.experiments --collect FOLDER
"""

import argparse
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from main import Settings
from study.analysis import RESULTS, key_of, same_code
from study.rows import PROTOCOL, ROWS
from study.runs import Run, add, collect, print_line, result_of
from training import Mistake
from training.data import require_source
from training.files import read_csv
from training.settings import CHOICES


def threads(n):
    """Threads with cores of their own, as have the trainings that they start.

    That is faster than if all trainings had all cores.
    """
    if not hasattr(os, "sched_setaffinity"):  # Linux has it
        return ThreadPoolExecutor(n)
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[i::n] or cores for i in range(n)]
    return ThreadPoolExecutor(n, initializer=lambda: os.sched_setaffinity(0, shares.pop()))


def is_done(run, lines):
    """Whether the results have the run, made by this code or by one that makes the same of it."""
    same = same_code(lines)
    *wanted, now = run.key
    made_by = {code for *key, code in map(key_of, lines) if key == wanted}
    precision = run.settings["precision"]
    return same.get((now, precision), now) in {same[code, precision] for code in made_by}


def train(runs, at_once, results=RESULTS):
    """Trains what is not done yet, some at a time; in the end raises RuntimeError if any failed.

    After a change of the code, runs are trained again until one with GAAF ends as before. Then the
    other runs of that code count as done.
    """
    lines = read_csv(results)
    todo = [run for run in runs if not is_done(run, lines)]
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done", flush=True)
    processes, failed, pool = [], [], threads(at_once)

    def train_if_needed(run):
        if is_done(run, read_csv(results)):  # which may have become longer
            return
        run.train(processes)
        line = result_of(run.directory)
        add([line], results)
        print_line(f"{run.row}, seed {run.seed}: {line['test_accuracy']:.4f}")

    try:
        for trained in [pool.submit(train_if_needed, run) for run in todo]:
            try:
                trained.result()
            except RuntimeError as error:
                failed.append(str(error))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # each saves what it has, and goes on with the next command
            process.terminate()
    if failed:
        raise RuntimeError("; ".join(failed))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    known = "; ".join(ROWS)
    listed = f"default: all: {known}"
    parser.add_argument("rows", nargs="*", metavar="ROW", default=[*ROWS], help=listed)
    parser.add_argument("--data", default="cifar10", help="as of main.py; default cifar10")
    parser.add_argument("--epochs", type=int, default=200, help="default 200")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each row; default 3")
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow; default 0")
    precision = {"choices": CHOICES["precision"], "default": "float32", "help": "default float32"}
    parser.add_argument("--precision", **precision)
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side; default 1")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="of runs; trains nothing")
    given = parser.parse_args()
    if given.collect:
        print(f"{collect(given.collect)} new runs in {RESULTS}")
        return
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"ROW: allowed is one of {known}; received {', '.join(unknown)}")
    for name, lowest in {"epochs": 1, "seeds": 1, "first_seed": 0, "at_once": 1}.items():
        if (value := getattr(given, name)) < lowest:
            flag = name.replace("_", "-")
            parser.error(f"--{flag}: allowed is {lowest} or more; received {value}")
    try:
        data = require_source(given.data)
    except Mistake as mistake:
        parser.error(str(mistake))
    if edited := [name for name, value in PROTOCOL.items() if getattr(Settings(), name) != value]:
        allowed = "allowed for the study are the defaults that study/rows.py has"
        parser.error(f"main.py: {allowed}; received others of {', '.join(edited)}")
    # All rows once, before any a second time.
    how = given.epochs, data, given.precision
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    runs = [Run(row, seed, *how) for seed in seeds for row in given.rows]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the trainings are to end as well
    try:
        train(runs, given.at_once)
    except RuntimeError as error:
        sys.exit(f"experiments: error: {error}")
    except KeyboardInterrupt:
        sys.exit("experiments: stopped; to go on, run the same command again")


if __name__ == "__main__":
    main()
