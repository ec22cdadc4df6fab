"""Time and memory from the start of the program to the end of the first step, and then per step.

    python benchmarks/first_step.py [depth …]

ResNet v2 with GAAF_relu, batch 8, each depth in a process of its own.
"""

import json
import subprocess
import sys
import time

DEPTHS = (20, 56, 110, 164, 1001)
BATCH, STEPS = 8, 10


def measure(depth, activation="GAAF_relu"):
    """Builds and trains, and prints as JSON what that took."""
    start = time.perf_counter()
    import itertools
    import resource
    import statistics

    from common import keras, main, model_of, random_data

    data = random_data(BATCH * STEPS)
    settings = {"version": 2, "depth": depth, "activation": activation, "batch_size": BATCH}
    model = model_of(data, **settings)
    ends = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for the device
            ends.append(time.perf_counter())

    batches = main.training_batches(main.Settings(**settings), data)
    model.fit(**batches, verbose=0, callbacks=[Clock()])
    found = {
        "seconds to the first step": ends[0] - start,
        "GB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "seconds a step": statistics.median(b - a for a, b in itertools.pairwise(ends)),
    }
    print(json.dumps(found))


def main_program():
    from common import report

    bounds = {"seconds to the first step": "90", "GB at most": "6"}
    figures = []
    for depth in map(int, sys.argv[1:] or DEPTHS):
        command = [sys.executable, __file__, "--measure", str(depth)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"first_step.py: depth {depth} failed:\n{done.stderr[-2000:]}")
        for name, value in json.loads(done.stdout.splitlines()[-1]).items():
            figure = f"ResNet-{depth} v2, {name}"
            figures.append((figure, f"{value:.3g}", bounds.get(name, "") if depth == 1001 else ""))
    report(figures, rounds=1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(int(sys.argv[2]))
    else:
        main_program()
