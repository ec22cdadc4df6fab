"""The model to train, and its optimizer."""

import contextlib
import difflib
import json

import keras

import gaaf
from resnet_v1 import block_and_count, resnet_v1
from resnet_v2 import resnet_v2
from training import Mistake, devices, reason, tensorflow_cpu
from training.settings import CHOICES, USUAL_SHAPES

RESNETS = {1: resnet_v1, 2: resnet_v2}
RATES = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.1}  # what learning rate "auto" is
# These names in keras.activations are no activations to train with: glu halves the channels, and
# threshold needs arguments.
NO_ACTIVATIONS = {"deserialize", "serialize", "get", "glu", "threshold"}


def require_buildable(settings):
    """Raises `Mistake` if there is no such depth or activation. No data has been read yet."""
    try:
        block_and_count(settings.depth, None, settings.version)
        activation_of(settings)
    except (ValueError, TypeError) as error:
        raise Mistake(str(error)) from error
    if keras.config.floatx() != "float32":
        raise Mistake(
            "floatx: allowed in keras.json is float32 (precision says what to compute in); "
            f"received {keras.config.floatx()}"
        )


def activation_of(settings):
    """The activation that the settings name. GAAF_ before any Keras activation gives it GAAF."""
    name = settings.activation.removeprefix("GAAF_")
    known = [x for x in dir(keras.activations) if x.islower() and not x.startswith("_")]
    known = sorted(set(known) - NO_ACTIVATIONS)
    if name not in known:
        names = {x.lower(): x for x in (*known, *(f"GAAF_{x}" for x in known))}
        nearest = difflib.get_close_matches(settings.activation.lower(), names, 3, 0)
        nearest = ", ".join(names[x] for x in nearest)
        raise Mistake(
            "activation: allowed is the name of a Keras activation, with GAAF_ before it or not, "
            f"nearest {nearest}; received {settings.activation!r}"
        )
    if name == settings.activation:
        return gaaf.get(name)
    _require_shape(settings, name)
    return gaaf.GAAF(
        name,
        shift=settings.shift,
        slope=settings.slope,
        frequency=settings.frequency,
        wave=None if settings.wave == "none" else settings.wave,
        shape=None if settings.shape == "none" else settings.shape,
        gain=settings.gain,
    )


def _require_shape(settings, phi):
    """Raises `Mistake` for a shape that GAAF does not have with this φ, in the words of a flag."""
    usual = phi in USUAL_SHAPES
    unusable = [] if phi == "relu" else ["bsilu", "nelu", "leaky"]
    shapes = [x for x in CHOICES["shape"] if x not in unusable and (usual or x != "auto")]
    if settings.shape not in shapes:
        raise Mistake(
            f"shape: allowed with activation {settings.activation} is one of {', '.join(shapes)}; "
            f"received {settings.shape!r}"
        )


def steepest(settings):
    """The largest slope of the activation that the settings name, gain included."""
    x = keras.ops.linspace(-20.0, 20.0, 4001)
    return float(keras.ops.max(gaaf.gradient(activation_of(settings), x)))


def build(settings, data):
    """Returns the model to train and to save. It takes raw images and normalises them itself.

    Args:
        settings: The settings of main.py.
        data: `training.data.Data`; its shape of images and number of classes are the model's.

    Returns:
        `keras.Model` from uint8 images to class probabilities, not compiled.
    """
    resnet, l2 = RESNETS[settings.version], settings.weight_decay
    mean = data.x_train.mean(axis=0, dtype="float64") if settings.subtract_pixel_mean else 0.0
    with dtype_policy(settings.precision):
        network = resnet(
            data.image_shape,
            settings.depth,
            data.num_classes,
            activation_of(settings),
            weight_decay=0 if settings.optimizer == "adamw" else l2,
        )
        model = keras.Sequential(
            [
                keras.Input(data.image_shape, dtype="uint8", name="raw_image"),
                keras.layers.Rescaling(1 / 255, -mean / 255, dtype="float32", name="normalization"),
                network,
            ],
            name=f"{network.name}_of_raw_images",
        )
    tensorflow_cpu.speed_up_normalization(network)
    return model


@contextlib.contextmanager
def dtype_policy(name):
    """Sets Keras' dtype policy for a while; a model of mixed_float16 scales its loss."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def optimizer(settings, model=None):
    """Returns the optimizer of the settings.

    In mixed_float16 it scales the loss. Keras would see to that too, but not in a model that it
    loads: that forgets the precision of the whole model.

    Args:
        settings: Those of main.py.
        model: With adamw, the model whose convolutions alone have weight decay.
    """
    plain = _plain_optimizer(settings, model)
    if settings.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(plain, name="loss_scale_optimizer")
    return plain


def _plain_optimizer(settings, model):
    rate = learning_rate(settings)
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    # The L2 penalty makes a step of plain SGD, at a rate of 0.1, shrink a weight by the share
    # 0.1 · 2 · weight_decay. AdamW begins with the same share, for the same weights.
    adamw = keras.optimizers.AdamW(rate, 2 * settings.weight_decay * RATES["sgd"] / rate)
    if model:  # On TensorFlow, copies on other devices can only be told by name.
        others = [v for v in model.trainable_variables if len(v.shape) != 4]
        adamw.exclude_from_weight_decay(others, ["bias", "gamma", "beta", "classifier"])
    return adamw


def require_fitting(model, data, argument, received):
    """Raises `Mistake` if a model does not take such images, or predicts other classes.

    Args:
        model: `keras.Model`.
        data: `training.data.Data`.
        argument: The argument that named the model, for the message.
        received: The model in words.
    """
    wanted = (None, *data.image_shape), (None, data.num_classes)
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not all(map(_fits, shapes, wanted)):
        raise Mistake(
            f"{argument}: allowed is a model from {wanted[0]} to {wanted[1]}, as the data has "
            f"them; received {received}, from {shapes[0]} to {shapes[1]}"
        )


def require_each_step(model):
    """Raises `Mistake` if the model takes several steps at once: a run watches each of them."""
    if model.steps_per_execution != 1:
        raise Mistake(f"steps_per_execution: allowed is 1; received {model.steps_per_execution!r}")


def require_savable(model):
    """Raises `Mistake` if Keras cannot save the compiled model, as it has to after each epoch."""
    try:
        json.dumps(keras.saving.serialize_keras_object(model))
    except Exception as error:  # whatever the `get_config` of the user's own layers raises
        raise Mistake(
            "model: allowed is one that Keras can save, with its optimizer, loss and "
            f"metrics; received {model.name}: {reason(error)}"
        ) from error


def _fits(shape, wanted):
    """Whether a shape is the wanted one, where None stands for any number."""
    is_one = isinstance(shape, tuple) and len(shape) == len(wanted)
    return is_one and all(size in (None, n) for size, n in zip(shape, wanted, strict=True))


def make_variables(model, data, batch_size):
    """Makes all variables of a compiled model, so that they can be restored before it trains.

    On one device it also computes the loss of a batch, so that an error comes before an old run is
    removed.
    """
    model.optimizer.build(model.trainable_variables)
    images, labels = data.x_train[:batch_size], data.y_train[:batch_size]
    x, y = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)
    probabilities = keras.ops.full((len(x), data.num_classes), 1 / data.num_classes)
    if model.loss is not None and devices.count() == 1:
        model.compute_loss(x, y, probabilities)
    if keras.backend.backend() == "tensorflow":
        # If the step made the variables of the metrics, TensorFlow would trace it twice.
        model.compute_metrics(x, y, probabilities)
        model.reset_metrics()


def learning_rate(settings):
    """The learning rate that the training begins with."""
    rate = settings.learning_rate
    return float(RATES[settings.optimizer] if rate == "auto" else rate)
