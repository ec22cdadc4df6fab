"""The study of whether GAAF helps: trains each row of the table below, and collects the results.

    python experiments.py --data PATH                     # everything, 200 epochs, 3 seeds
    python experiments.py --data PATH --epochs 20 --seeds 1 relu "shift -1" paper

The same command again goes on where it was stopped, and trains nothing that is done. Results go
into results/experiments.csv, a line a run; the README's tables come from there.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "experiments.csv"
RUNS = ROOT / "runs" / "experiments"

# What differs from the protocol: ResNet-20 v1, GAAF_relu, slope 1, Adam 1e-3 with the step
# schedule, batch 128, no augmentation. The test accuracy that counts is that of the last epoch.
SHIFTS = (5, 4, 3, 2, 1, 0, -0.5, -1, -2, -3, -4)
PAPER = {"slope": 5, "shift": 0.5}
RELU = {"activation": "relu"}
ROWS = {
    "relu": RELU,
    **{f"shift {shift:g}": {"shift": shift} for shift in SHIFTS},
    "no s": {"shape": "none"},
    "round": {"shift": -1, "wave": "round"},
    "paper": PAPER,
    "paper, limit wave": {**PAPER, "wave": "none"},
    "fading, paper, off at 20 %": {**PAPER, "fade": 0.2, "fade_steps": 1},
    "fading, paper, off at 40 %": {**PAPER, "fade": 0.4, "fade_steps": 1},
    "fading, paper, to 80 %": {**PAPER, "fade": 0.8},
    "fading, shift 1, off at 40 %": {"shift": 1, "fade": 0.4, "fade_steps": 1},
    "fading, shift 1, to 80 %": {"shift": 1, "fade": 0.8},
    "tanh": {"activation": "tanh"},
    "GAAF_tanh": {"activation": "GAAF_tanh"},
    "v2, relu": {"version": 2, **RELU},
    "v2, shift -1": {"version": 2, "shift": -1},
    "v2, paper": {"version": 2, **PAPER},
    "augmented, relu": {"data_augmentation": True, **RELU},
    "augmented, shift -1": {"data_augmentation": True, "shift": -1},
    "augmented, paper": {"data_augmentation": True, **PAPER},
    "ResNet-56, relu": {"depth": 56, **RELU},
    "ResNet-56, shift -1": {"depth": 56, "shift": -1},
    "ResNet-56, paper": {"depth": 56, **PAPER},
}
COLUMNS = (
    *("row", "seed", "epochs", "test_accuracy", "best_test_accuracy", "train_accuracy"),
    *("train_loss", "penalty", "seconds", "data", "device", "versions", "settings"),
)
# Else the first of several trainings on a GPU would take most of its memory for itself.
SHARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def plain_row(row):
    """The row that a row is compared with: the same network and data with the plain activation."""
    if row.endswith("tanh"):
        return "tanh"
    group, _, _ = row.rpartition(", ")
    return f"{group}, relu" if f"{group}, relu" in ROWS else "relu"


class Run:
    """One training: a row with a seed, as a process of main.py with a directory of its own."""

    def __init__(self, row, seed, epochs, data, folder=RUNS):
        self.row, self.seed, self.epochs, self.data = row, seed, epochs, data
        name = (
            f"{row}-{epochs}epochs-seed{seed}".replace(", ", "_")
            .replace(" %", "")
            .replace(" ", "_")
        )
        self.directory = folder / name
        self.process = None

    def key(self):
        """What tells its line of the results from the others, as `key_of` does."""
        return self.row, str(self.seed), str(self.epochs), Path(self.data).stem

    def settings(self):
        fixed = {"data": self.data, "epochs": self.epochs, "seed": self.seed}
        return {**ROWS[self.row], **fixed, "output_dir": str(self.directory)}

    def start(self):
        flags = []
        for name, value in self.settings().items():
            flag = name.replace("_", "-")
            flags.append(f"--{flag}" if value is True else f"--{flag}={value}")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        with open(self.directory / "log.txt", "a", encoding="utf-8") as log:
            command = [sys.executable, ROOT / "main.py", *flags]
            environment = {**SHARING, **os.environ}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def end(self):
        """Waits for the process, and adds its time to that of earlier ones; returns its code."""
        code = self.process.wait()
        with open(self.directory / "seconds.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.monotonic() - self.began:.1f}\n")
        return code

    def seconds(self):
        """The time of all processes of this run."""
        text = (self.directory / "seconds.txt").read_text(encoding="utf-8")
        return sum(map(float, text.split()))

    def history(self):
        """The epochs trained so far, rows of history.csv."""
        return read_history(self.directory / "history.csv")

    def result(self):
        """The line of the results."""
        config = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        rows = self.history()
        return {
            "row": self.row,
            "seed": self.seed,
            "epochs": len(rows),
            "test_accuracy": rows[-1]["val_accuracy"],
            "best_test_accuracy": max(row["val_accuracy"] for row in rows),
            "train_accuracy": rows[-1]["accuracy"],
            "train_loss": rows[-1]["loss"],
            "seconds": round(self.seconds()),
            "data": Path(self.data).stem,
            "device": config["device"],
            "versions": ", ".join(f"{k} {v}" for k, v in config["versions"].items()),
            "settings": json.dumps(ROWS[self.row]),
        }


def read_results(path=RESULTS):
    """The lines of the results, or of another CSV file; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_history(path):
    """The rows of a history.csv, as numbers."""
    return [{k: float(v) for k, v in row.items()} for row in read_results(path)]


def add_result(result, path=RESULTS):
    """Adds a line to the results."""
    from runs import write_csv

    path.parent.mkdir(exist_ok=True)
    write_csv(path, COLUMNS, [*read_results(path), result])


def key_of(line):
    """What tells a line of the results from the others."""
    return tuple(line[column] for column in ("row", "seed", "epochs", "data"))


def add_penalties(runs, results=RESULTS):
    """Adds the weight penalty that is part of the training loss of each trained model.

    That takes Keras, which would take memory of the GPU from the trainings, and so comes last.
    """
    lines = {key_of(line): line for line in read_results(results)}
    models = {run.key(): run.directory / "final.keras" for run in runs}
    lacking = [
        key
        for key, path in models.items()
        if key in lines and not lines[key].get("penalty") and path.exists()
    ]
    if not lacking:
        return
    import main as training

    training.start_keras()
    import keras

    import gaaf  # noqa: F401 - so that Keras knows it
    from runs import write_csv

    for key in lacking:
        model = keras.models.load_model(models[key], compile=False)
        lines[key]["penalty"] = round(float(sum(model.losses)), 6)
    write_csv(results, COLUMNS, lines.values())


def train(runs, at_once, results=RESULTS):
    """Trains what is not done yet, some at a time; raises RuntimeError if one fails."""
    done = {key_of(line) for line in read_results(results)}
    todo = [run for run in runs if run.key() not in done]
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done", flush=True)
    progress = Progress(todo)
    waiting, training = list(todo), []
    try:
        while waiting or training:
            while waiting and len(training) < at_once:
                training.append(waiting.pop(0))
                training[-1].start()
            time.sleep(1)
            progress.show(training)
            for run in [run for run in training if run.process.poll() is not None]:
                if run.end():
                    raise RuntimeError(f"{run.row}: see {run.directory / 'log.txt'}")
                training.remove(run)
                result = run.result()
                add_result(result, results)
                print(f"\n{run.row}, seed {run.seed}: {result['test_accuracy']:.4f}", flush=True)
    finally:
        for run in training:  # each saves what it has, and goes on with the next command
            run.process.terminate()
            run.end()


class Progress:
    """Says which epochs have been reached, and how long the rest will take."""

    def __init__(self, runs):
        self.runs, self.began = runs, time.monotonic()
        self.before = self.said = self.epochs()

    def epochs(self):
        return sum(len(run.history()) for run in self.runs)

    def show(self, training):
        """Prints a line, in place of the last one on a terminal, where an epoch has ended."""
        now = self.epochs()
        if now == self.said:
            return
        self.said = now
        left = sum(run.epochs for run in self.runs) - now
        minutes = round((time.monotonic() - self.began) / (now - self.before) * left / 60)
        where = "; ".join(
            f"{x.row}, seed {x.seed}: {len(x.history())}/{x.epochs}" for x in training
        )
        end = "\r" if sys.stdout.isatty() else "\n"
        text = f"{where}; about {minutes // 60} h {minutes % 60} min left"
        print(f"{text:<100}", end=end, flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: all: {', '.join(ROWS)}")
    parser.add_argument("--data", default="cifar10", help="as of main.py; default cifar10")
    parser.add_argument("--epochs", type=int, default=200, help="default 200")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … a row; default 3")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side; default 1")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"ROW: allowed is one of {', '.join(ROWS)}; received {', '.join(unknown)}")
    runs = [
        Run(row, seed, given.epochs, given.data)
        for seed in range(given.seeds)  # all rows once, before any a second time
        for row in given.rows or ROWS
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the trainings are to end as well
    try:
        train(runs, given.at_once)
        add_penalties(runs)
    except RuntimeError as error:
        sys.exit(f"experiments.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nexperiments.py: stopped; to go on, run the same command again")


if __name__ == "__main__":
    main()
