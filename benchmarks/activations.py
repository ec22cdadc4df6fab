"""What GAAF costs beside plain activations: training step, inference, memory, operation alone.

python benchmarks/activations.py [mixed_bfloat16]
"""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from common import (
    IMAGE_SHAPE,
    devices,
    in_turn,
    keras,
    main,
    model_of,
    np,
    random_data,
    ratio,
    report,
)

BATCH, MEMORY_BATCH = 128, 1024
PRECISION = sys.argv[1] if len(sys.argv) > 1 else "float32"
# The settings of each row; and the plain activation that it is measured against.
ROWS = {
    "relu": ({"activation": "relu"}, "relu"),
    "GAAF_relu": ({"activation": "GAAF_relu"}, "relu"),
    "GAAF_relu, limit wave": ({"activation": "GAAF_relu", "wave": "none"}, "relu"),
    "elu": ({"activation": "elu"}, "relu"),
    "tanh": ({"activation": "tanh"}, "tanh"),
    "GAAF_tanh": ({"activation": "GAAF_tanh"}, "tanh"),
    "GAAF_tanh, limit wave": ({"activation": "GAAF_tanh", "wave": "none"}, "tanh"),
}
STAGES = (32 * 32 * 16, 16 * 16 * 32, 8 * 8 * 64)  # values an image, in each of the three


def copy_network():
    """ResNet-20 v1 whose activation does nothing but to read and write each element once.

    No activation that is an operation of its own can be faster; relu is part of the operation
    before it in TensorFlow's inference, and reads and writes nothing.
    """
    from gaaf import _compiled, _flat
    from resnet_v1 import resnet_v1

    return resnet_v1(IMAGE_SHAPE, 20, activation=_flat(_compiled(lambda x: x * 0.99)))


def steps():
    """Training step and inference of ResNet-20 v1, each row beside its plain activation."""
    data = random_data(BATCH)
    x, y = (keras.ops.convert_to_tensor(a) for a in (data.x_train, data.y_train))
    models = {k: model_of(data, precision=PRECISION, **ROWS[k][0]) for k in ROWS}
    training = in_turn({k: lambda m=m: m.train_on_batch(x, y) for k, m in models.items()}, calls=4)
    copy = "reading and writing alone"
    models[copy] = main.build_model(main.Settings(precision=PRECISION), copy_network(), data)
    inference = in_turn({k: lambda m=m: m.predict_on_batch(x) for k, m in models.items()}, calls=8)
    on_gpu = devices.kind() != "CPU"
    for what, seconds in (("training step", training), ("inference", inference)):
        for name in seconds:
            base = ROWS[name][1] if name in ROWS else "relu"
            if name == base:
                images = BATCH / statistics.median(seconds[name])
                yield f"{what}, {name}", f"{images:,.0f} images/s", ""
                continue
            bound = ""
            if name.startswith("GAAF") and PRECISION == "float32":
                bound = "1.03" if on_gpu else "1.10" if "limit" in name else "1.15"
                bound = bound if what == "training step" else "1.05"
            yield f"{what}, {name} / {base}", f"{ratio(seconds, name, base):.3f}", bound


def operations():
    """One operation forward, and with the gradient backward, at the sizes of the three stages."""
    from gaaf import GAAF

    functions = {
        "relu": keras.activations.relu,
        "elu": keras.activations.elu,
        "gelu": keras.activations.gelu,
        "mish": keras.activations.mish,
        "GAAF relu": GAAF("relu"),
        "GAAF relu, limit wave": GAAF("relu", wave=None),
        "tanh": keras.activations.tanh,
        "GAAF tanh": GAAF("tanh"),
        "GAAF tanh, limit wave": GAAF("tanh", wave=None),
    }
    rng = np.random.default_rng(0)
    by_stage = []
    for size in STAGES:
        x, upstream = (
            keras.ops.cast(rng.normal(size=(BATCH, size)), PRECISION.removeprefix("mixed_"))
            for _ in range(2)
        )
        calls = {k: forward_and_backward(f, x, upstream) for k, f in functions.items()}
        by_stage.append(in_turn(calls, calls=4))
    for name in functions:
        if name == "relu":
            nanoseconds = (
                statistics.median(seconds[name]) * 1e9 / (BATCH * size)
                for size, seconds in zip(STAGES, by_stage, strict=True)
            )
            yield f"{name} alone", ", ".join(f"{x:.2f}" for x in nanoseconds) + " ns", ""
        else:
            ratios = (f"{ratio(seconds, name, 'relu'):.2f}" for seconds in by_stage)
            yield f"{name} alone / relu", ", ".join(ratios), ""


def forward_and_backward(function, x, upstream):
    """Returns a call that computes the function and its gradient, compiled as a step would be."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def both(x, upstream):
            y, backward = jax.vjp(function, x)
            return y, backward(upstream)

        both = jax.jit(both)
        return lambda: jax.block_until_ready(both(x, upstream))
    if backend == "torch":
        import torch

        def both():
            at = x.detach().requires_grad_(True)
            torch.autograd.backward(function(at), upstream)
            return float(at.grad[0, 0])

        return both
    import tensorflow as tf

    @tf.function(autograph=False)
    def both(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, tape.gradient(y, x, upstream)

    return lambda: both(x, upstream)[1][0, 0].numpy()


def memory():
    """Peak memory that training steps add, each activation in a process of its own."""
    peaks = {}
    for name in ("relu", "elu", "mish", "GAAF_relu", "GAAF_relu, limit wave"):
        command = [sys.executable, __file__, PRECISION, "--memory-of", name]
        # On a GPU, JAX would take three quarters of the memory, which this process has.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        peaks[name] = int(done.stdout.split()[-1])
    figure = f"memory of a training step at batch {MEMORY_BATCH}"
    yield f"{figure}, relu", f"{peaks['relu'] / 1e6:,.0f} MB", ""
    for name in list(peaks)[1:]:
        yield f"{figure}, {name} / relu", f"{peaks[name] / peaks['relu']:.2f}", ""


def memory_of(name):
    """Prints how far training steps raise this process' memory above what it holds, in bytes."""
    data = random_data(MEMORY_BATCH)
    settings = ROWS[name][0] if name in ROWS else {"activation": name}
    network = model_of(data, precision=PRECISION, **settings)
    network.train_on_batch(data.x_train[:8], data.y_train[:8])  # what compiling takes is not meant
    before = in_use()
    for _ in range(2):
        network.train_on_batch(data.x_train, data.y_train)
    print(peak() - before)


def in_use():
    """Memory in use: of the GPU where JAX has one, else the resident memory of this process."""
    if stats := gpu_memory():
        return stats["bytes_in_use"]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak():
    """The most that `in_use` has been so far."""
    if stats := gpu_memory():
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_memory():
    if devices.kind() == "CPU" or keras.backend.backend() != "jax":
        return None
    import jax

    return jax.devices()[0].memory_stats()


if __name__ == "__main__":
    if "--memory-of" in sys.argv:
        memory_of(sys.argv[-1])
    else:
        for figures, rounds in (([*steps(), *operations()], 9), (list(memory()), 1)):
            report([(f"{figure}, {PRECISION}", *rest) for figure, *rest in figures], rounds)
