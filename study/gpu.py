"""Where the time of a training step goes on a GPU with JAX.

    KERAS_BACKEND=jax python -m study.gpu --data PATH

ResNet-20 v1 at batch 128. `main.train` trains it, and so do two loops in bare JAX: one calls Keras'
compiled step, the other scans over many steps in a call. The loops are the limit: what `main.train`
takes beside them is Keras' `fit`, the callbacks and the drawing of batches.

XLA records some of a step's commands in CUDA graphs, which a GPU starts faster. A flag chooses
which commands, so each choice has a process of its own. The processes compile side by side. Then
they are timed one after the other. The results go into study/results/gpu.csv.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from training import console

console.prepare_environment()

import jax  # noqa: E402
import keras  # noqa: E402

import main  # noqa: E402
from study.rows import RELU  # noqa: E402
from study.runs import ROOT  # noqa: E402
from study.speed import noise, where  # noqa: E402
from study.why import compiled  # noqa: E402
from training.files import write_csv  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "gpu.csv"
BATCH, SCANNED = 128, 17  # images of a step, steps of a scan: an epoch is 23 scans
ROUNDS, EPOCHS = 7, 3  # the first epoch compiles, and is not timed
COMMANDS = "--xla_gpu_enable_command_buffer="
# What XLA records; its default leaves out convolutions and loops.
GRAPHS = {
    "default": "",
    "convolutions": f"{COMMANDS}+CONVOLUTION",
    "convolutions, short graphs": f"{COMMANDS}+CONVOLUTION --xla_gpu_graph_min_graph_size=1",
    "convolutions, loops": f"{COMMANDS}+CONVOLUTION,+WHILE",
}
NETWORKS = {
    "relu": RELU,
    "GAAF_relu": {},
    "relu, augmentation": {**RELU, "data_augmentation": True},
    "relu, a callback": RELU,
}
PRECISIONS = "float32", "mixed_bfloat16"
READY = "ready to be timed"  # what a process prints once it has compiled


class Job(NamedTuple):
    """What one process times."""

    network: str
    graphs: str
    precision: str


JOBS = [
    *(Job("relu", graphs, precision) for graphs in GRAPHS for precision in PRECISIONS),
    *(
        Job(network, graphs, precision)
        for network in ("GAAF_relu", "relu, augmentation")
        for graphs in ("default", "convolutions")
        for precision in PRECISIONS
    ),
    Job("relu, a callback", "default", "float32"),
]


class Clock(keras.callbacks.Callback):
    """Notes when each epoch begins, when its test begins, and when that ends."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            wait_for_turn()
        self.epochs.append([time.perf_counter()])

    def on_test_begin(self, logs=None):
        self.epochs[-1].append(time.perf_counter())

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[-1].append(time.perf_counter())


class AfterEachBatch(keras.callbacks.Callback):
    """A callback as users write them: Keras hands it the loss of each step, and so waits for it."""

    def on_train_batch_end(self, batch, logs=None):
        pass


def wait_for_turn():
    """Tells the process that has started this one that all is compiled, and waits for its word."""
    print(READY, flush=True)
    sys.stdin.readline()


def times_of(job, data, calls):
    """Returns {part: milliseconds} of a job; each loop is timed for so many steps."""
    settings = main.Settings(precision=job.precision, data=data, epochs=EPOCHS)
    loops = loops_of(dataclasses.replace(settings, **NETWORKS[job.network]), calls)
    for loop in loops.values():
        loop()  # compiles
    clock = Clock()
    callbacks = [clock, AfterEachBatch()] if job.network == "relu, a callback" else [clock]
    with tempfile.TemporaryDirectory() as folder:
        changes = NETWORKS[job.network] | {"output_dir": folder}
        history = main.train(dataclasses.replace(settings, **changes), callbacks)
    times = times_of_epochs(clock.epochs[1:], history.params["steps"])
    for name, loop in loops.items():
        times[name] = 1000 * statistics.median(loop() for _ in range(ROUNDS))
    return times


def times_of_epochs(epochs, steps):
    """{part: milliseconds} of epochs; of each, when it and its test began, and when that ended."""
    trained = statistics.mean(test - begin for begin, test, _ in epochs)
    tested = statistics.mean(end - test for _, test, end in epochs)
    saved = statistics.mean(after[0] - before[2] for before, after in itertools.pairwise(epochs))
    return {
        "main.train, a step": 1000 * trained / steps,
        "main.train, test of an epoch": 1000 * tested,
        "main.train, end of an epoch": 1000 * saved,
    }


def loops_of(settings, calls):
    """{name: function that trains for so many calls, and returns the seconds of one}."""
    data = noise(SCANNED * BATCH)
    images, labels = jax.device_put(data.x_train), jax.device_put(data.y_train)
    model = compiled(settings, data)
    model.train_on_batch(data.x_train[:BATCH], data.y_train[:BATCH])  # makes all variables
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )

    def step(state, index):
        logs, state = model.train_step(state, (images[index], labels[index]))
        return state, logs["loss"]

    def looped(function, index, calls):
        function = jax.jit(function, donate_argnums=0)
        state = [[jax.numpy.copy(x.value) for x in part] for part in variables]

        def loop():
            nonlocal state
            start = time.perf_counter()
            for _ in range(calls):
                state, loss = function(tuple(state), index)
            jax.block_until_ready(loss)
            return (time.perf_counter() - start) / calls

        return loop

    index = jax.numpy.arange(SCANNED * BATCH).reshape(SCANNED, BATCH)
    scan = looped(functools.partial(jax.lax.scan, step), index, -(-calls // SCANNED))
    return {
        "the step alone": looped(step, index[0], calls),
        f"a step of a scan of {SCANNED}": lambda: scan() / SCANNED,
    }


def time_all(jobs, arguments):
    """Yields each job with its {part: milliseconds}; all compile side by side before the first."""
    processes = []
    for job in jobs:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {GRAPHS[job.graphs]}"
        environment = {**os.environ, "XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = [sys.executable, "-m", "study.gpu", *arguments, "--job", json.dumps(job)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    for process in processes:
        while READY not in (line := process.stdout.readline()) and line:
            pass
    for job, process in zip(jobs, processes, strict=True):
        printed, _ = process.communicate("\n")
        if process.returncode:
            print(f"{job} failed with exit code {process.returncode}", file=sys.stderr)
        else:
            yield job, json.loads(printed.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", help="as of main.py; default cifar10")
    parser.add_argument("--calls", type=int, default=50, help="steps of a loop; default 50")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if keras.backend.backend() != "jax":
        parser.error(f"KERAS_BACKEND: allowed is jax; received {keras.backend.backend()}")
    if given.job:
        print(json.dumps(times_of(Job(*json.loads(given.job)), given.data, given.calls)))
        sys.exit()
    rows = []
    for job, times in time_all(JOBS, ["--data", given.data, "--calls", str(given.calls)]):
        for part, milliseconds in times.items():
            row = {**job._asdict(), "part": part, "milliseconds": f"{milliseconds:.3f}"}
            print(*row.values(), sep="; ", flush=True)
            rows.append(row)
    write_csv(RESULTS, [row | where() for row in rows])
