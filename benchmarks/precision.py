"""What mixed precision gains in speed, and whether it trains to the same accuracy.

python benchmarks/precision.py                     # speed, at depth 20, or 110 on a GPU
python benchmarks/precision.py DATA EPOCHS SEEDS   # accuracy, ResNet-20 v1, trained by main.py
"""

import statistics
import sys
import tempfile
from pathlib import Path

from common import devices, in_turn, keras, main, model_of, random_data, ratio, report

ROUNDS, BATCH = 9, 128
PRECISIONS = ("float32", "mixed_bfloat16")


def speed():
    on_gpu = devices.kind() != "CPU"
    depth = 110 if on_gpu else 20
    data = random_data(BATCH)
    x, y = (keras.ops.convert_to_tensor(a) for a in (data.x_train, data.y_train))
    for activation in ("relu", "GAAF_relu"):
        models = {
            precision: model_of(data, depth=depth, activation=activation, precision=precision)
            for precision in PRECISIONS
        }
        steps = {k: lambda m=m: m.train_on_batch(x, y) for k, m in models.items()}
        seconds = in_turn(steps, ROUNDS, calls=4)
        for precision, values in seconds.items():
            images = f"{BATCH / statistics.median(values):,.0f} images/s"
            yield f"ResNet-{depth} v1, {activation}, {precision}", images, ""
        gain = f"{ratio(seconds, 'float32', 'mixed_bfloat16'):.2f}"
        figure = f"ResNet-{depth} v1, {activation}, speed of mixed_bfloat16 / float32"
        yield figure, gain, "≥ 1.3" if on_gpu else ""


def accuracy(data, epochs, seeds):
    """Both precisions with the same seeds: the mean difference and its standard error."""
    last = {precision: [] for precision in PRECISIONS}
    for seed in range(seeds):
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as directory:
                settings = main.Settings(
                    data=data,
                    epochs=epochs,
                    seed=seed,
                    precision=precision,
                    output_dir=str(Path(directory) / "run"),
                )
                last[precision].append(main.train(settings).history["val_accuracy"][-1])
    named = f"GAAF_relu, {Path(data).stem}, {epochs} epochs"
    for precision, values in last.items():
        values = ", ".join(f"{value:.4f}" for value in values)
        yield f"test accuracy of {precision}, {named}", values, ""
    differences = [b - a for a, b in zip(*last.values(), strict=True)]
    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    difference = f"{mean:+.4f} ± {spread / seeds**0.5:.4f} (standard error)"
    yield f"test accuracy of mixed_bfloat16 - float32, {named}", difference, ""


if __name__ == "__main__":
    if len(sys.argv) == 1:
        report(list(speed()), ROUNDS)
    else:
        data, epochs, seeds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        report(list(accuracy(data, epochs, seeds)), rounds=seeds)
