"""One run of the study: how it is trained, and the line of the results that it becomes."""

import functools
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import filelock
import h5py
import numpy as np

from main import Settings
from study.analysis import RESULTS, key_of
from study.rows import ROWS
from training.files import read_csv, read_history, write_csv, write_text
from training.identity import sources_of

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "experiments"
FINISHED = "run.json"  # beside main.py's files, once the run has ended

SHARING = {
    # Else the first of several trainings on a GPU would take most of its memory for itself.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    # JAX compiles a row once, not once for each seed.
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / "runs" / "compiled"),
}


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
        """Where it trains; another code, device or version trains in another directory."""
        made_by = digest_of([code(), *setup()])
        parts = self.row, self.seed, self.epochs, Path(self.data).stem, self.settings["precision"]
        name = "-".join(map(str, (*parts, made_by)))
        return self.folder / name.replace(", ", "_").replace(" ", "_")

    @property
    def key(self):
        """What tells its line of the results from the others."""
        line = {"row": self.row, "seed": self.seed, "epochs": self.epochs}
        line |= {"data": Path(self.data).stem, "settings": json.dumps(self.settings)}
        device, versions = setup()
        return key_of(line | {"device": device, "versions": versions, "sources": code()})

    def command(self):
        settings = {"data": self.data, "epochs": self.epochs, "seed": self.seed}
        settings |= self.settings | {"output_dir": self.directory}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        return [sys.executable, ROOT / "main.py", *(x.removesuffix("=True") for x in flags)]

    def train(self, processes):
        """Trains it, or goes on; adds the process to a list. Fails with RuntimeError."""
        if (self.directory / FINISHED).exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        log_path, seconds = self.directory / "log.txt", self.directory / "seconds.txt"
        print_line(f"{self.row}, seed {self.seed}: see {log_path}")
        began = time.monotonic()
        with open(log_path, "a", encoding="utf-8") as log:
            environment = {**SHARING, **os.environ}
            process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=environment)
            processes.append(process)
            exit_code = process.wait()
        with open(seconds, "a", encoding="utf-8") as file:
            file.write(f"{time.monotonic() - began:.1f}\n")
        if exit_code:
            raise RuntimeError(f"{self.row}, seed {self.seed}: see {log_path}")
        finished = {
            "row": self.row,
            "settings": self.settings,
            "squares": squares_of(self.directory / "final.keras"),
            "seconds": round(sum(map(float, seconds.read_text(encoding="utf-8").split()))),
        }
        write_text(self.directory / FINISHED, json.dumps(finished, indent=1))


def print_line(text):
    """Prints text and its line end in one piece: the threads of other runs print as well."""
    print(f"{text}\n", end="", flush=True)


def squares_of(path):
    """The sum of the squares of all convolution kernels in a .keras file.

    It is read from the file, without Keras: each process of Keras would take memory of the GPU.
    """
    found = []

    def add(name, weights):  # an optimizer keeps arrays of the same shapes
        if (
            isinstance(weights, h5py.Dataset)
            and weights.ndim == 4
            and not name.startswith("optimizer")
        ):
            found.append(np.sum(np.square(weights, dtype="float64")))

    with zipfile.ZipFile(path) as model, model.open("model.weights.h5") as weights:
        h5py.File(io.BytesIO(weights.read())).visititems(add)
    return round(float(sum(found)), 3)


def result_of(directory):
    """The line of the results of a finished run, from its three small text files alone."""
    finished, config = (
        json.loads((directory / name).read_text(encoding="utf-8"))
        for name in (FINISHED, "config.json")
    )
    rows = read_history(directory / "history.csv")
    makers = [{**stretch, "first_epoch": 1} for stretch in config["stretches"]]
    if any(maker != makers[0] for maker in makers):
        raise RuntimeError(
            f"{directory}: its epochs were not all trained by the same code and setup; remove it"
        )
    made_by = makers[0]
    settings, squares = config["settings"], finished["squares"]
    in_the_loss = settings["optimizer"] != "adamw"
    return {
        "row": finished["row"],
        "seed": settings["seed"],
        "epochs": len(rows),
        "test_accuracy": rows[-1]["val_accuracy"],
        "best_test_accuracy": max(row["val_accuracy"] for row in rows),
        "train_accuracy": rows[-1]["accuracy"],
        "train_loss": rows[-1]["loss"],
        "penalty": round(settings["weight_decay"] * squares, 6) if in_the_loss else 0.0,
        "squares": squares,
        "seconds": finished["seconds"],
        "data": Path(settings["data"]).stem,
        "device": made_by["device"],
        "versions": versions_in_words(made_by["versions"]),
        "settings": json.dumps(finished["settings"]),
        "sources": digest_of(made_by["sources"]),
    }


def collect(folder, results=RESULTS):
    """Adds the finished runs in a folder to the results, if these lack them; returns how many."""
    lines = []
    for path in sorted(folder.rglob(FINISHED)):
        try:
            lines.append(result_of(path.parent))
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            print(f"left out: {path.parent}: {type(error).__name__}: {error}")
    return add(lines, results)


def add(lines, results):
    """Adds lines to the results, if these lack them; returns how many."""
    with filelock.FileLock(f"{results}.lock"):  # another process may write them, too
        known = read_csv(results)
        by_key = {key_of(line): line for line in reversed([*known, *lines])}  # the first one stays
        new = [line for line in lines if by_key[key_of(line)] is line]
        write_csv(results, [*known, *new])
    return len(new)


def digest_of(what):
    """A short digest of something that JSON can hold, as the code in a config.json."""
    return sha256(json.dumps(what).encode()).hexdigest()[:8]


@functools.cache  # of the code that this process began with
def code():
    """The digest of the code that would train now."""
    return digest_of(sources_of(Settings))


def print_setup():
    """Prints what a training would run on now, as its line of the results would say."""
    from training import devices, report

    print(json.dumps([devices.name(), versions_in_words(report.versions())]))


@functools.cache
def setup():
    """The device, and the versions, that a training would have now.

    Another process looks: Keras, once imported, would keep memory of a GPU.
    """
    command = [sys.executable, "-c", "from study.runs import print_setup; print_setup()"]
    environment = {**SHARING, **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"Keras cannot be started: {done.stderr}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def versions_in_words(versions):
    """{name: version} as the results have it."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
