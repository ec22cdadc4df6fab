"""Run by test_training_devices.py: trains with so many virtual devices of the CPU.

    python losses.py DEVICES FLAGS…

Prints the loss of each of the first steps, and what the run has to say.
"""

import os
import sys

DEVICES = int(sys.argv[1])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
# TensorFlow may give a device an empty part of the last test batch. With oneDNN, which only CPUs
# use, the convolution of an empty batch has a wrong shape.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import keras  # noqa: E402

import main  # noqa: E402
from training import Mistake, console  # noqa: E402
from training.settings import parse  # noqa: E402

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    virtual = [tf.config.LogicalDeviceConfiguration()] * DEVICES
    tf.config.set_logical_device_configuration(cpu, virtual)


class Losses(keras.callbacks.Callback):
    """Prints the loss after each step, the mean since the epoch began."""

    def on_train_batch_end(self, batch, logs=None):
        print(f"\nLOSS {logs['loss']:.9g}", flush=True)

    def on_test_end(self, logs=None):
        print(f"\nTEST {logs['loss']:.9g} {logs['accuracy']:.9g}", flush=True)


settings, _ = parse(main.Settings, main.__doc__, sys.argv[2:])
try:
    main.train(settings, callbacks=[Losses()])
except Mistake as mistake:
    console.stop(*console.ending_of(mistake, settings))
