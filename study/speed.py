"""What GAAF costs beside plain activations, and what fused normalisation brings on the CPU.

    python -m study.speed [--precision mixed_bfloat16] [ROW ...]

ResNet-20 v1, images of noise: training steps and inference at batch 128, and where there is a GPU
at batch 1024, which keeps it busy, all timed in turn in one process, so that a disturbance meets
all of them; and on the CPU the memory of a training step. A ratio is the median over the rounds.
Results go into study/results/speed.csv; the tables in docs/speed.md come from there.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from training import console

console.prepare_environment()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import main  # noqa: E402
from study.runs import versions_in_words  # noqa: E402
from study.why import compiled  # noqa: E402
from training import batches, devices, report, tensorflow_cpu  # noqa: E402
from training.data import Data  # noqa: E402
from training.files import read_csv, write_csv  # noqa: E402
from training.settings import CHOICES  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "speed.csv"
BATCH, LARGE_BATCH, ROUNDS = 128, 1024, 9
STEPS_OF_A_FIT = 50  # steps of a fit
KERAS_OWN = "relu, Keras' own normalisation"
# The settings of each row; and the row that it is measured against.
ROWS = {
    "relu": ({"activation": "relu"}, "relu"),
    "GAAF_relu": ({"gain": 1.0}, "relu"),
    "GAAF_relu, gain peak": ({"gain": "peak"}, "relu"),
    "GAAF_relu, wave none": ({"wave": "none", "gain": 1.0}, "relu"),
    "elu": ({"activation": "elu"}, "relu"),
    KERAS_OWN: ({"activation": "relu"}, "relu"),
    "tanh": ({"activation": "tanh"}, "tanh"),
    "GAAF_tanh": ({"activation": "GAAF_tanh", "gain": 1.0}, "tanh"),
    "GAAF_tanh, wave none": ({"activation": "GAAF_tanh", "wave": "none", "gain": 1.0}, "tanh"),
}


def noise(n):
    """Images of noise, n for training and as many for testing: speed does not look at them."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, 32, 32, 3), dtype="uint8")
    y = np.arange(n, dtype="int32") % 10
    return Data(x, y, x, y)


def network_of(name, precision, data):
    """The compiled model of a row."""
    speed_up = tensorflow_cpu.speed_up_normalization
    if name == KERAS_OWN:
        tensorflow_cpu.speed_up_normalization = lambda network: None
    try:
        return compiled(main.Settings(precision=precision, **ROWS[name][0]), data)
    finally:
        tensorflow_cpu.speed_up_normalization = speed_up


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


def figures(names, precision):
    """Yields (figure, value) of everything that is measured of rows, their bases among them."""
    on_cpu, data = devices.kind() == "CPU", noise(BATCH)
    networks = {name: network_of(name, precision, data) for name in names}
    for size in (BATCH,) if on_cpu else (BATCH, LARGE_BATCH):
        at = f" at batch {size}" if size != BATCH else ""
        data = noise(size)
        x, y = (keras.ops.convert_to_tensor(a) for a in (data.x_train, data.y_train))
        if on_cpu:
            steps = {name: partial(net.train_on_batch, x, y) for name, net in networks.items()}
            yield from ratios("training step" + at, names, in_turn(steps, calls=4), size)
        else:
            fits = {name: _fit_of(net, size) for name, net in networks.items()}
            yield from ratios("training step" + at, names, in_turn(fits, 1), size * STEPS_OF_A_FIT)
        tests = {name: partial(net.predict_on_batch, x) for name, net in networks.items()}
        yield from ratios("inference" + at, names, in_turn(tests, calls=8), size)
    weighed = [x for x in ("elu", "GAAF_relu", "GAAF_relu, wave none") if x in names]
    if on_cpu and weighed:
        plain = memory("relu", precision)
        for name in weighed:
            taken = memory(name, precision) / plain
            yield f"memory of a training step at batch {LARGE_BATCH}, {name} / relu", f"{taken:.2f}"


def _fit_of(network, size):
    """The function that takes several steps, with the batches and the `fit` of main.py.

    A GPU begins a step before Python has seen the last one end: a step alone would take longer.
    """
    fed = batches.feed(main.Settings(batch_size=size), noise(STEPS_OF_A_FIT * size))["x"]
    return partial(network.fit, fed, steps_per_epoch=STEPS_OF_A_FIT, shuffle=False, verbose=0)


def ratios(what, names, seconds, images):
    """Yields (figure, value): images per second of a base, else the ratio to it."""
    for name in names:
        if name == (base := ROWS[name][1]):
            yield f"{what}, {name}", f"{images / statistics.median(seconds[name]):,.0f} images/s"
        else:
            pairs = zip(seconds[name], seconds[base], strict=True)
            yield f"{what}, {name} / {base}", f"{statistics.median(a / b for a, b in pairs):.3f}"


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


def with_new(rows, new):
    """The rows of the results, in the place of each that has been measured anew the new one."""

    def what(row):
        return row["figure"], row["precision"], row["device"]

    by_figure = {what(row): row for row in rows} | {what(row): row for row in new}
    return list(by_figure.values())


def where():
    """The machine and the versions that figures are of."""
    kind, _, device = devices.name().partition(": ")
    if kind == "CPU":
        device = f"{os.cpu_count()} cores of {device}"
    return {"device": device, "versions": versions_in_words(report.versions())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    known = [name for name in ROWS if name != KERAS_OWN or devices.on_one_cpu()]
    parser.add_argument("rows", nargs="*", metavar="ROW", default=known, help="; ".join(known))
    precisions = CHOICES["precision"]
    parser.add_argument(
        "--precision", default="float32", choices=precisions, help="default float32"
    )
    parser.add_argument("--memory-of", choices=ROWS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print_memory_of(given.memory_of, given.precision)
    else:
        if unknown := set(given.rows) - set(known):
            parser.error(f"ROW: allowed is one of {'; '.join(known)}; received {unknown}")
        same = {"precision": given.precision, "rounds": ROUNDS, **where()}
        rows = dict.fromkeys(x for name in given.rows for x in (ROWS[name][1], name))
        new = [
            {"figure": figure, "value": value} | same
            for figure, value in figures(list(rows), given.precision)
        ]
        for row in new:
            print(f"{row['figure']:<70} {row['value']}")
        write_csv(RESULTS, with_new(read_csv(RESULTS), new))
