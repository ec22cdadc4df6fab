"""An epoch of ResNet-20 v1 on a GPU: Keras on JAX beside PyTorch, and the floor under both.

    KERAS_BACKEND=jax python benchmarks/gpu.py [images] [epochs]

Batch 128, images of noise, 50,000 of them unless told otherwise: `fit` as main.py calls it; PyTorch
eager, and with torch.compile; and how long the GPU needs at least, from the operations that must be
done and the bytes that must be moved, at the speed that it is measured to have at either.
"""

import statistics
import sys
import time

from common import devices, keras, main, model_of, np, random_data, report

BATCH = 128
IMAGES = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
EPOCHS = int(sys.argv[2]) if len(sys.argv) > 2 else 8
STEPS = -(-IMAGES // BATCH)
# Of ResNet-20 v1, an image: the elements of all activations, those of a convolution's output; and
# multiplications of the forward pass (He et al. 2015: 41 million).
ELEMENTS = 7 * 16384 + 6 * 8192 + 6 * 4096
MULTIPLICATIONS = 41e6


def keras_fit(data, activation, precision):
    """Returns seconds to the first step, from before the model is built, and of each epoch."""
    start = time.perf_counter()
    model = model_of(data, activation=activation, precision=precision)
    first, epochs = [], []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.begin = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            if not first:
                float(logs["loss"])  # waits for the device
                first.append(time.perf_counter() - start)

        def on_epoch_end(self, epoch, logs=None):
            epochs.append(time.perf_counter() - self.begin)

    batches = main.training_batches(main.Settings(batch_size=BATCH), data)
    model.fit(**batches, epochs=EPOCHS, verbose=0, callbacks=[Clock()])
    return first[0], epochs


def pytorch(data, compiled):
    """The same of the PyTorch script."""
    from pytorch_resnet import Trainer

    start = time.perf_counter()
    trainer = Trainer(data.x_train, data.y_train, BATCH, compiled)
    trainer.train(1)
    first, epochs = time.perf_counter() - start, []
    for _ in range(EPOCHS):
        begin = time.perf_counter()
        trainer.train(STEPS)
        epochs.append(time.perf_counter() - begin)
    return first, epochs


def floor():
    """Least seconds an epoch: of the operations, and of the bytes.

    Backward there are twice the multiplications of forward. A layer of convolution, normalisation
    and activation writes and reads its activations 5 times forward (convolution writes; statistics
    read; normalisation with activation reads, writes; next convolution reads) and 8 times backward
    (two gradients of the convolution read upstream, one writes; that of the activation with the
    normalisation reads upstream and input twice, and writes; the kernel's reads the input).
    """
    operations = 2 * 3 * MULTIPLICATIONS * IMAGES
    transferred = 13 * 4 * ELEMENTS * IMAGES
    n = 8192 if devices.kind() != "CPU" else 2048
    a = keras.ops.convert_to_tensor(np.ones((n, n), "float32"))
    multiply = timed(keras.ops.matmul, a, a)
    copy = timed(lambda x: x + 1, a)
    return operations / (2 * n**3 / multiply), transferred / (2 * 4 * n**2 / copy)


def timed(function, *arguments):
    """The median seconds of a compiled function."""
    if keras.backend.backend() == "jax":
        import jax

        function = jax.jit(function)
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        keras.ops.convert_to_numpy(function(*arguments)[0, 0])
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main_program():
    data = random_data(IMAGES)
    ways = {
        f"Keras fit, {activation}, {precision}": (keras_fit, activation, precision)
        for precision in ("float32", "mixed_bfloat16")
        for activation in ("relu", "GAAF_relu")
    }
    others = []
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed; it is left out")
    else:
        ways |= {"PyTorch eager": (pytorch, False), "torch.compile": (pytorch, True)}
        others = [f"torch {torch.__version__}"]
    figures = []
    for name, (function, *arguments) in ways.items():
        first, epochs = function(data, *arguments)
        bounded = name == "Keras fit, GAAF_relu, float32"
        figures.append((f"{name}: to the first step", f"{first:.2f} s", "5" if bounded else ""))
        epoch = f"{statistics.median(epochs[1:]):.3f} s"
        figures.append((f"{name}: an epoch of {IMAGES:,}", epoch, "1.0" if bounded else ""))
    operations, transferred = floor()
    figures.append(("floor from the operations", f"{operations:.3f} s", ""))
    figures.append(("floor from the bytes", f"{transferred:.3f} s", ""))
    report(figures, rounds=EPOCHS - 1, others=others)


if __name__ == "__main__":
    main_program()
