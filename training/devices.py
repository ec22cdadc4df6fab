"""Which devices there are, who gets which images, and the fastest way to train there.

Data parallelism over all devices that Keras sees, of one machine or, with JAX, of several: each
step's batch is split among the devices, and all of them keep the same weights.
"""

import contextlib
import functools
import operator
import os
import shutil
from pathlib import Path

import keras

from training import Mistake, reason
from training.data import batches, images_of_an_epoch, part_of

TESTED = 1024  # images tested at once on a GPU, which 128 do not keep busy
WITH_CUDA = {
    "tensorflow": "pip install 'tensorflow[and-cuda]' -r requirements.txt",
    "jax": "pip install 'jax[cuda13]' -r requirements.txt",
    "torch": "pip install torch -r requirements.txt",
}


def kind():
    """The kind of device that Keras computes on: CPU, GPU or TPU; with PyTorch MPS or XPU too."""
    if keras.backend.backend() == "torch":  # whose devices Keras does not list
        return keras.ops.zeros(()).device.type.upper().replace("CUDA", "GPU")
    return keras.distribution.list_devices()[0].split(":")[0].upper()


def count():
    """The number of devices that share a batch; 1 on PyTorch."""
    return 1 if keras.backend.backend() == "torch" else len(keras.distribution.list_devices())


def process():
    """The number of this process, from 0, and of all that train together."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def unused_gpu():
    """The line that has Keras use the NVIDIA card of this machine, or None if it does, or none."""
    there = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # on purpose
    if kind() != "CPU" or hidden or not there:
        return None
    return WITH_CUDA[keras.backend.backend()]


@functools.cache
def join():
    """Joins the other processes of the training, where the environment names them.

    Raises:
        Mistake: if it is wrong, or the backend is not JAX.
    """
    names = ["KERAS_DISTRIBUTION_" + x for x in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")]
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        return
    received = ", ".join(f"{name}={value}" for name, value in given.items())
    if keras.backend.backend() != "jax":
        raise Mistake(
            "KERAS_BACKEND: allowed for several processes is jax; "
            f"received {keras.backend.backend()} with {received}"
        )
    try:
        keras.distribution.initialize()
    except (ValueError, RuntimeError) as error:
        raise Mistake(
            f"{names[0]}: allowed is the address of the first process, with {names[1]} and "
            f"{names[2]}; received {received}: {reason(error)}"
        ) from error


def require_shareable(settings, data):
    """Raises `Mistake` if devices and processes cannot share the batches and the test images."""
    n, several = count(), process()[1] > 1
    if settings.batch_size % n:
        nearest = max(1, round(settings.batch_size / n)) * n
        raise Mistake(
            f"batch_size: allowed with {n} devices is a multiple of {n}, such as {nearest}; "
            f"received {settings.batch_size}"
        )
    if len(data.x_train) < settings.batch_size:
        raise Mistake(
            f"data: allowed is at least one batch of {settings.batch_size} training images; "
            f"received {len(data.x_train)}"
        )
    if several and settings.gradient_histograms:
        raise Mistake("gradient_histograms: allowed for several processes is False; received True")
    if several and len(data.x_test) % n:
        raise Mistake(
            f"data: allowed for several processes is a number of test images that {n} devices can "
            f"share evenly; received {len(data.x_test)}"
        )


def parallel():
    """The context in which Keras builds and trains a model on all devices."""
    return _distribution().scope() if count() > 1 else contextlib.nullcontext()


@contextlib.contextmanager
def without_distribution():
    """The context in which a process computes something without the others, within `parallel`."""
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


@functools.cache
def _distribution():
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.MirroredStrategy(keras.distribution.list_devices())

    class DataParallel(keras.distribution.DataParallel):
        """Gives all of a batch to each device where they cannot share it: while testing."""

        def get_data_layout(self, data_shape):
            if data_shape[0] * process()[1] % count():
                return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)
            return super().get_data_layout(data_shape)

    return DataParallel(auto_shard_dataset=False)  # each process hands over its part


def feed(settings, data, first_epoch=0):
    """The arguments of `fit` that say what to train on from an epoch on, and what to test on.

    Args:
        settings: Those of main.py.
        data: `training.data.Data`.
        first_epoch: The epoch to begin with, counted from 0. Default 0.
    """
    images, n = data.x_train, count()
    if _keeps_images():
        images = _OnDevice(images)
    elif _draws_in_tensorflow():
        images = _IndexAlone(images)
    drawn = functools.partial(
        batches,
        images,
        data.y_train,
        settings.batch_size,
        settings.data_augmentation,
        settings.seed,
        first_epoch,
        n,
        process(),
    )
    steps = -(-images_of_an_epoch(len(images), settings.batch_size, n) // settings.batch_size)
    part = part_of(len(data.x_test), process())
    # A batch that the devices cannot share is given to all of them; so must all others be then.
    uneven = len(data.x_test) % n > 0
    tested_at_once = settings.batch_size if kind() == "CPU" else max(TESTED, settings.batch_size)
    return {
        "x": _dataset(drawn, data),
        "steps_per_epoch": steps,
        "shuffle": False,  # that is done
        "initial_epoch": first_epoch,
        "validation_data": (data.x_test[part], data.y_test[part]),
        "validation_batch_size": tested_at_once // process()[1] - uneven,
    }


class _OnDevice:
    """Images that lie on the device; on JAX, indexing them is one launch instead of a dozen."""

    def __init__(self, images):
        self.images, self.shape = keras.ops.convert_to_tensor(images), images.shape
        self.take = operator.getitem
        if keras.backend.backend() == "jax":
            import jax

            self.take = jax.jit(self.take)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.take(self.images, index)


def _keeps_images():
    """Whether all training images lie on the device."""
    return kind() != "CPU" and count() == 1 and keras.backend.backend() != "tensorflow"


class _IndexAlone:
    """Images in whose place a batch has its index: TensorFlow draws them, in threads of its own."""

    def __init__(self, images):
        self.shape = images.shape

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return tuple(
            x.reshape(len(x), -1) for x in index
        )  # numbers; with augmentation rows, columns


def _draws_in_tensorflow():
    """Whether TensorFlow, and not NumPy, draws the images of a batch: for a GPU, which waits."""
    return keras.backend.backend() == "tensorflow" and kind() != "CPU"


def _dataset(batches, data):
    """What `fit` takes of a function that returns a generator of batches.

    Keras 3.15 draws a batch to build the model for several devices of TensorFlow, and then begins
    anew: of a mere generator some batches would be lost.
    """
    if keras.backend.backend() != "tensorflow" or (count() == 1 and not _draws_in_tensorflow()):
        return batches()
    import tensorflow as tf

    def drawn_at(index, labels):
        numbers, *places = index
        images = tf.gather(data.x_train, numbers[:, 0])
        for axis, place in enumerate(places, 1):  # rows, then columns
            images = tf.gather(images, place, axis=axis, batch_dims=1)
        return images, labels

    x, y = (tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in (data.x_train, data.y_train))
    if not _draws_in_tensorflow():
        drawn = tf.data.Dataset.from_generator(batches, output_signature=(x, y))
        return drawn.prefetch(tf.data.AUTOTUNE)
    parts = len(next(batches())[0])
    index = (tf.TensorSpec((None, None), "int64"),) * parts
    drawn = tf.data.Dataset.from_generator(batches, output_signature=(index, y))
    return drawn.map(drawn_at, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def jit_compile():
    """Whether XLA is to compile the whole training step.

    On TensorFlow's CPU its convolutions halve the speed; and what replicas exchange in the middle
    of a step does not compile. The activations compile by themselves.
    """
    plain = keras.backend.backend() == "tensorflow" and (kind() == "CPU" or count() > 1)
    return False if plain else "auto"


def compiler_in_words():
    """How the training runs here."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        fused = "; fused normalisation" if on_one_cpu() else ""
        return "XLA" if jit_compile() else f"XLA for the activations alone{fused}"
    images = f"images kept on the {kind()}" if _keeps_images() else "images handed over by batch"
    return f"{'XLA' if backend == 'jax' else 'no compiler'}; {images}"


def bfloat16_wins():
    """Whether this is TensorFlow on a CPU that computes with bfloat16 (as far as Linux tells)."""
    cpuinfo = Path("/proc/cpuinfo")
    return (
        on_one_cpu()
        and cpuinfo.exists()
        and not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpuinfo.read_text().split())
    )


def on_one_cpu():
    """Whether this is TensorFlow on one CPU."""
    return keras.backend.backend() == "tensorflow" and kind() == "CPU" and count() == 1
