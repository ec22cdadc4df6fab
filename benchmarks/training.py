"""Whether `main.py` trains as fast as the bare network, and as an equivalent PyTorch script.

    pip install torch && python benchmarks/training.py

Four ways to train ResNet-20 v1 with relu, in batches of 128, an epoch of 5,120 images a turn: `fit`
as main.py calls it, without and with data augmentation; Keras' training step in a loop over batches
that lie ready; and PyTorch, float32 and channels last. PyTorch has a process of its own, which
waits while it is not its turn: beside TensorFlow in one process it is half as fast.
"""

import multiprocessing
import statistics
import time

N, BATCH, ROUNDS = 5120, 128, 9
FIT, AUGMENTED, BARE, TORCH = "fit", "fit with augmentation", "the bare step", "PyTorch"


def pytorch_worker(connection, images, labels):
    """Trains an epoch whenever it is told to, and answers with the seconds that it took."""
    import torch
    from pytorch_resnet import Trainer

    trainer = Trainer(images, labels, BATCH)
    connection.send(torch.__version__)
    while connection.recv():
        start = time.perf_counter()
        trainer.train(N // BATCH)
        connection.send(time.perf_counter() - start)


def start_pytorch(data):
    """Returns a call that has PyTorch train an epoch, and PyTorch's version."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (there, data.x_train, data.y_train)
    context.Process(target=pytorch_worker, args=arguments, daemon=True).start()
    there.close()
    version = here.recv()

    def epoch():
        here.send(True)
        return here.recv()

    return epoch, version


def bare_epoch(model, data):
    """Returns a call that trains on batches that lie on the device, without `fit`."""
    from common import fast, keras

    parts = [slice(start, start + BATCH) for start in range(0, N, BATCH)]
    batches = [
        tuple(keras.ops.convert_to_tensor(a[part]) for a in (data.x_train, data.y_train))
        for part in parts
    ]
    if keras.backend.backend() != "tensorflow":
        return lambda: [model.train_on_batch(*batch) for batch in batches]
    import tensorflow as tf

    step = tf.function(model.train_step, autograph=False, jit_compile=fast.way().jit_compile)

    def epoch():
        for batch in batches:
            logs = step(batch)
        float(logs["loss"])  # waits for the last step

    return epoch


def fit_epoch(model, data, data_augmentation):
    """Returns a call that trains an epoch by `fit`, and returns its seconds."""
    from common import keras, main

    settings = main.Settings(batch_size=BATCH, data_augmentation=data_augmentation)

    class Clock(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    def epoch():
        clock = Clock()
        model.fit(**main.training_batches(settings, data), verbose=0, callbacks=[clock])
        return clock.seconds

    return epoch


def main_program():
    from common import in_turn, model_of, random_data, ratio, report

    data = random_data(N)
    model = model_of(data, activation="relu")
    pytorch_epoch, torch_version = start_pytorch(data)
    functions = {
        FIT: fit_epoch(model, data, data_augmentation=False),
        AUGMENTED: fit_epoch(model, data, data_augmentation=True),
        BARE: bare_epoch(model, data),
        TORCH: pytorch_epoch,
    }
    seconds = in_turn(functions, ROUNDS)
    speed = {name: N / statistics.median(values) for name, values in seconds.items()}
    figures = [(name, f"{value:,.0f} images/s", "") for name, value in speed.items()]
    for base, name, bound in (
        (FIT, BARE, "≥ 0.95"),
        (AUGMENTED, FIT, "≥ 0.95"),
        (FIT, TORCH, "≥ 1"),
    ):
        faster = f"speed of {base} / {name}"
        figures.append((faster, f"{ratio(seconds, name, base):.3f}", bound))
    report(figures, ROUNDS, others=[f"torch {torch_version}"])


if __name__ == "__main__":
    main_program()
