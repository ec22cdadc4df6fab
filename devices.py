"""Data parallelism over all devices that Keras sees, of one machine or, with JAX, of several.

Each step's batch is split among the devices, and all of them keep the same weights.
"""

import contextlib
import functools
import os

import keras


def kind():
    """The kind of device that Keras computes on: CPU, GPU or TPU."""
    if keras.backend.backend() == "torch":  # whose devices Keras does not list
        import torch

        return "GPU" if torch.cuda.is_available() else "CPU"
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


@functools.cache
def join():
    """Joins the other processes of the training, where the environment names them.

    Raises:
        ValueError: if it is wrong, or the backend is not JAX.
    """
    names = ["KERAS_DISTRIBUTION_" + x for x in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")]
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        return
    received = ", ".join(f"{name}={value}" for name, value in given.items())
    if keras.backend.backend() != "jax":
        raise ValueError(
            "KERAS_BACKEND: allowed for several processes is jax; "
            f"received {keras.backend.backend()} with {received}"
        )
    try:
        keras.distribution.initialize()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{names[0]}: allowed is the address of the first process, with {names[1]} and "
            f"{names[2]}; received {received}: {reason}"
        ) from error


def require_divisible(batch_size):
    """Raises ValueError if the devices cannot share a batch evenly."""
    if batch_size % count():
        nearest = max(1, round(batch_size / count())) * count()
        raise ValueError(
            f"batch_size: allowed with {count()} devices is a multiple of {count()}, such as "
            f"{nearest}; received {batch_size}"
        )


def parallel():
    """The context in which Keras builds and trains a model on all devices."""
    return _distribution().scope() if count() > 1 else contextlib.nullcontext()


@contextlib.contextmanager
def alone():
    """The context in which a process computes something without the others, within `parallel`."""
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def dataset(batches, *arrays):
    """What `fit` takes of a function that returns a generator of batches of these arrays.

    Keras 3.15 draws a batch to build the model for several devices of TensorFlow, and then begins
    anew: of a mere generator some batches would be lost.
    """
    if keras.backend.backend() != "tensorflow" or count() == 1:
        return batches()
    import tensorflow as tf

    signature = tuple(tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in arrays)
    drawn = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return drawn.prefetch(tf.data.AUTOTUNE)


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
