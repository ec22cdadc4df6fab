"""What GAAF costs beside plain activations, and what fused normalisation brings on the CPU.

    python -m study.speed [--precision mixed_bfloat16]

ResNet-20 v1, batch 128, images of noise: training steps and inference, all timed in turn in one
process, so that a disturbance meets all of them; and the memory of a training step. A ratio is the
median over the rounds. Results go into study/results/speed.csv; the table in docs/speed.md comes
from there.
"""

import argparse
import functools
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from training import console

console.prepare_environment()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import main  # noqa: E402
from study.why import compiled  # noqa: E402
from training import devices, normalization  # noqa: E402
from training.data import Data  # noqa: E402
from training.files import read_csv, write_csv  # noqa: E402
from training.settings import CHOICES  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "speed.csv"
BATCH, LARGE_BATCH, ROUNDS = 128, 1024, 9
KERAS_OWN = "relu, Keras' own normalisation"
# The settings of each row; and the row that it is measured against.
ROWS = {
    "relu": ({"activation": "relu"}, "relu"),
    "GAAF_relu": ({}, "relu"),
    "GAAF_relu, gain peak": ({"gain": "peak"}, "relu"),
    "GAAF_relu, limit wave": ({"wave": "none"}, "relu"),
    "elu": ({"activation": "elu"}, "relu"),
    KERAS_OWN: ({"activation": "relu"}, "relu"),
    "tanh": ({"activation": "tanh"}, "tanh"),
    "GAAF_tanh": ({"activation": "GAAF_tanh"}, "tanh"),
    "GAAF_tanh, limit wave": ({"activation": "GAAF_tanh", "wave": "none"}, "tanh"),
}


def noise(n):
    """Images of noise, n for training and as many for testing: speed does not look at them."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, 32, 32, 3), dtype="uint8")
    y = np.arange(n, dtype="int32") % 10
    return Data(x, y, x, y)


def network_of(name, precision, data):
    """The compiled model of a row."""
    speed_up = normalization.speed_up
    if name == KERAS_OWN:
        normalization.speed_up = lambda network: None
    try:
        return compiled(main.Settings(precision=precision, **ROWS[name][0]), data)
    finally:
        normalization.speed_up = speed_up


def in_turn(functions, calls):
    """{name: seconds a call, one a round} of {name: function that returns when it is done}."""
    seconds = {name: [] for name in functions}
    for r in range(-1, ROUNDS):  # the first is not counted
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            if r >= 0:
                seconds[name].append((time.perf_counter() - start) / calls)
        print(f"\rround {r + 1} of {ROUNDS}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def figures(precision):
    """Yields (figure, value) of everything that is measured."""
    data = noise(BATCH)
    x, y = (keras.ops.convert_to_tensor(a) for a in (data.x_train, data.y_train))
    networks = {name: network_of(name, precision, data) for name in ROWS}
    for what, method, arguments, calls in (
        ("training step", "train_on_batch", (x, y), 4),
        ("inference", "predict_on_batch", (x,), 8),
    ):
        bound = {name: getattr(network, method) for name, network in networks.items()}
        seconds = in_turn({k: functools.partial(f, *arguments) for k, f in bound.items()}, calls)
        for name, (_, base) in ROWS.items():
            if name == base:
                images = BATCH / statistics.median(seconds[name])
                yield f"{what}, {name}", f"{images:,.0f} images/s"
            else:
                pairs = zip(seconds[name], seconds[base], strict=True)
                yield (
                    f"{what}, {name} / {base}",
                    f"{statistics.median(a / b for a, b in pairs):.3f}",
                )
    plain = memory("relu", precision)
    for name in ("elu", "GAAF_relu", "GAAF_relu, limit wave"):
        taken = memory(name, precision) / plain
        yield f"memory of a training step at batch {LARGE_BATCH}, {name} / relu", f"{taken:.2f}"


def memory(name, precision):
    """The kilobytes that a training step adds to a process of its own, at a large batch."""
    command = [sys.executable, "-m", "study.speed", "--precision", precision, "--memory-of", name]
    return int(subprocess.run(command, capture_output=True, check=True).stdout.split()[-1])


def print_memory_of(name, precision):
    """Prints how far training steps raise this process' memory above what it holds."""

    def kilobytes(name):
        """A line of the process' status; getrusage would count what its parent held as well."""
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1])

    data = noise(LARGE_BATCH)
    network = network_of(name, precision, data)
    network.train_on_batch(data.x_train[:8], data.y_train[:8])  # what compiling takes is not meant
    held = kilobytes("VmRSS")
    for _ in range(2):
        network.train_on_batch(data.x_train, data.y_train)
    print(kilobytes("VmHWM") - held)


def where():
    """The machine and the versions that figures are of."""
    backend, cpuinfo = keras.backend.backend(), Path("/proc/cpuinfo")
    names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
    cpu = f"{os.cpu_count()} cores of {names[0].partition(': ')[2]}"
    versions = f"Python {platform.python_version()}, keras {keras.__version__}"
    return {
        "device": cpu if devices.kind() == "CPU" else devices.kind(),
        "versions": f"{versions}, {backend} {sys.modules[backend].__version__}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    precisions = CHOICES["precision"]
    parser.add_argument(
        "--precision", default="float32", choices=precisions, help="default float32"
    )
    parser.add_argument("--memory-of", choices=ROWS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print_memory_of(given.memory_of, given.precision)
    else:
        same = {"precision": given.precision, "rounds": ROUNDS, **where()}
        new = [
            {"figure": figure, "value": value} | same for figure, value in figures(given.precision)
        ]
        for row in new:
            print(f"{row['figure']:<70} {row['value']}")
        kept = [row for row in read_csv(RESULTS) if row["precision"] != given.precision]
        write_csv(RESULTS, kept + new)
