"""What TensorFlow computes in another way, so that it trains faster on a CPU.

Batch normalisation becomes one operation. On several devices, it takes the moments of the whole
batch.

A very deep network begins to train in one minute instead of four. Keras' step of ResNet-1001 is a
graph of some 100,000 operations; here it has a third of them. Adam becomes one operation for each
variable. The step becomes one function, where Keras nests two and compiles both.

The classes of layers, models and optimizers do not change. Only single objects get another public
`call`, `update_step` or `train_function`. A saved or exported copy is plain Keras. docs/speed.md
says what each change brings.
"""

import weakref
from types import MethodType

import keras
import numpy as np

from training import devices

# From this number of weight arrays on, optimising the graph costs more than it brings: ResNet-110
# has 660, ResNet-164 has 984.
DEEP = 800


def speed_up_normalization(network):
    """Gives the normalisations of a network a `call` that suits the devices.

    Args:
        network: `keras.Model` by `resnet_v1` or `resnet_v2`.
    """
    if keras.backend.backend() != "tensorflow":
        return
    if devices.count() > 1:
        call = _over_all_devices
    elif devices.on_one_cpu() and _normalizes_as_keras(_fused):
        call = _fused
    else:
        return
    for layer in network.layers:
        if type(layer) is keras.layers.BatchNormalization:
            layer.call = MethodType(call, layer)


def _over_all_devices(layer, inputs, training=None, mask=None):
    """`BatchNormalization.call` with moments of the whole batch, as JAX takes them.

    `synchronized=True` does the same. But it would be saved, and other backends refuse it.
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


def _normalizes_as_keras(call):
    """Whether a layer with this `call` computes what Keras' layer does, in a small example."""
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
    except Exception:  # Keras may have changed in any way
        return False
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*seen, strict=True))


def shrink_graph(model):
    """Makes the graph of a deep model's training step smaller.

    Args:
        model: `keras.Model`, compiled, whose optimizer is built.
    """
    if not devices.on_one_cpu() or model.run_eagerly:
        return
    import tensorflow as tf

    is_deep = len(model.weights) > DEEP
    # This holds for the whole process. The next network that is not deep takes it back.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": is_deep})
    if not is_deep:
        return
    model.train_function = _train_function(model)
    optimizer = model.optimizer
    plain = type(optimizer) is keras.optimizers.Adam and not optimizer.amsgrad
    # `_adam_step` finds the state of a variable by its path, which two networks in one may share.
    has_own_paths = len({x.path for x in optimizer.variables}) == len(optimizer.variables)
    if plain and has_own_paths and _steps_as_keras(_adam_step):
        optimizer.update_step = _adam_step(optimizer, model.trainable_variables)


def _train_function(model):
    """What `fit` calls for each step."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True, autograph=False)
    def train_function(iterator):
        return model.train_step(iterator.get_next())

    return train_function


def _adam_step(optimizer, variables):
    """`Adam.update_step` as one operation; Keras' formula has twelve."""
    import tensorflow as tf

    by_path = {variable.path: variable.value.handle for variable in optimizer.variables}
    state = {}
    for variable in variables:
        prefix = f"{optimizer.name}/{variable.path.replace('/', '_')}"
        momentum_and_velocity = by_path[f"{prefix}_momentum"], by_path[f"{prefix}_velocity"]
        state[variable.value.ref()] = momentum_and_velocity

    def factors(learning_rate):
        step = tf.cast(optimizer.iterations + 1, "float32")
        return {
            "beta1_power": tf.pow(optimizer.beta_1, step),
            "beta2_power": tf.pow(optimizer.beta_2, step),
            "lr": tf.cast(learning_rate, "float32"),
            "beta1": tf.constant(optimizer.beta_1),
            "beta2": tf.constant(optimizer.beta_2),
            "epsilon": tf.constant(optimizer.epsilon),
        }

    in_graph = weakref.WeakKeyDictionary()  # made once for all variables of a graph

    def update_step(optimizer, gradient, variable, learning_rate):
        graph = tf.compat.v1.get_default_graph()
        if tf.executing_eagerly() or graph not in in_graph:
            in_graph[graph] = factors(learning_rate)
        (m, v), var = state[variable.ref()], variable.handle
        tf.raw_ops.ResourceApplyAdam(var=var, m=m, v=v, grad=gradient, **in_graph[graph])

    return MethodType(update_step, optimizer)


def _steps_as_keras(step_of):
    """Whether an Adam with this step computes what Keras' does, in a small example."""
    seen = []
    try:
        for replaced in (False, True):
            optimizer = keras.optimizers.Adam(1e-2, name="adam_to_compare")
            variable = keras.Variable(np.linspace(-1, 1, 5, dtype="float32"), name="compared")
            optimizer.build([variable])
            if replaced:
                optimizer.update_step = step_of(optimizer, [variable])
            for scale in (1.0, -3.0):
                optimizer.apply([keras.ops.convert_to_tensor(scale * variable.numpy())], [variable])
            seen.append([x.numpy() for x in (variable, *optimizer.variables)])
    except Exception:  # Keras may have changed in any way
        return False
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*seen, strict=True))
