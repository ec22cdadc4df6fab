"""Gradient-accelerated activation functions (GAAF) for Keras 3, on any of its backends.

An activation φ gets a sawtooth g that is almost zero but rises with slope 1, so that gradient
also flows where φ saturates; a shape s says where (Hahn & Choi, arXiv 1806.09783):

    φ_new(x) = φ(x) + g(x)·s(x)      with  |g| ≤ 0.5 / frequency
    φ_new′(x) = φ′(x) + s(x)

    keras.layers.Dense(64, activation=gaaf.GAAF("relu", shift=0.5, slope=5))

`to_gaaf` puts GAAF in the place of a model's relu and tanh, and `to_plain` takes it out again.
"""

import functools
import importlib
import inspect
import math
import numbers
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
from keras import ops
from keras.activations import relu, relu6, tanh

Tensor = Any  # a tensor of the backend, an array, or a symbolic Keras tensor
Activation = str | dict | Callable[[Tensor], Tensor]  # what `get` takes

_BACKEND = keras.backend.backend()
_library = importlib.import_module(_BACKEND)  # tensorflow, jax or torch, which Keras has imported
# What shape "auto" stands for. These are also the activations that `to_gaaf` replaces.
_SHAPE_OF = {relu: "sigmoid", relu6: "sigmoid", tanh: "gaussian"}
# φ′ of each φ that GAAF computes in one go with g and s. To any other φ it adds that of φ = 0.
_PHI_SLOPE = {
    relu: lambda x: ops.cast(x > 0, x.dtype),
    relu6: lambda x: ops.cast((x > 0) & (x < 6), x.dtype),
    tanh: lambda x: 1 - ops.square(ops.tanh(x)),
    ops.zeros_like: ops.zeros_like,
}


def _bsilu(x, *_):
    x = ops.clip(x, -1e4, 1e4)  # ∞·0 would be NaN
    return ops.sigmoid(x) * (1 + (x + 1.67) * ops.sigmoid(-x)) - _PHI_SLOPE[relu](x)


def _nelu(x, *_):
    x = ops.clip(x, -1e4, 0)
    return 0.4 * x / ops.square(1 + ops.square(x))


_SHAPES = {
    "sigmoid": lambda x, shift, slope: ops.sigmoid(slope * (x + shift)),
    "gaussian": lambda x, *_: ops.exp(-ops.square(x) / 3),
    # Not ones_like: a derivative of 0 is to be there, where one differentiates twice.
    None: lambda x, *_: ops.sign(1 + ops.abs(x)),
    # These three are for relu alone.
    "bsilu": _bsilu,
    "nelu": _nelu,
    "leaky": lambda x, *_: 0.1 * (1 - ops.sign(ops.relu(x))),
}


def _require(name, ok, allowed, received):
    if not ok:
        raise ValueError(f"{name}: allowed is {allowed}; received {received!r}")


def _number(name, value, allowed="a finite number", smallest=-math.inf):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # Larger or smaller ones than float32 holds would turn into inf or 0 in the computation.
    _require(name, real and smallest <= value and abs(value) < 3.4e38, allowed, value)
    return float(value)


def _times(factor, x):
    return x if factor == 1 else factor * x  # where nothing is compiled, that saves a pass


def _wide(x):
    """In half precision K·x overflows or has no fraction left: that is computed in float32."""
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")


def _accelerated(phi, shift, slope, frequency, wave, shape, strength, gain):
    """Returns the function φ + g·strength·s, with gradient gain·(φ′ + g′·strength·s).

    φ is a key of `_PHI_SLOPE`. Left to itself, differentiation would add g·s′, noise of size 0.5/K.
    """
    bound = 3e38 / max(frequency, 1)  # keeps K·x finite: inf − inf would be NaN

    def s(x):
        return _times(strength, shape(x) if callable(shape) else _SHAPES[shape](x, shift, slope))

    # Not ops.floor: Keras 3.15 computes it in float32 even for float64, on JAX and PyTorch.
    def value(x, floor=lambda periods: periods // 1):
        wide = _wide(x)
        at = ops.clip(wide, -bound, bound)
        periods = frequency * at
        sawtooth = wave == "floor"
        height = periods - floor(periods) if sawtooth else ops.abs(periods - ops.round(periods))
        # XLA fuses K·x into the subtraction, unrounded: for large x that leaves the wave's range.
        g = (ops.clip(height, 0, 1 if sawtooth else 0.5) - 0.5) / frequency
        return ops.cast(phi(wide) + g * s(at), x.dtype)

    def gradient(x, upstream):
        wide = _wide(x)
        added = s(wide)
        if wave == "round":
            periods = frequency * ops.clip(wide, -bound, bound)
            added = added * ops.sign(periods - ops.round(periods))
        return ops.cast(_wide(upstream) * _times(gain, _PHI_SLOPE[phi](wide) + added), x.dtype)

    exported = functools.partial(value, floor=ops.floor)
    if wave is None:  # Keras' tanh of float64 is of float32 on JAX
        value = exported = lambda x: ops.cast(phi(x), x.dtype)
    as_it_is = _differentiable(value, gradient)
    one_pass = _differentiable(value if wave is None else _compiled(value), _compiled(gradient))

    def accelerated(x):
        if _is_being_exported():
            return exported(x)
        # What is in a shape of the user's own may not compile.
        return as_it_is(x) if callable(shape) or not _is_worth_compiling(x) else _flat(one_pass, x)

    return accelerated


# Layers, and loaded ones too, share what was compiled for one set of parameters.
_shared_accelerated = functools.cache(_accelerated)


def _differentiable(value, gradient):
    """The function value(x), whose derivative is gradient(x, upstream) and keeps x alone.

    As that is made of differentiable operations, second derivatives exist.
    """
    if _BACKEND == "jax":  # where Keras' custom gradients know no forward mode
        function = _library.custom_jvp(lambda x: value(x))
        gradient = _library.checkpoint(gradient, prevent_cse=False)
        function.defjvp(lambda x, tangent: (function(*x), gradient(*x, *tangent)))
        return function

    @ops.custom_gradient
    def function(x):
        def backward(*args, upstream=None):
            # TensorFlow passes upstream alone; PyTorch by name, after the x that is to be derived.
            return gradient(x, *args) if upstream is None else gradient(*args, upstream)

        return value(x), backward

    return function


def _is_worth_compiling(x):
    """Whether TensorFlow traces a function in which all of x's shape but the batch is known.

    XLA compiles anew for each length, which takes much longer than the operations do.
    """
    if _BACKEND != "tensorflow" or _library.executing_eagerly() or platform.system() == "Darwin":
        return False  # macOS: TensorFlow has no XLA for the GPU there
    return x.shape.rank is not None and x.shape.rank > 1 and x.shape[1:].is_fully_defined()


def _compiled(function):
    """The function as one pass over memory on TensorFlow, instead of one for each operation."""
    if _BACKEND != "tensorflow":
        return function
    return _library.function(function, jit_compile=True, autograph=False, reduce_retracing=True)


def _flat(function, x):
    """The elementwise function of a tensor of TensorFlow, computed of a vector.

    XLA vectorises the loop over the last axis, which may be a short one. And where a ReLU follows
    an addition directly, TensorFlow 2.21 fails to optimise the graph.
    """
    y = _library.reshape(function(_library.reshape(x, [-1])), _library.shape(x))
    y.set_shape(x.shape)
    return y


def _is_being_exported():
    """Whether this is called by `Model.export`, of which Keras tells nobody.

    ONNX knows neither functions compiled by XLA nor gradients; an exported model needs none.
    """
    frame = inspect.currentframe()
    while frame and not str(frame.f_globals.get("__name__")).startswith("keras.src.export."):
        frame = frame.f_back
    return frame is not None


def _largest_slope(function):
    """The largest |function′(x)| of all x, found on a grid, and closer to it on two finer ones."""
    unit = 1 / (abs(function.slope) or 1)
    # Around 0, where φ has its features; around the sigmoid's centre; and far out.
    ticks = ops.linspace(-20.0, 20.0, 8000)
    powers = 10 ** ops.linspace(-6, 5, 500) * (1 + abs(function.shift) + unit)
    x = ops.concatenate([ticks, unit * ticks - function.shift, powers, -powers])
    largest = 0
    for _ in range(3):
        x = ops.sort(x)
        slopes = ops.nan_to_num(ops.abs(gradient(function, x)), posinf=math.inf)
        best = int(ops.argmax(slopes))
        largest = max(largest, float(slopes[best]))
        x = ops.linspace(x[max(best - 1, 0)], x[min(best + 1, len(x) - 1)], 1000)
    return largest


@functools.lru_cache(256)
def _gain_at_peak(activation, shift, slope, wave, shape, strength):
    signs = (strength, -strength) if wave == "round" else (strength,)
    functions = [GAAF(activation, shift, slope, 1, None, shape, sign) for sign in signs]
    # A thread of its own is free of what is being traced, and of any scope that is open here.
    with ThreadPoolExecutor(1) as thread:
        peak = max(thread.map(_largest_slope, functions))
    allowed = "a positive finite number, or 'peak' where φ′ + s has a bound and is not 0 everywhere"
    _require("gain", 1e-4 < peak < 1e4, allowed, "peak")
    return 1 / peak


def _of_keras(function):
    """Keras' relu, relu6 or tanh, for the same one of `keras.ops` or the backend; else itself."""
    nn, numpy, lax = (getattr(_library, name, None) for name in ("nn", "numpy", "lax"))
    places = ops, _library, nn, numpy, lax, getattr(nn, "functional", None)
    for phi in _SHAPE_OF:
        if any(getattr(place, phi.__name__, None) is function for place in places):
            return phi
    return function


def _is_stateless(layer):
    try:
        layer(keras.KerasTensor((1, 1)))  # creates the weights
    except Exception:  # it has weights, or is for tensors of some shapes only
        return False
    return not layer.weights


@keras.saving.register_keras_serializable("gaaf")
class GAAF(keras.Operation):
    """Gradient-accelerated version of an activation function, φ_new(x) = φ(x) + g(x)·s(x).

    The gradient is gain·(φ′(x) + s(x)); for wave "round" gain·(φ′(x) ± s(x)), with the sign of
    Kx − round(Kx). Values differ from φ(x) by 0.5/frequency at most, where |s| ≤ 1. The object
    goes wherever Keras takes `activation=`, and is saved and loaded with the model.

    Each activation multiplies the gradient on its way back by up to 2; in mean square, for x of a
    standard normal distribution, E(φ′ + s)²/Eφ′² is 1.47² for the default of relu, 2.05² for the
    paper's (slope 5, shift 0.5) and 2.18² for that of tanh. In deep networks it leaves float32's
    range and SGD diverges; Adam forgets the weight decay. A gain below 1 makes up for that. With
    any other than 1 the gradient is not the derivative of the value.

    Args:
        activation: φ: the name of any Keras activation, or a callable; no layer with weights.
        shift: Where s = 0.5 lies: the sigmoid's centre is at x = −shift, in units of x. Finite
            float; default −1.0, with slope 1 the best that the 2018 experiments found.
        slope: Steepness of the sigmoid, in 1/x. Finite float, default 1.0.
        frequency: K, sawtooth periods per unit of x. Positive finite float, default 10,000.
        wave: "floor" (default): g = (Kx − ⌊Kx⌋ − 0.5)/K. "round": g = (|Kx − round(Kx)| − 0.5)/K,
            whose slope alternates. None: the limit K → ∞, values exactly φ(x), gradient φ′ + s.
        shape: s. "sigmoid": sigmoid(slope·(x + shift)). "gaussian": exp(−x²/3). None: 1
            everywhere. A callable: s(x) of a float32 or float64 tensor. Default "auto": "sigmoid"
            for φ = relu, relu6 and a `keras.layers.ReLU`, "gaussian" for tanh; any other φ needs
            another. For φ = relu alone, and meant with wave None: s = r′ − φ′, which replaces its
            gradient by r′. "bsilu": r = (x + 1.67)·sigmoid(x) − 1.67/2. "nelu": r′ = 1 for x > 0,
            else 0.4x/(1 + x²)². "leaky": r′ = 1 for x > 0, else 0.1.
        strength: Factor of s. Finite float, default 1.0; 0 leaves φ.
        gain: Factor of the gradient. Positive finite float, default 1.0, the paper's; or "peak":
            1/max|φ′ + s|, with which no slope is above 1: 0.5 for the defaults of relu and tanh.
        name: Name of the operation in a functional model.

    Call arguments:
        x: Tensor of any shape and float dtype, or a symbolic Keras tensor. For float16 and
            bfloat16 all is computed in float32 and rounded once.

    Returns:
        Tensor of the shape and dtype of x.

    Raises:
        ValueError: if a parameter is not one of the above.
        TypeError: if x is not of a float dtype.

    Reference:
        [Gradient Acceleration in Activation Functions](https://arxiv.org/abs/1806.09783), Hahn &
        Choi, 2018; "bsilu" and "nelu": [SUGAR](https://arxiv.org/abs/2505.22074), 2025; "leaky":
        [ProxyGrad](https://arxiv.org/abs/2410.16958), 2024.
    """

    def __init__(
        self,
        activation: Activation,
        shift: float = -1.0,
        slope: float = 1.0,
        frequency: float = 10_000,
        wave: str | None = "floor",
        shape: str | dict | Callable | None = "auto",
        strength: float = 1.0,
        gain: float | str = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.activation = phi = _of_keras(get(activation))
        if isinstance(phi, keras.Layer):
            _require("activation", _is_stateless(phi), "a layer without weights", phi)
        self.shift = _number("shift", shift)
        self.slope = _number("slope", slope)
        self.frequency = _number("frequency", frequency, "a positive finite number", 1.2e-38)
        _require("wave", wave in ("floor", "round", None), "'floor', 'round' or None", wave)
        self.wave = wave
        if isinstance(shape, dict):  # of a saved model
            shape = keras.saving.deserialize_keras_object(shape)
        if shape == "auto":
            shape = "sigmoid" if isinstance(phi, keras.layers.ReLU) else _SHAPE_OF.get(phi, "auto")
        allowed = "'sigmoid', 'gaussian', None, a callable, 'auto' for relu, relu6 and tanh, or "
        allowed += "'bsilu', 'nelu', 'leaky' for relu"
        ok = shape in tuple(_SHAPES)[: None if phi is relu else 3]
        _require("shape", callable(shape) or ok, allowed, shape)
        self.shape = shape
        number = "a positive finite number or 'peak'"
        self.gain = gain if gain == "peak" else _number("gain", gain, number, 1.2e-38)
        self.strength = _number("strength", strength)
        self._factor = self.gain
        if gain == "peak":
            parameters = self.shift, self.slope, wave, shape, self.strength
            self._factor = _gain_at_peak(phi, *parameters)

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, keras.KerasTensor):
            x = ops.convert_to_tensor(x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        if "float" not in dtype:
            raise TypeError(f"x: allowed is a tensor of a float dtype; received {dtype}")
        return super().__call__(x)

    def call(self, x):
        if hasattr(x, "with_flat_values"):  # a tf.RaggedTensor
            flat = ops.reshape(x.flat_values, [-1])  # nothing is compiled for a vector's length
            return x.with_flat_values(ops.reshape(self.call(flat), ops.shape(x.flat_values)))
        parameters = self.shift, self.slope, self.frequency, self.wave, self.shape, self.strength
        accelerated = _accelerated if callable(self.shape) else _shared_accelerated
        if self.strength and any(self.activation is phi for phi in _PHI_SLOPE):
            return accelerated(self.activation, *parameters, self._factor)(x)
        y = ops.cast(self.activation(x), x.dtype)
        if self.strength:
            y = y + accelerated(ops.zeros_like, *parameters, 1.0)(x)
        if self._factor == 1 or _is_being_exported():
            return y
        return _differentiable(ops.copy, lambda _, upstream: self._factor * upstream)(y)

    def __repr__(self) -> str:
        config = {key: value for key, value in self.get_config().items() if key != "name"}
        return f"GAAF({', '.join(f'{key}={value!r}' for key, value in config.items())})"

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        names = ("shift", "slope", "frequency", "wave", "shape", "strength", "gain")
        config = {"activation": keras.activations.serialize(self.activation)}
        config |= {name: getattr(self, name) for name in names}
        config["shape"] = serialize(self.shape) if callable(self.shape) else self.shape
        return super().get_config() | config


@keras.saving.register_keras_serializable("gaaf")
def GAAF_relu(
    x: Tensor, shift=-1.0, slope=1.0, frequency=10_000, wave="floor", shape="sigmoid", gain=1.0
) -> Tensor:
    """Gradient-accelerated ReLU, max(x, 0) + g(x)·sigmoid(slope·(x + shift)).

    Its gradient is gain·((x > 0) + sigmoid(slope·(x + shift))). Given as `activation=`, it has its
    default parameters; `GAAF("relu", …)` takes others along, into saved models too.

    Args:
        x: Tensor of any shape and float dtype, or a symbolic Keras tensor.
        shift, slope, frequency, wave, shape, gain: as `GAAF` has them for φ = relu.

    Returns:
        Tensor of the shape and dtype of x.

    Raises:
        ValueError, TypeError: as `GAAF` does.

    Reference:
        [Gradient Acceleration in Activation Functions](https://arxiv.org/abs/1806.09783).
    """
    return GAAF("relu", shift, slope, frequency, wave, shape, gain=gain)(x)


@keras.saving.register_keras_serializable("gaaf")
def GAAF_tanh(x: Tensor, frequency=10_000, wave="floor", shape="gaussian", gain=1.0) -> Tensor:
    """Gradient-accelerated tanh, tanh(x) + g(x)·exp(−x²/3).

    Its gradient is gain·(1 − tanh²(x) + exp(−x²/3)). As `activation=`, it is as `GAAF_relu` is.

    Args:
        x: Tensor of any shape and float dtype, or a symbolic Keras tensor.
        frequency, wave, shape, gain: as `GAAF` has them for φ = tanh.

    Returns:
        Tensor of the shape and dtype of x.

    Raises:
        ValueError, TypeError: as `GAAF` does.

    Reference:
        [Gradient Acceleration in Activation Functions](https://arxiv.org/abs/1806.09783).
    """
    return GAAF("tanh", frequency=frequency, wave=wave, shape=shape, gain=gain)(x)


def get(identifier: Activation | None) -> Callable[[Tensor], Tensor]:
    """Returns the activation that an identifier names, as a callable.

    Args:
        identifier: "GAAF_relu", "GAAF_tanh", the name of any Keras activation, a callable (returned
            as it is), the config of a serialised activation, or None for the identity.

    Returns:
        Callable from tensor to tensor.

    Raises:
        ValueError: if the identifier is none of these.
    """
    if identifier in ("GAAF_relu", "GAAF_tanh"):
        return globals()[identifier]
    try:
        return keras.activations.get(identifier)
    except (ValueError, TypeError) as error:
        allowed = "'GAAF_relu', 'GAAF_tanh', the name of a Keras activation, a callable or a config"
        raise ValueError(f"activation: allowed is {allowed}; received {identifier!r}") from error


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns the derivative of an elementwise function, as training gets it.

    Args:
        function: From a tensor to one of the same shape, such as a `GAAF`.
        x: Tensor or array of any shape and float dtype: where to take the derivative.

    Returns:
        Tensor of the shape and dtype of x.
    """
    x = ops.convert_to_tensor(x)
    if _BACKEND == "tensorflow":
        with _library.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)
    if _BACKEND == "jax":
        return _library.grad(lambda x: function(x).sum())(x)
    x = x.detach().requires_grad_(True)
    return _library.autograd.grad(function(x).sum(), x)[0]


def to_gaaf(model: keras.Model, **parameters: Any) -> tuple[keras.Model, int]:
    """Returns a copy of a model with GAAF in the place of its relu, relu6 and tanh.

    These are replaced wherever the model's config names them, in models and wrappers inside it
    too: as an `activation=` argument, `recurrent_activation=` and the like; as a `ReLU` layer; and
    as `keras.ops.relu`, `keras.activations.relu` and so on, applied in a functional model. Other
    activations, and GAAF that is there already, stay as they are.

    Args:
        model: `keras.Model`: functional, Sequential, or a subclass with a `get_config`.
        **parameters: shift, slope, frequency, wave, shape, strength, as `GAAF` takes them.

    Returns:
        The copy, with the same names and weights, not compiled; and the number of activations
        that were replaced in it.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if a parameter is wrong, if Keras cannot rebuild the model from its config, or
            if the model has a relu or tanh that its config does not name, such as one in the code
            of a subclass. It is never left in silence.

    Example:

    >>> model, replaced = to_gaaf(keras.applications.VGG16(weights=None), shift=0.5, slope=5)
    """
    replaced = 0

    def accelerated(phi):
        nonlocal replaced
        replaced += 1
        return keras.saving.serialize_keras_object(GAAF(phi, **parameters))

    def change(key, config):
        if _is_gaaf(config):
            return config
        if key.endswith("activation") and (phi := _named(config)) in _SHAPE_OF:
            return accelerated(phi)
        if (phi := _applied(config)) is None:
            return None
        if config["module"] == "keras.layers":
            kept = {name: config["config"][name] for name in ("name", "trainable", "dtype")}
            kept["activation"] = accelerated(phi)
            return config | {"class_name": "Activation", "config": kept}
        new = accelerated(phi)
        return config | new | {"config": new["config"] | {"name": config["config"]["name"]}}

    GAAF("relu", **parameters)  # raises for wrong ones, even where there is nothing to replace
    return _rebuilt(model, change, "relu and tanh", {"relu", "relu6", "ReLU", "tanh"}), replaced


def to_plain(model: keras.Model) -> tuple[keras.Model, int]:
    """Returns a copy of a model with the plain φ in the place of each GAAF, for deployment.

    What it computes differs by 0.5/frequency at most, for each activation. No object of this
    module is left in it: it can be saved, loaded and exported without.

    Args:
        model: `keras.Model`, as for `to_gaaf`.

    Returns:
        The copy, with the same names and weights, not compiled; and the number of activations
        that were replaced in it.

    Raises:
        TypeError, ValueError: as `to_gaaf` does.

    Example:

    >>> plain, replaced = to_plain(keras.saving.load_model("final.keras"))
    >>> plain.export("model.onnx", format="onnx")
    """
    replaced = 0

    def change(key, config):
        nonlocal replaced
        function = _named(config)
        if not _is_gaaf(config) and function not in (GAAF_relu, GAAF_tanh):
            return None
        replaced += 1
        if function is not None:
            return function.__name__.removeprefix("GAAF_")
        phi = config["config"]["activation"]
        while _is_gaaf(phi):
            phi = phi["config"]["activation"]
        if "inbound_nodes" not in config:
            return phi
        # Applied in a functional model; the layer is to compute in the dtype of what it gets.
        dtype = config["inbound_nodes"][0]["args"][0]["config"]["dtype"]
        layer = keras.layers.Activation(phi, name=config["config"]["name"], dtype=dtype)
        return config | keras.saving.serialize_keras_object(layer)

    return _rebuilt(model, change, "GAAF", {"GAAF", "GAAF_relu", "GAAF_tanh"}), replaced


def _is_gaaf(config):
    return isinstance(config, dict) and config.get("registered_name") == "gaaf>GAAF"


def _named(config):
    """The activation function that a value in a config names, or None."""
    function = isinstance(config, dict) and config.get("class_name") == "function"
    if not function and not isinstance(config, str):
        return None
    try:
        return keras.activations.get(config)
    except (ValueError, TypeError):
        return None


def _applied(config):
    """The relu or tanh that a serialised layer or operation of Keras is, or None."""
    if not isinstance(config, dict) or not str(config.get("module")).startswith("keras."):
        return None
    name, arguments = config.get("class_name"), config.get("config")
    if name == "ReLU":
        arguments = tuple(arguments[key] for key in ("max_value", "negative_slope", "threshold"))
        plain = {(None, 0, 0): keras.activations.relu, (6, 0, 0): keras.activations.relu6}
        return plain.get(arguments) or keras.layers.ReLU(*arguments)
    return {
        "Relu": keras.activations.relu,
        "Relu6": keras.activations.relu6,
        "Tanh": keras.activations.tanh,
    }.get(name)


def _rebuilt(model, change, what, names):
    """A copy of a model, built from its config after `change(key, value)` of each value in it.

    A value for which that returns None is gone into. Raises ValueError if something of one of the
    names, which `what` sums up, is where the config does not show it.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: allowed is a keras.Model; received {type(model).__name__}")

    def changed(config, key=""):
        new = change(key, config)
        if new is not None:
            return new
        if isinstance(config, dict):
            return {k: changed(v, str(k)) for k, v in config.items() if k != "compile_config"}
        if isinstance(config, list | tuple):
            return type(config)(changed(v, key) for v in config)
        return config

    _require_none(what, _in_code(model, names))
    not_rebuilt = "model: allowed is one that Keras can rebuild from its config; received "
    try:
        config = changed(keras.saving.serialize_keras_object(model))
        copy = keras.saving.deserialize_keras_object(config, _own(model), safe_mode=False)
    except Exception as error:  # whatever the code of layers that are not Keras' own raises
        reason = " ".join(str(error).split())[:400]
        raise ValueError(
            f"{not_rebuilt}'{model.name}' ({type(model).__name__}): {reason}"
        ) from error
    _require_none(what, _in_attributes(copy, names))
    if [x.shape for x in copy.weights] != [x.shape for x in model.weights]:
        raise ValueError(
            f"{not_rebuilt}'{model.name}', whose copy has {len(copy.weights)} weights, not "
            f"{len(model.weights)}, as when two models inside it share a layer"
        )
    for new, old in zip(copy.weights, model.weights, strict=True):
        new.assign(ops.copy(old))  # not shared: training on JAX deletes what it was given
    return copy


def _require_none(what, found):
    if found:
        raise ValueError(
            f"model: allowed is {what} where its config names it; received {'; '.join(found)}"
        )


def _layers(model):
    """The model and all layers and operations in it, at any depth."""
    layers = model._flatten_layers(include_self=True, recursive=True)
    operations = [x for layer in layers for x in getattr(layer, "operations", [])]
    return layers + [x for x in operations if not isinstance(x, keras.Layer)]


def _own(model):
    """The classes and functions in a model that Keras does not know, by name."""
    layers = _layers(model)
    functions = [x for layer in layers for _, x in _callables(layer) if inspect.isfunction(x)]
    return {x.__name__: x for x in [*map(type, layers), *functions] if not _of_a_library(x)}


def _in_attributes(model, names):
    """Which layers of a model are, or have as an attribute, something of one of these names."""

    def one(x):
        return any(y.__name__ in names for y in ([x] if hasattr(x, "__name__") else type(x).mro()))

    found = []
    for layer in _layers(model):
        attributes = [] if isinstance(layer, GAAF) else _callables(layer)
        at = [""] * one(layer) + [f", its {name}" for name, value in attributes if one(value)]
        found += [f"{layer.name} ({type(layer).__name__}){place}" for place in at]
    return found


def _in_code(model, names):
    """Which layers of a model use one of these names in their code."""
    return [
        f"{layer.name} ({type(layer).__name__}), {word} in its code"
        for layer in _layers(model)
        for word in sorted(_words_in_code(layer) & names)
    ]


def _callables(layer):
    """The names and values of its attributes that can be called, but for layers, also in lists."""
    for name, value in vars(layer).items():
        values = list(value.values()) if isinstance(value, dict) else value
        for one in values if isinstance(values, list | tuple) else [values]:
            if callable(one) and not isinstance(one, keras.Layer):
                yield name, one


def _words_in_code(layer):
    """The names and strings in the code that computes a layer: its `call`, and what that calls.

    Of Keras' own layers, where relu may be an implementation's detail, those with a tanh are known.
    """
    if _of_a_library(type(layer)) and not isinstance(layer, keras.layers.Lambda):
        attention = isinstance(layer, keras.layers.AdditiveAttention)
        scores = getattr(layer, "score_mode", None) == "concat"
        capped = getattr(layer, "logit_soft_cap", None)
        return {"tanh"} if attention or scores or capped else set()
    todo = [type(layer).call]
    todo += [value for name, value in _callables(layer) if not name.endswith("activation")]
    words, seen = set(), set()
    while todo:
        function = inspect.unwrap(todo.pop())
        if not inspect.isfunction(function) or function in seen or _of_a_library(function):
            continue
        seen.add(function)
        codes = [function.__code__]
        for code in codes:  # grows by the functions and comprehensions inside
            codes += [inner for inner in code.co_consts if inspect.iscode(inner)]
            words.update(text for text in code.co_consts if isinstance(text, str))
            words.update(name for name in code.co_names if not hasattr(layer, name))
            todo += [getattr(type(layer), name, None) for name in code.co_names]
            todo += [function.__globals__.get(name) for name in code.co_names]
        todo += inspect.getclosurevars(function).nonlocals.values()
    return words


def _of_a_library(x):
    libraries = ("builtins", "gaaf", "keras", "tensorflow", "jax", "torch", "numpy")
    return (x.__module__ or "").partition(".")[0] in libraries
