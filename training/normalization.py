"""Batch normalisation as TensorFlow does it best: one operation on the CPU, all devices together.

Layers keep what they are: these objects alone compute in another way, by their public `call`; a
saved or exported copy is plain Keras. docs/speed.md says what it brings.
"""

from types import MethodType

import keras
import numpy as np

from training import devices


def speed_up(network):
    """Gives the normalisations of a network the `call` that suits the devices; else does nothing.

    Args:
        network: `keras.Model` by `resnet_v1` or `resnet_v2`.
    """
    if keras.backend.backend() != "tensorflow":
        return
    if devices.count() > 1:
        call = _over_all_devices
    elif devices.on_one_cpu() and _is_that_of_keras(_fused):
        call = _fused
    else:
        return
    for layer in network.layers:
        if type(layer) is keras.layers.BatchNormalization:
            layer.call = MethodType(call, layer)


def _over_all_devices(layer, inputs, training=None, mask=None):
    """`BatchNormalization.call` with moments of the whole batch, as JAX takes them.

    It is what `synchronized=True` does; that would be saved, and other backends refuse it.
    """
    layer.synchronized = True
    try:
        return type(layer).call(layer, inputs, training, mask)
    finally:
        layer.synchronized = False


def _fused(layer, inputs, training=None, mask=None):
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


def _is_that_of_keras(call):
    """Whether a layer with this `call` does what Keras' does, so that it may take its place."""
    x = np.linspace(-2, 3, 2 * 8 * 8 * 3, dtype="float32").reshape(2, 8, 8, 3) ** 2
    layers = [keras.layers.BatchNormalization(name="normalization") for _ in range(2)]
    seen = []
    try:
        for layer, given in zip(layers, (None, call), strict=True):
            layer.build(x.shape)
            if given:
                layer.call = MethodType(given, layer)
            outputs = [layer(x, training=True), layer(x, training=False)]
            values = [*outputs, layer.moving_mean, layer.moving_variance]
            seen.append([keras.ops.convert_to_numpy(value) for value in values])
    except Exception:  # of whatever kind, as Keras is not what it was when this was written
        return False
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*seen, strict=True))
