"""Gradient-accelerated activation functions (GAAF) for Keras 3, on any of its backends.

An activation φ gets a sawtooth g that is almost zero but rises with slope 1, so that gradient
also flows where φ saturates; a shape s says where (Hahn & Choi, arXiv 1806.09783):

    φ_new(x) = φ(x) + g(x)·s(x)      with  |g| ≤ 0.5 / frequency
    φ_new′(x) = φ′(x) + s(x)

    keras.layers.Dense(64, activation=gaaf.GAAF("relu", shift=0.5, slope=5))

`to_gaaf` puts GAAF in the place of a model's relu and tanh, and `to_plain` takes it out again.
"""

import contextlib
import contextvars
import functools
import importlib
import inspect
import json
import logging
import math
import numbers
import pathlib
import platform
import tempfile
import warnings
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from keras.activations import relu, relu6, tanh

Tensor = Any  # a tensor of the backend, an array, or a symbolic Keras tensor
Activation = str | dict | Callable[[Tensor], Tensor]  # what `get` takes

_BACKEND = keras.backend.backend()
_library = importlib.import_module(_BACKEND)  # tensorflow, jax or torch, which Keras has imported


class _Formula(NamedTuple):
    """φ_new and its gradient, of a tensor x of float32 or float64."""

    phi: Callable  # φ, a key of `_PHI_SLOPE`
    K: float
    wave: str | None
    shape: str | Callable | None
    shift: float
    slope: float
    gain: float
    adds_wave: bool  # whether the value has the wave; else it is φ(x)

    def value(self, x):
        """φ(x) + g(x)·s(x)."""
        within = self.within_range(x)
        return self.phi(x) + self.g(within) * self.s(within)

    def gradient(self, x):
        """gain·(φ′(x) + s(x)); gain·(φ′(x) − s(x)) where g falls, as wave "round" does by turns.

        Differentiation of the value would add g·s′ to it, which is noise of size 0.5/K.
        """
        s = self.s(x)
        if self.wave == "round":
            periods = self.K * self.within_range(x)
            s = s * ops.sign(periods - ops.round(periods))
        slope = _PHI_SLOPE[self.phi](x) + s
        return slope if self.gain == 1 else self.gain * slope  # saves a pass where nothing compiles

    def g(self, x):
        """The wave: (Kx − ⌊Kx⌋ − 0.5)/K, or for "round" (|Kx − round(Kx)| − 0.5)/K."""
        periods = self.K * x
        if self.wave == "floor":
            height, highest = periods - _floor(periods), 1
        else:
            height, highest = ops.abs(periods - ops.round(periods)), 0.5
        # XLA fuses K·x into the subtraction, unrounded: for large x that leaves the wave's range.
        return (ops.clip(height, 0, highest) - 0.5) / self.K

    def s(self, x):
        """The shape."""
        if callable(self.shape):
            return self.shape(x)
        return _SHAPES[self.shape](x, self.shift, self.slope)

    def within_range(self, x):
        """x, clipped so that K·x is finite: inf − inf would be NaN."""
        bound = 3e38 / max(self.K, 1)
        return ops.clip(x, -bound, bound)


def _floor(x):
    """⌊x⌋. Keras 3.15 computes ops.floor of float64 in float32 on some backends; ONNX has no //."""
    return ops.floor(x) if _is_being_exported() else x // 1


# φ′ of each φ that GAAF computes together with g and s. To any other φ it adds that of φ = 0.
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
    "bsilu": _bsilu,
    "nelu": _nelu,
    "leaky": lambda x, *_: 0.1 * (1 - ops.sign(ops.relu(x))),
}
_FOR_RELU_ALONE = "bsilu", "nelu", "leaky"
# What shape "auto" stands for. These are also the activations that `to_gaaf` replaces.
_SHAPE_OF = {relu: "sigmoid", relu6: "sigmoid", tanh: "gaussian"}


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
    any other than 1 the gradient is not the derivative of the value. On TensorFlow all this is of
    gradients alone: a ForwardAccumulator differentiates the value.

    Args:
        activation: φ: the name of any Keras activation, or a callable; no layer with weights.
        shift: Where s = 0.5 lies: the sigmoid's centre is at x = −shift, in units of x. Finite
            float; default −1.0, the best of the sigmoids that were tried in 2018.
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
        gain: Factor of the gradient. Positive finite float, default 1.0, the paper's; or "peak":
            1/max|φ′ + s|, with which no slope is above 1: 0.5 for the defaults of relu and tanh.
        name: Name of the operation in a functional model.

    Call arguments:
        x: Tensor of any shape and float dtype, or a symbolic Keras tensor. Values and gradients
            of float16 and bfloat16 are computed in float32 and rounded once. A wave that is below
            the rounding error at 1 (frequency above 1024, or for bfloat16 128) is not added there.

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
        gain: float | str = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        phi = _keras_equivalent(get(activation))
        if isinstance(phi, keras.Layer):
            _require("activation", _is_stateless(phi), "a layer without weights", phi)
        self.activation = phi
        self.shift = _number("shift", shift)
        self.slope = _number("slope", slope)
        self.frequency = _number("frequency", frequency, "a positive finite number", 1.2e-38)
        _require("wave", wave in ("floor", "round", None), "'floor', 'round' or None", wave)
        self.wave = wave
        self.shape = _checked_shape(shape, phi)
        number = "a positive finite number or 'peak'"
        self.gain = gain if gain == "peak" else _number("gain", gain, number, 1.2e-38)
        self._gain = self.gain
        if gain == "peak":
            parameters = phi, self.shift, self.slope, wave, self.shape
            hashable = all(isinstance(x, Hashable) for x in parameters)
            self._gain = (_gain_at_peak if hashable else _gain_at_peak.__wrapped__)(*parameters)

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, keras.KerasTensor):
            x = ops.convert_to_tensor(x.value if isinstance(x, keras.Variable) else x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        if "float" not in dtype:
            raise TypeError(f"x: allowed is a tensor of a float dtype; received {dtype}")
        return super().__call__(x)

    def call(self, x):
        if _values_are_of_phi.get():
            return ops.cast(self.activation(x), x.dtype)
        if hasattr(x, "with_flat_values"):  # a tf.RaggedTensor
            flat = ops.reshape(x.flat_values, [-1])  # nothing is compiled for a vector's length
            return x.with_flat_values(ops.reshape(self.call(flat), ops.shape(x.flat_values)))
        if any(self.activation is phi for phi in _PHI_SLOPE):
            return self._accelerated(self.activation, self._gain, x.dtype)(x)
        # φ′ is not known here. So φ, which Keras differentiates, is added to GAAF of φ = 0.
        wide = _widened(x)
        y = ops.cast(self.activation(wide), wide.dtype)
        y = y + self._accelerated(ops.zeros_like, 1.0, x.dtype)(wide)
        if self._gain != 1 and not _is_being_exported():
            y = _identity_with_gain(self._gain)(y)
        return ops.cast(y, x.dtype)

    def _accelerated(self, phi, gain, dtype):
        """The function φ_new for a φ of `_PHI_SLOPE`."""
        wave, shape = (self.frequency, self.wave), (self.shape, self.shift, self.slope)
        formula = _Formula(phi, *wave, *shape, gain, _adds_wave(*wave, dtype))
        return (_accelerated if callable(self.shape) else _shared_accelerated)(formula)

    def __repr__(self) -> str:
        config = {key: value for key, value in self.get_config().items() if key != "name"}
        return f"GAAF({', '.join(f'{key}={value!r}' for key, value in config.items())})"

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        names = ("shift", "slope", "frequency", "wave", "shape", "gain")
        config = {"activation": keras.activations.serialize(self.activation)}
        config |= {name: getattr(self, name) for name in names}
        config["shape"] = serialize(self.shape) if callable(self.shape) else self.shape
        for name in ("activation", "shape"):
            entry, function = config[name], getattr(self, name)
            if isinstance(entry, dict) and getattr(ops, str(entry.get("config")), None) is function:
                entry["module"] = "keras.ops"  # where Keras finds it again
        return super().get_config() | config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        strength = config.pop("strength", 1.0)  # a factor of s, which GAAF had once
        _require("strength", strength == 1, "1, as GAAF has no such parameter any more", strength)
        return cls(**config)


@keras.saving.register_keras_serializable("gaaf")
def GAAF_relu(
    x: Tensor,
    shift: float = -1.0,
    slope: float = 1.0,
    frequency: float = 10_000,
    wave: str | None = "floor",
    shape: str | Callable | None = "sigmoid",
    gain: float | str = 1.0,
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
def GAAF_tanh(
    x: Tensor,
    frequency: float = 10_000,
    wave: str | None = "floor",
    shape: str | Callable | None = "gaussian",
    gain: float | str = 1.0,
) -> Tensor:
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
    if isinstance(identifier, str) and identifier in ("GAAF_relu", "GAAF_tanh"):
        return globals()[identifier]
    try:
        if inspect.isclass(identifier):
            raise TypeError("a class makes activations, but is none")
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
        return tape.gradient(y, x, unconnected_gradients="zero")
    if _BACKEND == "jax":
        return _library.grad(lambda x: function(x).sum())(x)
    x = x.detach().requires_grad_(True)
    y = function(x).sum()
    if not y.requires_grad:
        return ops.zeros_like(x)
    return _library.autograd.grad(y, x, materialize_grads=True)[0]


def _require(name, ok, allowed, received):
    if not ok:
        raise ValueError(f"{name}: allowed is {allowed}; received {received!r}")


def _number(name, value, allowed="a finite number", smallest=-math.inf):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # Larger or smaller ones than float32 holds would turn into inf or 0 in the computation.
    _require(name, real and smallest <= value and abs(value) < 3.4e38, allowed, value)
    return float(value)


def _checked_shape(shape, phi):
    """The shape that the argument of GAAF stands for: a key of `_SHAPES`, or a callable."""
    if isinstance(shape, dict):  # of a saved model
        shape = keras.saving.deserialize_keras_object(shape)
    if shape == "auto":
        shape = "sigmoid" if isinstance(phi, keras.layers.ReLU) else _usual_shape(phi)
    usable = [name for name in _SHAPES if phi is relu or name not in _FOR_RELU_ALONE]
    names, for_relu = (", ".join(map(repr, each)) for each in (_SHAPES, _FOR_RELU_ALONE))
    allowed = f"{names}, a callable, or 'auto' for relu, relu6 and tanh; {for_relu} for relu alone"
    _require("shape", callable(shape) or shape in usable, allowed, shape)
    return shape


def _usual_shape(phi):
    """What shape "auto" stands for; "auto", which is no shape, for a φ that has none."""
    # A φ may have no hash.
    return next((shape for key, shape in _SHAPE_OF.items() if key is phi), "auto")


def _adds_wave(frequency, wave, dtype):
    """Whether values have the wave: not where it is below the rounding error of the dtype at 1."""
    epsilon = {"float16": 2**-10, "bfloat16": 2**-7}
    error = epsilon.get(keras.backend.standardize_dtype(dtype), 0) / 2
    return wave is not None and 0.5 / frequency >= error


def _keras_equivalent(function):
    """Keras' relu, relu6 or tanh for the same one of `keras.ops` or the backend; else itself."""
    nn, numpy, lax = (getattr(_library, name, None) for name in ("nn", "numpy", "lax"))
    places = keras.activations, ops, _library, nn, numpy, lax, getattr(nn, "functional", None)
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


@functools.lru_cache(256)
def _gain_at_peak(activation, shift, slope, wave, shape):
    """1/max|φ′ + s|; for wave "round", whose slope alternates, 1/max|φ′ ± s|."""
    functions = [GAAF(activation, shift, slope, wave=None, shape=shape)]
    if wave == "round":
        s = shape if callable(shape) else lambda x: _SHAPES[shape](x, shift, slope)
        functions.append(GAAF(activation, shift, slope, wave=None, shape=lambda x: -s(x)))
    # A thread of its own is free of what is being traced, and of any scope that is open here.
    with ThreadPoolExecutor(1) as thread:
        peak = max(thread.map(_largest_slope, functions))
    allowed = "a positive finite number, or 'peak' where φ′ + s has a bound and is not 0 everywhere"
    _require("gain", 1e-4 < peak < 1e4, allowed, "peak")
    return 1 / peak


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


# The gradient. `_differentiable` tells each backend to use it instead of the value's derivative.


def _accelerated(formula):
    """Returns the function of a tensor that has the formula's value and, in training, its gradient.

    Value and gradient are computed in float32 at least, and rounded once to the tensor's dtype.
    """

    def value(x):
        if not formula.adds_wave:
            return ops.cast(formula.phi(x), x.dtype)  # Keras' tanh of float64 is float32 on JAX
        return ops.cast(formula.value(_widened(x)), x.dtype)

    def gradient(x, upstream):
        return ops.cast(_widened(upstream) * formula.gradient(_widened(x)), x.dtype)

    uncompiled = _differentiable(value, gradient)
    compiled_value = _compiled(value) if formula.adds_wave else value  # φ alone is one pass
    compiled = _differentiable(compiled_value, _compiled(gradient))

    def accelerated(x):
        if _is_being_exported():
            return value(x)
        # A shape of the user's own may contain what does not compile.
        if callable(formula.shape) or not _is_worth_compiling(x):
            return uncompiled(x)
        return _of_a_vector(compiled, x)

    return accelerated


# All layers with the same parameters, loaded ones too, share what is compiled.
_shared_accelerated = functools.cache(_accelerated)


def _widened(x):
    """x in float32, unless it is float64: in half precision K·x overflows, or has no fraction."""
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")


def _differentiable(value, gradient):
    """The function value(x), whose derivative is gradient(x, upstream) and keeps x alone.

    As that is made of differentiable operations, second derivatives exist.
    """
    if _BACKEND == "jax":  # where Keras' custom gradients know no forward mode
        function = _library.custom_jvp(lambda x: value(x))
        gradient = _library.checkpoint(gradient, prevent_cse=False)
        function.defjvp(lambda x, tangent: (function(*x), gradient(*x, *tangent)))
        return function
    if _BACKEND == "torch":  # where Keras' own keep x alive, and know no transforms

        class Function(_library.autograd.Function):
            generate_vmap_rule = True
            forward = staticmethod(lambda x: value(x))

            @staticmethod
            def setup_context(context, inputs, output):
                context.save_for_backward(*inputs)
                context.save_for_forward(*inputs)

            @staticmethod
            def backward(context, upstream):
                return gradient(*context.saved_tensors, upstream)

            jvp = backward

        return Function.apply

    return ops.custom_gradient(lambda x: (value(x), lambda upstream: gradient(x, upstream)))


@functools.cache
def _identity_with_gain(gain):
    """The identity, with a gradient that is that many times as large."""
    return _differentiable(ops.copy, lambda _, upstream: gain * upstream)


# Compiling, on TensorFlow; the other backends compile whole steps, or nothing.


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


def _of_a_vector(function, x):
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


# The converter. It saves the model, replaces activations in the saved config and loads the copy
# (`_Converter`). Then it computes outputs of both, with φ for GAAF, and compares them (`_compare`).

_values_are_of_phi = contextvars.ContextVar("values_are_of_phi", default=False)


def to_gaaf(model: keras.Model, check: bool = True, **parameters: Any) -> tuple[keras.Model, int]:
    """Returns a copy of a model with GAAF in the place of its relu, relu6 and tanh.

    Those of Keras are replaced wherever a config names them, at any depth. One warning names what
    is left: what GAAF does not take, and what is not Keras' own, as its code may hold others; and
    models of which nothing can be compared, as with strings for inputs.

    Args:
        model: `keras.Model` that Keras can save and load; it is left as it is.
        check: Whether copy and model must compute the same of a random batch, with φ for GAAF.
        **parameters: shift, slope, frequency and the others of `GAAF`.

    Returns:
        The copy, with all that Keras saves, not compiled; and the number of activations replaced.

    Raises:
        TypeError, ValueError: if `model` is none, has no such copy, or a parameter is wrong.
    """
    GAAF("relu", **parameters)  # raises for wrong ones, even where there is nothing to replace
    return _converted(model, functools.partial(_gaaf_of, parameters), check)


def to_plain(model: keras.Model, check: bool = True) -> tuple[keras.Model, int]:
    """Returns a copy of a model with φ in the place of each GAAF, to be used without this module.

    Values differ by 0.5/frequency at most, for each activation. All else is as for `to_gaaf`.
    """
    return _converted(model, _phi_of_gaaf, check)


def _gaaf_of(parameters, activation):
    """The GAAF that takes the place of an activation; None if `to_gaaf` does not replace it."""
    phi = _replaceable_phi(activation)
    return phi and GAAF(phi, **parameters)


def _replaceable_phi(activation):
    """The φ that a function, layer or operation of Keras computes, if `to_gaaf` replaces it."""
    kind = type(activation)
    classes = {phi.__name__: phi for phi in _SHAPE_OF if _is_keras(kind)}
    phi = _keras_equivalent(classes.get(kind.__name__.lower(), activation))
    if phi is relu and hasattr(activation, "negative_slope"):
        limits = activation.max_value, activation.negative_slope, activation.threshold
        return {(None, 0, 0): relu, (6, 0, 0): relu6}.get(limits) or keras.layers.ReLU(*limits)
    return None if _usual_shape(phi) == "auto" else phi


def _phi_of_gaaf(activation):
    """The φ of a GAAF, which is never one itself; None of anything else."""
    if activation is GAAF_relu:
        return relu
    if activation is GAAF_tanh:
        return tanh
    phi = activation.activation if isinstance(activation, GAAF) else None
    return phi and (_phi_of_gaaf(phi) or phi)


def _is_keras(thing):
    module = thing.__module__ or ""
    return module == __name__ or module.partition(".")[0] == "keras"


def _converted(model, replacement, check):
    """Returns the copy and the number of replaced activations; logs, and warns of what is left."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: allowed is a keras.Model; received {type(model).__name__}")
    converter = _Converter(replacement)
    try:
        copy = converter.copy_of(model)
        comparison = _compare(model, copy) if check else "not compared"
    except Exception as error:  # whatever the code of layers that are not Keras' own raises
        allowed = "model: allowed is one whose copy, saved and loaded by Keras, computes the same"
        given = f"'{model.name}' ({type(model).__name__}): {' '.join(str(error).split())[:400]}"
        raise ValueError(f"{allowed}; received {given}") from error
    count = len(converter.replaced)
    message = f"'{model.name}', {count} activations replaced, {comparison}"
    logging.getLogger(__name__).info(message)
    if converter.left:
        message += f"; left as they are: {', '.join(converter.left)}"
    if converter.left or (check and comparison.startswith("not")):
        warnings.warn(message, stacklevel=3)
    return copy, count


class _Converter:
    """Copies a model through its saved config, in which it replaces activations.

    A config says what is to be made, but not what it is of. So the converter goes through it with
    the object that the model holds in the same place: `config` is the one, `held` the other.
    """

    def __init__(self, replacement):
        self.replacement = replacement  # from an activation to what takes its place, or None
        self.objects = {}  # classes and functions that the new config names: {name: object}
        self.replaced = set()  # places
        self.left = {}  # the names of what may hold activations in its code, in order

    def copy_of(self, model):
        """The copy: the model's file, with the new config, as Keras loads it."""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is saved: the file is not kept
            keras.saving.save_model(model, folder, zipped=False)
            file = pathlib.Path(folder, "config.json")
            file.write_text(json.dumps(self.converted(json.loads(file.read_text()), model)))
            copy = keras.saving.load_model(folder, self.objects, compile=False, safe_mode=False)
        if [*map(_weight_signature, copy.weights)] != [*map(_weight_signature, model.weights)]:
            raise ValueError("its copy has other weights, or in another order")
        for new, old in zip(copy.weights, model.weights, strict=True):
            new.trainable = old.trainable
        return copy

    def converted(self, config, held, owner=None, key=""):
        """The new config of `held`, which `owner` has as its argument `key`."""
        if isinstance(config, list) and isinstance(held, list | tuple) and len(config) == len(held):
            return [self.converted(*pair) for pair in zip(config, held, strict=True)]
        if not isinstance(config, dict | str):
            return config
        if new := self.replacement_of(held, owner):
            self.replaced.add((id(owner or held), key))
            return self.with_replacement(config, held, new)
        self.note_own_activation(held, owner, key)
        inner = config.get("config") if isinstance(config, dict) else config
        if isinstance(inner, dict) and config.get("class_name") == type(held).__name__:
            return self.of_object(config, held)
        name = getattr(held, "__name__", "")
        if name and name in (inner, "<lambda>") and not _is_keras(held):
            self.objects[str(id(held))] = held
            return {"class_name": "function", "config": str(id(held))}
        return config

    def replacement_of(self, held, owner):
        """What takes the place of an activation; None where `held` is none, or stays."""
        if not callable(held) or isinstance(owner, GAAF):
            return None
        try:
            new = self.replacement(held)
            refused = new and _is_of_integers(held, owner)
        except ValueError:  # as of GAAF(tanh, shape="bsilu")
            refused = True
        if refused:
            self.note(held, owner)
        return None if refused else new

    def note(self, held, owner):
        """Notes what is left as it is, for the warning."""
        name = getattr(held, "__name__", type(held).__name__)
        self.left[f"{getattr(owner or held, 'name', type(owner).__name__)} ({name})"] = None

    def with_replacement(self, config, held, new):
        """The config of what takes the place of an activation; a layer keeps its name and dtype."""
        in_graph = "inbound_nodes" in config
        if isinstance(held, keras.Layer):
            new = keras.layers.Activation(new)
        elif in_graph:
            new = _operation_of(new, held)
        new_config = self.converted(keras.saving.serialize_keras_object(new), new)
        if isinstance(held, keras.Layer) or in_graph:
            kept = {"name", "trainable", "dtype", "activity_regularizer"} & config["config"].keys()
            new_config["config"] |= {key: config["config"][key] for key in kept}
        return config | new_config if isinstance(config, dict) else new_config

    def note_own_activation(self, held, owner, key):
        """Notes an activation that is not Keras' own."""
        own = callable(held) and not (_is_keras(held) or hasattr(held, "call"))
        if own and key.endswith(("activation", "function")):
            self.note(held, owner)

    def of_object(self, config, held):
        """The new config of an object: its class by number, and its arguments converted."""
        kind = type(held)
        self.objects[str(id(kind))] = kind  # by its name Keras may find another
        new = {"registered_name": str(id(kind)), "compile_config": None}
        return config | new | {"config": self.of_arguments(config["config"], held)}

    def of_arguments(self, config, held):
        """The new config of the arguments that an object was made with."""
        kind = type(held)
        own = hasattr(kind, "call") and not (_is_keras(kind.call) and _is_keras(kind.__init__))
        # Attention has a tanh in its code.
        tanh = getattr(held, "score_mode", "") == "concat" or kind is keras.layers.AdditiveAttention
        if own or tanh:
            self.note(held, held)
        arguments = {key: getattr(held, key, None) for key in config}
        if hasattr(held, "forward_layer"):  # Bidirectional
            arguments["layer"] = held.forward_layer
        new = {key: self.converted(config[key], arguments[key], held, key) for key in config}
        if isinstance(held, keras.Model) and "layers" in config:
            new["layers"] = self.of_layers(config["layers"], held)
        return new

    def of_layers(self, configs, model):
        """The new configs of a model's layers; a layer used twice gets one identity."""
        layers = getattr(model, "operations", None) or model.layers
        # A Sequential hides its input, and forgets which of its layers are the same.
        first = len(configs) - len(set(layers))
        config_of = dict(zip(dict.fromkeys(layers), configs[first:], strict=True))
        new = [self.converted(config_of[layer], layer) for layer in layers]
        for config, layer in zip(new, layers, strict=True):
            config["shared_object_id"] = id(layer)
        return configs[:first] + new


def _is_of_integers(held, owner):
    """Whether an activation in a graph gets integers, which GAAF does not take."""
    applied = owner if isinstance(owner, keras.layers.Activation) else held
    x = getattr(applied, "input", None)  # outside a graph there is none
    return isinstance(x, keras.KerasTensor) and "float" not in x.dtype


def _operation_of(function, held):
    """The operation that Keras makes of a function in a graph: as `held`, it passes masks on."""
    x = keras.Input((1,))
    try:
        _, operation = keras.Model(x, function(x)).operations
        return operation
    except (ValueError, TypeError):  # Keras has none that computes it
        return keras.layers.Activation(function, dtype=held.output.dtype)


def _weight_signature(weight):
    """The shape and, unless Keras has numbered it, the name of a weight."""
    return "" if weight.name.startswith("variable") else weight.name, weight.shape


def _compare(model, copy):
    """Raises ValueError if the copy, with φ for GAAF, computes something else; says how close."""
    try:
        _outputs(model, model.outputs)
    except Exception as error:
        return f"not compared with its copy ({' '.join(str(error).split())[:200]})"
    largest = _difference(model, model.outputs, copy, copy.outputs)
    if largest <= 1e-3:
        return f"with φ for GAAF, outputs of a random batch differ by {largest:.0e} of the largest"
    for layer in model.layers:
        twin = copy.get_layer(layer.name)
        if isinstance(layer, keras.Model):
            _compare(layer, twin)
        elif _difference(model, layer.output, copy, twin.output) > 1e-3:
            raise ValueError(f"the first layer whose output differs is '{layer.name}'")
    raise ValueError("its output differs")


def _difference(model, tensors, copy, copied_tensors):
    """The largest difference of the same tensors in both, as a share of the largest value."""
    largest = 0
    pairs = zip(_outputs(model, tensors), _outputs(copy, copied_tensors), strict=True)
    for expected, found in pairs:
        difference = np.abs(expected - found).max(initial=0)
        largest = max(largest, difference / np.abs(expected).max(initial=1e-30))
    return largest


def _outputs(model, tensors):
    """The values of a model's tensors, with φ for GAAF, for a batch that is always the same."""
    probe = keras.Model(model.inputs, tensors)
    variables = probe.trainable_variables, probe.non_trainable_variables
    batch = [_random_batch(tensor) for tensor in model.inputs]
    context = contextvars.copy_context()
    context.run(_values_are_of_phi.set, True)  # so that all that may differ is rounding
    # What a layer compiles by itself would remember for which of both it was traced.
    with _library.disable_jit() if _BACKEND == "jax" else contextlib.nullcontext():
        outputs, _ = context.run(probe.stateless_call, *variables, batch, training=False)
    outputs = [ops.cast(output, "float32") for output in keras.tree.flatten(outputs)]
    return [np.nan_to_num(ops.convert_to_numpy(output)) for output in outputs]


def _random_batch(tensor):
    """Two random samples for an input of a model."""
    shape = [tensor.shape[0] or 2, *(size or 64 for size in tensor.shape[1:])]
    low = -1 if "float" in tensor.dtype else 0  # an Embedding takes 0 and 1
    return ops.cast(keras.random.uniform(shape, low, low + 2, seed=0), tensor.dtype)
