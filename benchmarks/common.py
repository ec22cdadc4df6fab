"""What the benchmarks share: models as `main.py` makes them, timing in turn, and their table."""

import os
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import main  # noqa: E402

main.prepare_environment()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import devices  # noqa: E402
import experiments  # noqa: E402
import runs  # noqa: E402
from data import IMAGE_SHAPE, NUM_CLASSES, Data  # noqa: E402

RESULTS = Path(__file__).parent / "results.csv"
COLUMNS = ("benchmark", "figure", "value", "bound", "rounds", "device", "versions")


def random_data(n):
    """Images of noise, n for training and as many for testing: speed does not look at them."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, *IMAGE_SHAPE), dtype="uint8")
    y = rng.integers(0, NUM_CLASSES, n, dtype="int32")
    return Data(x, y, x, y)


def model_of(data, **settings):
    """The compiled model that `main.py` trains with these settings."""
    settings = main.Settings(**settings)
    return main.build_model(settings, main.build_network(settings), data)


def in_turn(functions, rounds=9, calls=1):
    """Times functions in turn, so that a disturbance meets all of them.

    Args:
        functions: {name: function without arguments, which returns when its work is done; if it
            returns a float, then that is the time in seconds to count}.
        rounds: How often each gets its turn, after one turn that is not counted.
        calls: Calls a turn.

    Returns:
        {name: seconds a call, one value a round}.
    """
    seconds = {name: [] for name in functions}
    for r in range(-1, rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            own = [function() for _ in range(calls)]
            taken = time.perf_counter() - start
            if r >= 0:
                seconds[name].append((sum(own) if type(own[0]) is float else taken) / calls)
        print(f"\rround {r + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def ratio(seconds, name, base):
    """The median over the rounds of the time of one function divided by that of another."""
    pairs = zip(seconds[name], seconds[base], strict=True)
    return statistics.median(a / b for a, b in pairs)


def machine():
    """The device in words: the CPU with its cores, or the kind of accelerator."""
    if devices.kind() != "CPU":
        return str(_accelerator())
    cpuinfo = Path("/proc/cpuinfo")
    names = [x.split(": ")[1] for x in _lines(cpuinfo) if x.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []


def _accelerator():
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.get_device_name()
    import tensorflow as tf

    gpu = tf.config.list_physical_devices("GPU")[0]
    return tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")


def versions():
    """The versions of Python, Keras and its backend."""
    names = ("keras", keras.backend.backend())
    found = [f"{name} {sys.modules[name].__version__}" for name in names]
    return ", ".join([f"Python {platform.python_version()}", *found])


def report(figures, rounds, others=()):
    """Prints figures and puts them into results.csv, in place of those that stood there.

    Args:
        figures: [(what is measured, value as text, bound as text or "")].
        rounds: Rounds or runs behind each figure.
        others: Names and versions of what else the figures depend on.
    """
    benchmark = Path(sys.argv[0]).stem
    where = (machine(), ", ".join([versions(), *others]))
    rows = [dict(zip(COLUMNS, (benchmark, *f, rounds, *where), strict=True)) for f in figures]
    for row in rows:
        bound = f"   (bound: {row['bound']})" if row["bound"] else ""
        print(f"{row['figure']:<70} {row['value']}{bound}")
    print(f"{rounds} rounds; {where[0]}; {where[1]}")

    def key(row):
        return row["benchmark"], row["figure"], row["device"], row["versions"]

    replaced = {key(row) for row in rows}
    kept = [row for row in experiments.read_results(RESULTS) if key(row) not in replaced]
    runs.write_csv(RESULTS, COLUMNS, sorted(kept + rows, key=lambda row: row["benchmark"]))
