"""Picks the fastest correct way to train on the backend and the device at hand."""

from pathlib import Path
from types import MethodType
from typing import NamedTuple

import keras

import devices

# From this number of layers on, optimising TensorFlow's graph costs more than it brings.
DEEP = 500


class Way(NamedTuple):
    """How to train: XLA for the whole step or not, images on the device, the same in words."""

    jit_compile: bool | str
    images_on_device: bool
    words: str


def way():
    """Returns the `Way` for this backend and device."""
    backend, device, shared = keras.backend.backend(), devices.kind(), devices.count() > 1
    if backend == "tensorflow" and shared:
        # What the replicas exchange in the middle of a step does not compile.
        return Way(False, False, "XLA for the activations alone; prefetch")
    if backend == "tensorflow" and device == "CPU":
        # XLA for the whole step, Keras' default, halves the speed: its convolutions.
        return Way(False, False, "XLA for the activations alone; fused operations; prefetch")
    if backend == "tensorflow":
        return Way("auto", False, "XLA; prefetch")
    on_device = device != "CPU" and not shared
    images = f"images kept on the {device}" if on_device else "images handed over by batch"
    return Way("auto", on_device, f"{'XLA' if backend == 'jax' else 'no compiler'}; {images}")


def bfloat16_wins():
    """Whether this is TensorFlow on a CPU that computes with bfloat16 (as far as Linux tells)."""
    cpuinfo = Path("/proc/cpuinfo")
    return (
        _replaces_operations()
        and cpuinfo.exists()
        and not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpuinfo.read_text().split())
    )


def _replaces_operations():
    """Whether this is TensorFlow on one CPU."""
    alone = devices.kind() == "CPU" and devices.count() == 1
    return alone and keras.backend.backend() == "tensorflow"


def accelerate(model, network):
    """Has TensorFlow train a model in fewer operations; on other backends it does nothing.

    The values stay the same, within what the functions below say. What the model is, saves and
    exports does too: these objects alone compute in another way, and a loaded copy is plain Keras.

    Args:
        model: `keras.Model`, compiled, from images to probabilities.
        network: The model or a part of it, a network by `resnet_v1` or `resnet_v2`.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    # Variables made while the step is being traced would have it traced twice.
    classes = model.output_shape[-1]
    model.compute_metrics(None, tf.zeros([1]), tf.fill([1, classes], 1 / classes))
    model.reset_metrics()
    normalizations = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    if devices.count() > 1:
        for layer in normalizations:
            layer._moments = MethodType(_moments_of_all_devices, layer)
    if not _replaces_operations():  # XLA compiles the whole step
        return
    for layer in normalizations:
        if layer.scale and layer.center:
            layer.call = MethodType(_batch_normalization, layer)
    _add_up_l2(network.trainable_variables)
    optimizer = inner_optimizer(model)
    if type(optimizer) is keras.optimizers.Adam and not optimizer.amsgrad:
        optimizer._backend_update_step = MethodType(_adam, optimizer)
    if len(network.layers) > DEEP:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    model.train_function = _train_function(model)


def inner_optimizer(model):
    """The optimizer of a model, within the one that scales the loss of mixed_float16."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _train_function(model):
    """What `fit` calls for each step, as one function; Keras nests two, and has both compiled."""
    import tensorflow as tf

    on_batch = tf.function(model.train_step, reduce_retracing=True, autograph=False)

    @tf.function(reduce_retracing=True, autograph=False)
    def on_iterator(iterator):
        return model.train_step(iterator.get_next())

    def train_function(iterator):
        if isinstance(iterator, tf.data.Iterator):
            return on_iterator(iterator)
        return on_batch(next(iterator))  # of `train_on_batch`

    return train_function


def retrace(model):
    """Has an accelerated model's functions traced anew: what its activations do has changed."""
    model.train_function = _train_function(model) if _replaces_operations() else None
    model.test_function = None
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()  # it would take the same method of the same model for the same function
    model.make_train_function()


def _moments_of_all_devices(layer, inputs, mask):
    """Mean and variance over the whole batch, as JAX takes them, not of one device's part.

    It is what `synchronized=True` does; that would be saved, and other backends refuse it.
    """
    return keras.ops.moments(inputs, layer._reduction_axes, synchronized=True)


def _batch_normalization(layer, inputs, training=None, mask=None):
    """`BatchNormalization.call` as one operation, in half precision without a cast around it.

    Its moving variance follows n/(n−1)·σ², as in Keras 2 and PyTorch, where Keras 3 takes σ²; n is
    the number of values a channel, at least 64 an image.
    """
    import tensorflow as tf

    update = bool(training and layer.trainable)
    moving_mean, moving_variance = layer.moving_mean.value, layer.moving_variance.value
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        tf.cast(layer.gamma, "float32"),
        tf.cast(layer.beta, "float32"),
        moving_mean,
        moving_variance,
        layer.epsilon,
        is_training=update,
        exponential_avg_factor=1 - layer.momentum if update else 1.0,
    )
    if update:
        moving_mean.assign(mean)
        moving_variance.assign(variance)
    return outputs


def _add_up_l2(variables):
    """Adds up the L2 penalties that Keras would add to the loss one by one."""
    import tensorflow as tf

    def penalty_of(l2, same):
        return lambda _: 2 * l2 * tf.add_n([tf.nn.l2_loss(x.value) for x in same])

    penalised = [x for x in variables if isinstance(x.regularizer, keras.regularizers.L2)]
    for l2 in {float(x.regularizer.l2) for x in penalised}:
        first, *others = same = [x for x in penalised if float(x.regularizer.l2) == l2]
        for x in others:
            x.regularizer = None
        first.regularizer = penalty_of(l2, same)


def _adam(optimizer, gradients, variables, learning_rate):
    """Adam's update as one operation a variable; Keras' formula has twelve."""
    import tensorflow as tf

    step = tf.cast(optimizer.iterations + 1, "float32")
    constants = {
        "beta1_power": tf.pow(optimizer.beta_1, step),
        "beta2_power": tf.pow(optimizer.beta_2, step),
        "lr": tf.cast(learning_rate, "float32"),
        "beta1": tf.constant(optimizer.beta_1),
        "beta2": tf.constant(optimizer.beta_2),
        "epsilon": tf.constant(optimizer.epsilon),
    }
    for gradient, variable in zip(gradients, variables, strict=True):
        index = optimizer._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
            grad=gradient,
            **constants,
        )
