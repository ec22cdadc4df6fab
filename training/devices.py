"""Which devices there are, and the fastest way to train on them.

Data parallelism over all devices that Keras sees, of one machine or, with JAX, of several: each
step's batch is split among the devices, and all of them keep the same weights.
"""

import contextlib
import functools
import os
import platform
import re
import shutil
from pathlib import Path

import keras

from training import Mistake, reason

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


def name():
    """The device with the name that its maker gave it, such as "CPU: AMD EPYC".

    Another one rounds in other ways, and so a run ends with other numbers there.
    """
    backend, where = keras.backend.backend(), kind()
    if where == "CPU":
        return f"CPU: {_name_of_cpu()}"
    if backend == "jax":
        import jax

        return f"{where}: {jax.devices()[0].device_kind}"
    if where != "GPU":
        return where
    if backend == "torch":
        import torch

        return f"GPU: {torch.cuda.get_device_name()}"
    import tensorflow as tf

    card = tf.config.list_physical_devices("GPU")[0]
    return f"GPU: {tf.config.experimental.get_device_details(card).get('device_name', 'unknown')}"


def _name_of_cpu():
    """The model of the CPU; where the system does not tell, its architecture."""
    found = re.search(r"^model name\s*: (.+)", _cpuinfo(), re.M)
    return found[1] if found else platform.processor() or platform.machine()


def _cpuinfo():
    """What Linux says of the CPU; nothing on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def count():
    """The number of devices that share a batch; 1 on PyTorch."""
    return 1 if keras.backend.backend() == "torch" else len(keras.distribution.list_devices())


def process():
    """The number of this process, counted from 0, and how many train together."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def unused_gpu():
    """The command by which Keras would use the NVIDIA card here; None if it does, or has none."""
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
    if len(data.x_test) < n:
        raise Mistake(
            f"data: allowed with {n} devices is at least {n} images to test on; "
            f"received {len(data.x_test)}"
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
    """The context, within `parallel`, in which a process computes without the others."""
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


def keeps_images():
    """Whether all training images lie on the device."""
    return kind() != "CPU" and count() == 1 and keras.backend.backend() != "tensorflow"


def jit_compile():
    """Whether XLA is to compile the whole training step.

    Not on TensorFlow's CPU, where XLA's convolutions halve the speed. Not on several devices, whose
    exchange in the middle of a step does not compile. The activations compile by themselves.
    """
    plain = keras.backend.backend() == "tensorflow" and (kind() == "CPU" or count() > 1)
    return False if plain else "auto"


def compiler_in_words():
    """How the training step is compiled here, and where the images are, in words."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return "XLA" if jit_compile() else "XLA for the activations alone"
    images = f"images kept on the {kind()}" if keeps_images() else "images handed over by batch"
    return f"{'XLA' if backend == 'jax' else 'no compiler'}; {images}"


def bfloat16_wins():
    """Whether this is TensorFlow on a CPU that has bfloat16 instructions. Only Linux tells."""
    return on_one_cpu() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo().split())


def on_one_cpu():
    """Whether this is TensorFlow on one CPU."""
    return keras.backend.backend() == "tensorflow" and kind() == "CPU" and count() == 1
