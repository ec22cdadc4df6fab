"""The study of whether GAAF helps: trains each row of the table below, and collects the results.

    python -m study.experiments --data PATH                     # all rows, 200 epochs, 3 seeds
    python -m study.experiments --data PATH --epochs 20 --seeds 1 relu "shift -1" paper

The same command again goes on where it was stopped, and trains nothing that is done. Results go
into study/results/experiments.csv, a line a run; the tables in docs/study.md come from there.
"""

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import filelock

from main import Settings
from study.analysis import RESULTS, key_of, same_code
from study.rows import ROWS
from training.files import read_csv, read_history, write_csv
from training.identity import identity_of
from training.settings import CHOICES

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "experiments"

# Else the first of several trainings on a GPU would take most of its memory for itself.
SHARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


class Run(NamedTuple):
    """One training: a row with a seed, as a process of main.py with a directory of its own."""

    row: str
    seed: int
    epochs: int
    data: str
    precision: str = "float32"
    folder: Path = RUNS

    @property
    def settings(self):
        """What differs from the protocol; a row may have a precision of its own."""
        return {"precision": self.precision} | ROWS[self.row]

    @property
    def directory(self):
        data, precision = Path(self.data).stem, self.settings["precision"]
        name = f"{self.row}-{self.seed}-{self.epochs}-{data}-{precision}-{code()}"
        return self.folder / name.replace(", ", "_").replace(" ", "_")

    @property
    def key(self):
        """What tells its line of the results from the others."""
        line = {"row": self.row, "seed": str(self.seed), "epochs": str(self.epochs)}
        line |= {"data": Path(self.data).stem, "settings": json.dumps(self.settings)}
        device, versions = setup()
        return key_of(line | {"device": device, "versions": versions, "sources": code()})

    def flags(self):
        settings = {"data": self.data, "epochs": self.epochs, "seed": self.seed}
        settings |= self.settings | {"output_dir": self.directory}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        return [flag.removesuffix("=True") for flag in flags]

    def command(self):
        """What trains it: main.py, or for the one function that Keras lacks what adds that."""
        program = ["-m", "study.b_silu"] if self.row == "B-SiLU" else [ROOT / "main.py"]
        return [sys.executable, *program, *self.flags()]

    def train(self, processes):
        """Trains it, or goes on; returns the line of the results. Fails with RuntimeError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        began, seconds = time.monotonic(), self.directory / "seconds.txt"
        print(f"{self.row}, seed {self.seed}: see {self.directory / 'log.txt'}", flush=True)
        with open(self.directory / "log.txt", "a", encoding="utf-8") as log:
            environment = {**SHARING, **os.environ}
            process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=environment)
            processes.append(process)
            code = process.wait()
        with open(seconds, "a", encoding="utf-8") as file:
            file.write(f"{time.monotonic() - began:.1f}\n")
        if code:
            raise RuntimeError(f"{self.row}, seed {self.seed}: see {self.directory / 'log.txt'}")
        return self.result(sum(map(float, seconds.read_text(encoding="utf-8").split())))

    def result(self, seconds):
        """The line of the results."""
        config = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        rows = read_history(self.directory / "history.csv")
        return {
            "row": self.row,
            "seed": self.seed,
            "epochs": len(rows),
            "test_accuracy": rows[-1]["val_accuracy"],
            "best_test_accuracy": max(row["val_accuracy"] for row in rows),
            "train_accuracy": rows[-1]["accuracy"],
            "train_loss": rows[-1]["loss"],
            "penalty": float(_with_keras(f"print_penalty_of({str(self.directory)!r})")),
            "seconds": round(seconds),
            "data": Path(self.data).stem,
            "device": config["device"],
            "versions": in_words(config["versions"]),
            "settings": json.dumps(self.settings),
            "sources": digest_of(config["sources"]),
        }


def digest_of(sources):
    """A digest of the code that trains, as what config.json keeps of it."""
    return sha256(json.dumps(sources).encode()).hexdigest()[:8]


@functools.cache  # of the code that this process began with
def code():
    """The digest of the code that would train now."""
    return digest_of(identity_of(Settings())["sources"])


def _with_keras(call):
    """The last line that a function prints in a process; here, Keras would keep memory of a GPU."""
    command = [sys.executable, "-c", f"from study import experiments as e; e.{call}"]
    environment = {**SHARING, **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{call} failed: {done.stderr}")
    return done.stdout.splitlines()[-1]


def print_penalty_of(directory):
    """Prints the weight penalty of the model that a run has trained."""
    import keras

    import gaaf  # noqa: F401 - so that Keras knows it
    from study import b_silu  # noqa: F401

    model = keras.models.load_model(Path(directory) / "final.keras", compile=False)
    print(round(float(sum(model.losses)), 6))


def print_setup():
    """Prints what a training would run on now, as its line of the results would say."""
    from training import devices, report

    print(json.dumps([devices.kind(), in_words(report.versions())]))


@functools.cache
def setup():
    """The kind of device, and the versions, that a training would have now."""
    return tuple(json.loads(_with_keras("print_setup()")))


def in_words(versions):
    """{name: version} as the results have it."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


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
    return same.get(now, now) in {
        same[made_by] for *key, made_by in map(key_of, lines) if key == wanted
    }


def train(runs, at_once, results=RESULTS):
    """Trains what is not done yet, some at a time; in the end raises RuntimeError if any failed.

    After a change of the code some are trained anew, until one with GAAF has ended as before.
    """
    lines = read_csv(results)
    todo = [run for run in runs if not is_done(run, lines)]
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done", flush=True)
    processes, failed, pool = [], [], threads(at_once)

    def train_if_needed(run):
        if is_done(run, read_csv(results)):  # which may have become longer
            return
        line = run.train(processes)
        with filelock.FileLock(f"{results}.lock"):  # another process may write them, too
            write_csv(results, [*read_csv(results), line])
        print(f"{run.row}, seed {run.seed}: {line['test_accuracy']:.4f}", flush=True)

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
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … a row; default 3")
    precision = {"choices": CHOICES["precision"], "default": "float32", "help": "default float32"}
    parser.add_argument("--precision", **precision)
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side; default 1")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"ROW: allowed is one of {known}; received {', '.join(unknown)}")
    if min(given.epochs, given.seeds, given.at_once) < 1:
        parser.error("--epochs, --seeds, --at-once: allowed is 1 or more")
    # All rows once, before any a second time.
    how = given.epochs, given.data, given.precision
    runs = [Run(row, seed, *how) for seed in range(given.seeds) for row in given.rows]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the trainings are to end as well
    try:
        train(runs, given.at_once)
    except RuntimeError as error:
        sys.exit(f"experiments: error: {error}")
    except KeyboardInterrupt:
        sys.exit("experiments: stopped; to go on, run the same command again")


if __name__ == "__main__":
    main()
