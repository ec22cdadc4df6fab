"""Gradient-accelerated activation functions (GAAF) for Keras 3, on TensorFlow, JAX and PyTorch.

An activation φ gets a sawtooth g. Its value is almost zero, but it rises with slope 1, so gradient
also flows where φ saturates. A shape s says where (Hahn & Choi, arXiv 1806.09783):

    φ_new(x) = φ(x) + g(x)·s(x)      with  |g| ≤ 0.5 / frequency
    φ_new′(x) = φ′(x) + s(x)

    keras.layers.Dense(64, activation=gaaf.GAAF("relu", shift=0.5, slope=5))

`to_gaaf` replaces a model's relu, relu6 and tanh by GAAF, and `to_plain` takes GAAF out again.
"""

import collections
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

    phi: Callable  # φ, a key of `_DERIVATIVE_OF`
    shift: float
    slope: float
    K: float
    wave: str | None
    shape: str | Callable | None
    gain: float

    def value(self, x):
        """φ(x) + g(x)·s(x)."""
        within = self.within_range(x)
        return self.phi(x) + self.g(within) * self.s(within)

    def gradient(self, x):
        """gain·(φ′(x) + s(x)). Wave "round" also falls: there it is gain·(φ′(x) − s(x)).

        The exact derivative has a term g·s′ too. That is noise of size 0.5/K, and is left out.
        """
        s = self.s(x)
        if self.wave == "round":
            periods = self.K * self.within_range(x)
            s = s * ops.sign(periods - ops.round(periods))
        derivative = _DERIVATIVE_OF[self.phi](x) + s
        # Without a compiler, each operation is one more pass over memory.
        return derivative if self.gain == 1 else self.gain * derivative

    def g(self, x):
        """The wave: (Kx − ⌊Kx⌋ − 0.5)/K, or for "round" (|Kx − round(Kx)| − 0.5)/K."""
        periods = self.K * x
        if self.wave == "floor":
            height, highest = periods - _floor(periods), 1
        else:
            height, highest = ops.abs(periods - ops.round(periods)), 0.5
        # XLA may fuse K·x and the subtraction, and so not round K·x. For large x the height would
        # then be out of range.
        return (ops.clip(height, 0, highest) - 0.5) / self.K

    def s(self, x):
        """The shape."""
        if callable(self.shape):
            return self.shape(x)
        return _SHAPES[self.shape](x, self.shift, self.slope)

    def within_range(self, x):
        """x, clipped so that K·x is finite: inf − inf would be NaN. s needs no such bound."""
        bound = 3e38 / max(self.K, 1)
        return ops.clip(x, -bound, bound)


def _floor(x):
    """⌊x⌋. ops.floor of float64 may be float32; // cannot be exported to ONNX from JAX."""
    return x // 1 if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.floor(x)


# φ′ of each φ whose gradient this module computes. The backend differentiates any other φ.
_DERIVATIVE_OF = {
    relu: lambda x: ops.cast(x > 0, x.dtype),
    relu6: lambda x: ops.cast((x > 0) & (x < 6), x.dtype),
    tanh: lambda x: 1 - ops.square(ops.tanh(x)),
    ops.zeros_like: ops.zeros_like,  # the function 0, for any other φ: see `GAAF.call`
}


def _bsilu(x, *_):
    x = ops.clip(x, -1e4, 1e4)  # ∞·0 would be NaN
    return ops.sigmoid(x) * (1 + (x + 1.67) * ops.sigmoid(-x)) - _DERIVATIVE_OF[relu](x)


def _nelu(x, *_):
    x = ops.clip(x, -1e4, 0)
    return 0.4 * x / ops.square(1 + ops.square(x))


_SHAPES = {
    "sigmoid": lambda x, shift, slope: ops.sigmoid(slope * (x + shift)),
    "gaussian": lambda x, *_: ops.exp(-ops.square(x) / 3),
    # Not ones_like: with that, TensorFlow's second derivative would be None instead of 0.
    None: lambda x, *_: ops.sign(1 + ops.abs(x)),
    "bsilu": _bsilu,
    "nelu": _nelu,
    "leaky": lambda x, *_: 0.1 * (1 - ops.sign(ops.relu(x))),
}
_FOR_RELU_ALONE = "bsilu", "nelu", "leaky"
# The shape that "auto" stands for. These are also the activations that `to_gaaf` replaces.
_SHAPE_OF = {relu: "sigmoid", relu6: "sigmoid", tanh: "gaussian"}


@keras.saving.register_keras_serializable("gaaf")
class GAAF(keras.Operation):
    """Gradient-accelerated version of an activation function, φ_new(x) = φ(x) + g(x)·s(x).

    The gradient is gain·(φ′(x) + s(x)); for wave "round" gain·(φ′(x) ± s(x)), with the sign of
    Kx − round(Kx). Values differ from φ(x) by 0.5/frequency at most, where |s| ≤ 1. The object
    goes wherever Keras takes `activation=`, and is saved and loaded with the model.

    Each GAAF layer multiplies the gradient on its way back by up to 2, not 1. For standard normal
    x, the root mean square of φ′ + s is 1.47 times that of φ′ with the defaults of relu, 2.05 times
    with the paper's shape (slope 5, shift 0.5) and 2.18 times with tanh. So in a deep network the
    gradient can leave the range of float32, SGD can diverge, and with Adam an L2 penalty has less
    effect. A gain below 1 corrects this. With a gain other than 1, or wave None, the gradient is
    not the derivative of the value. TensorFlow's forward mode (ForwardAccumulator) does not use
    this gradient, but differentiates the value.

    Args:
        activation: φ: the name of a Keras activation, a callable, or a layer without weights. A
            layer computes in its own dtype.
        shift: Where s = 0.5 lies: the sigmoid's centre is at x = −shift, in units of x. Finite
            float; default −1.0, the best of the sigmoids that were tried in 2018.
        slope: Steepness of the sigmoid, in 1/x. Finite float, default 1.0.
        frequency: K, sawtooth periods per unit of x. Positive finite float, default 10,000.
        wave: "floor" (default): g = (Kx − ⌊Kx⌋ − 0.5)/K. "round": g = (|Kx − round(Kx)| − 0.5)/K,
            whose slope alternates. None: the limit K → ∞, values exactly φ(x), gradient φ′ + s.
        shape: s. "sigmoid": sigmoid(slope·(x + shift)). "gaussian": exp(−x²/3). None: 1
            everywhere. A callable without trainable variables: s(x) of a float32 or float64
            tensor. Default "auto": "sigmoid" for φ = relu, relu6 and a `keras.layers.ReLU`,
            "gaussian" for tanh. For any other φ the shape must be given. Three shapes are for
            φ = relu alone, best with wave None: with s = r′ − φ′ they replace its gradient by r′.
            "bsilu": r = (x + 1.67)·sigmoid(x) − 1.67/2.
            "nelu": r′ = 1 for x > 0, else 0.4x/(1 + x²)².
            "leaky": r′ = 1 for x > 0, else 0.1.
        gain: Factor of the gradient. Positive finite float, default 1.0, the paper's; or "peak":
            1/max|φ′ + s|, so that no gradient is above 1: 0.5 for the defaults of relu and tanh.
        name: Name of the operation in a functional model.

    Call arguments:
        x: Tensor of any shape and float dtype, or a symbolic Keras tensor. In float16 and bfloat16
            gradients are computed in float32 and rounded once, and so are values with a wave. A
            wave that is below the rounding error at 1 (frequency above 1024, or for bfloat16 128)
            is not added: the value is φ(x).

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
        self._factor = self.gain
        if gain == "peak":
            self._factor = _gain_at_peak(phi, self.shift, self.slope, wave, self.shape)

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
        if any(self.activation is phi for phi in _DERIVATIVE_OF):
            return self._phi_new(self.activation, self._factor, x.dtype)(x)
        # Any other φ: the backend differentiates φ itself. φ_new of the function 0 adds g·s to the
        # value and s to the gradient. The gain then multiplies the sum.
        wide = _widened(x)
        y = ops.cast(self.activation(wide), wide.dtype)
        y = y + self._phi_new(ops.zeros_like, 1.0, x.dtype)(wide)
        if self._factor != 1:
            y = _identity_with_gain(self._factor)(y)
        return ops.cast(y, x.dtype)

    def _phi_new(self, phi, gain, dtype):
        """The function φ_new for a φ of `_DERIVATIVE_OF`."""
        parameters = self.shift, self.slope, self.frequency, self.wave, self.shape
        formula = _Formula(phi, *parameters, gain)
        adds_wave = _adds_wave(self.frequency, self.wave, dtype)
        make = _make_function if callable(self.shape) else _make_function_once
        return make(formula, adds_wave)

    def __repr__(self) -> str:
        config = {key: value for key, value in self.get_config().items() if key != "name"}
        return f"GAAF({', '.join(f'{key}={value!r}' for key, value in config.items())})"

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        names = ("shift", "slope", "frequency", "wave", "shape", "gain")
        config = {"activation": _config_of(self.activation, keras.activations.serialize)}
        config |= {name: getattr(self, name) for name in names}
        if callable(self.shape):
            config["shape"] = _config_of(self.shape, keras.saving.serialize_keras_object)
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

    Its gradient is gain·((x > 0) + sigmoid(slope·(x + shift))). `activation=gaaf.GAAF_relu` has the
    default parameters. For others give `activation=gaaf.GAAF("relu", …)`, which is saved with them.

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

    Its gradient is gain·(1 − tanh²(x) + exp(−x²/3)). `activation=gaaf.GAAF_tanh` has the default
    parameters. For others give `activation=gaaf.GAAF("tanh", …)`, which is saved with them.

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
    allowed = "'GAAF_relu', 'GAAF_tanh', the name of a Keras activation, a callable or a config"
    _require("activation", not inspect.isclass(identifier), allowed, identifier)
    try:
        return keras.activations.get(identifier)
    except (ValueError, TypeError) as error:
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
    with _library.enable_grad():  # within Keras' predict there is none
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
        key = relu if isinstance(phi, keras.layers.ReLU) else phi
        # Compared by `is`: a callable may have no hash. Any other φ leaves "auto", refused below.
        shape = next((_SHAPE_OF[each] for each in _SHAPE_OF if each is key), "auto")
    usable = [name for name in _SHAPES if phi is relu or name not in _FOR_RELU_ALONE]
    names, for_relu = (", ".join(map(repr, each)) for each in (_SHAPES, _FOR_RELU_ALONE))
    allowed = f"{names}, a callable, or 'auto' for relu, relu6 and tanh; {for_relu} for relu alone"
    _require("shape", callable(shape) or shape in usable, allowed, shape)
    return shape


def _config_of(function, serialize):
    """The config of φ or s. For one of keras.ops, Keras itself would load another function."""
    if getattr(ops, getattr(function, "__name__", ""), None) is function:
        return keras.saving.serialize_keras_object(function) | {"module": "keras.ops"}
    return serialize(function)


def _adds_wave(frequency, wave, dtype):
    """Whether values have the wave. They do not if it is below the dtype's rounding error at 1."""
    epsilon = {"float16": 2**-10, "bfloat16": 2**-7}
    error = epsilon.get(keras.backend.standardize_dtype(dtype), 0) / 2
    return wave is not None and 0.5 / frequency >= error


def _keras_equivalent(function):
    """The function of keras.activations for jax.nn.relu, torch.tanh and such; else itself."""
    nn, numpy, lax = (getattr(_library, name, None) for name in ("nn", "numpy", "lax"))
    modules = keras.activations, ops, _library, nn, numpy, lax, getattr(nn, "functional", None)
    for phi in _SHAPE_OF:
        if any(getattr(module, phi.__name__, None) is function for module in modules):
            return phi
    return function


def _is_stateless(layer):
    try:
        layer(keras.KerasTensor((1, 1)))  # creates the weights
    except Exception:  # it takes tensors of some shapes only
        return False
    return not layer.weights


def _gain_at_peak(*parameters):
    """1/max|φ′ + s|; for wave "round", which also falls, 1/max|φ′ ± s|."""
    if all(isinstance(parameter, Hashable) for parameter in parameters):
        return _searched_gain_at_peak(*parameters)
    return _searched_gain_at_peak.__wrapped__(*parameters)


@functools.lru_cache(256)
def _searched_gain_at_peak(activation, shift, slope, wave, shape):
    functions = [GAAF(activation, shift, slope, wave=None, shape=shape)]
    if wave == "round":
        s = shape if callable(shape) else lambda x: _SHAPES[shape](x, shift, slope)
        functions.append(GAAF(activation, shift, slope, wave=None, shape=lambda x: -s(x)))
    # In a thread of its own, no trace, GradientTape or scope that is open here sees the search.
    with ThreadPoolExecutor(1) as thread:
        peak = max(thread.map(_largest_derivative, functions))
    allowed = "a positive finite number, or 'peak' where φ′ + s has a bound and is not 0 everywhere"
    _require("gain", 1e-4 < peak < 1e4, allowed, "peak")
    return 1 / peak


def _largest_derivative(function):
    """The largest |function′(x)|, searched on a grid, then on finer grids around the best point."""
    unit = 1 / (abs(function.slope) or 1)
    # Around 0, where φ has its features; around the sigmoid's centre; and far out.
    ticks = ops.linspace(-20.0, 20.0, 8000)
    powers = 10 ** ops.linspace(-6, 5, 500) * (1 + abs(function.shift) + unit)
    x = ops.concatenate([ticks, unit * ticks - function.shift, powers, -powers])
    largest = 0
    for _ in range(3):
        x = ops.sort(x)
        derivatives = ops.nan_to_num(ops.abs(gradient(function, x)), posinf=math.inf)
        best = int(ops.argmax(derivatives))
        largest = max(largest, float(derivatives[best]))
        x = ops.linspace(x[max(best - 1, 0)], x[min(best + 1, len(x) - 1)], 1000)
    return largest


# The gradient. `_differentiable` makes each backend use `_Formula.gradient` instead of
# differentiating the value.


def _make_function(formula, adds_wave):
    """Returns φ_new: a function of a tensor, with the formula's value and, in training, gradient.

    Without the wave its value is φ. With float16 or bfloat16 for x, value and gradient of the
    formula are computed in float32, and rounded once.
    """

    def value(x):
        if not adds_wave:
            return ops.cast(formula.phi(x), x.dtype)  # Keras' tanh of float64 is float32 on JAX
        return ops.cast(formula.value(_widened(x)), x.dtype)

    def input_gradient(x, upstream):
        return ops.cast(_widened(upstream) * formula.gradient(_widened(x)), x.dtype)

    uncompiled = _differentiable(value, input_gradient)
    compiled_value = _compiled(value) if adds_wave else value  # φ alone is one pass
    compiled = _differentiable(compiled_value, _compiled(input_gradient))

    def phi_new(x):
        # A shape of the user's own may contain what does not compile.
        if callable(formula.shape) or not _is_worth_compiling(x):
            return uncompiled(x)
        return _call_flattened(compiled, x)

    return phi_new


# All layers with the same parameters, loaded ones too, share what is compiled.
_make_function_once = functools.cache(_make_function)


def _widened(x):
    """x in float32, unless it is float64: in half precision K·x overflows, or has no fraction."""
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")


def _differentiable(value, input_gradient):
    """Returns the function value(x), of which input_gradient(x, upstream) is the gradient.

    The backend keeps only x in memory for it. `input_gradient` is made of differentiable
    operations, so there are second derivatives.
    """
    if _BACKEND == "jax":  # ops.custom_gradient has no forward mode there
        function = _library.custom_jvp(value)
        recomputed = _library.checkpoint(input_gradient, prevent_cse=False)  # keeps only x

        @function.defjvp  # linear in the tangents, so JAX transposes it for the backward pass
        def jvp(primals, tangents):
            return function(*primals), recomputed(*primals, *tangents)

        return function
    if _BACKEND == "torch":  # ops.custom_gradient keeps x too long there, and fails in torch.func

        class Function(_library.autograd.Function):
            generate_vmap_rule = True
            forward = staticmethod(value)

            @staticmethod
            def setup_context(context, inputs, output):
                context.save_for_backward(*inputs)
                context.save_for_forward(*inputs)

            @staticmethod
            def backward(context, upstream):
                return input_gradient(*context.saved_tensors, upstream)

            jvp = backward  # φ_new is elementwise: both multiply by its gradient

        return Function.apply

    return ops.custom_gradient(lambda x: (value(x), lambda upstream: input_gradient(x, upstream)))


@functools.cache
def _identity_with_gain(gain):
    """The identity, whose gradient is multiplied by the gain."""
    return _differentiable(ops.copy, lambda _, upstream: gain * upstream)


# Compiling, on TensorFlow alone. JAX compiles whole steps, and PyTorch nothing by itself.


def _is_worth_compiling(x):
    """Whether XLA is to compile the activation: in a graph, if all sizes but the batch are known.

    Else each call might have another number of elements. XLA would compile for each of them, which
    takes much longer than the operations. No size may be 0.
    """
    if _BACKEND != "tensorflow" or _library.executing_eagerly() or _is_being_exported():
        return False
    if platform.system() == "Darwin":
        return False  # macOS: TensorFlow has no XLA for the GPU there
    has_axes = x.shape.rank is not None and x.shape.rank > 1
    return has_axes and bool(x.shape[1:].num_elements())  # None if a size is not known


def _compiled(function):
    """The function as one pass over memory on TensorFlow, instead of one for each operation."""
    if _BACKEND != "tensorflow":
        return function
    return _library.function(function, jit_compile=True, autograph=False, reduce_retracing=True)


def _call_flattened(function, x):
    """Calls the elementwise function on x as a vector, and gives the result x's shape.

    XLA vectorises the loop over the last axis, which may be short. The sizes are given as numbers:
    TensorFlow 2.21 fails to optimise some graphs that compute the shape of a sum.
    """
    y = _library.reshape(function(_library.reshape(x, [-1])), [-1, *x.shape[1:]])
    y.set_shape(x.shape)
    return y


def _is_being_exported():
    """Whether `Model.export` calls this. Keras has no flag for that, so the call stack is searched.

    ONNX and LiteRT cannot hold what XLA has compiled. Other exporters are not recognised.
    """
    frame = inspect.currentframe()
    while frame and not str(frame.f_globals.get("__name__")).startswith("keras.src.export."):
        frame = frame.f_back
    return frame is not None


# The converter. `_Converter` saves the model, replaces activations in the saved config, and loads
# the copy. Then `_compare` computes the outputs of both, with φ for GAAF, and compares them.

_values_are_of_phi = contextvars.ContextVar("values_are_of_phi", default=False)


def to_gaaf(model: keras.Model, check: bool = True, **parameters: Any) -> tuple[keras.Model, int]:
    """Returns a copy of a model in which GAAF replaces relu, relu6 and tanh.

    Every one that Keras' config of the model names is replaced, in nested models and layers too.
    One warning lists what was not replaced: activations that GAAF cannot take; functions and layers
    that are not Keras' own, as nobody sees the activations in their code. The warning also says if
    nothing could be compared, as with text for inputs.

    Args:
        model: `keras.Model` that Keras can save and load. It does not change.
        check: Whether copy and model must compute the same of a random batch, with φ for GAAF.
        **parameters: shift, slope, frequency and the others of `GAAF`.

    Returns:
        The copy, with all that Keras saves, not compiled; and the number of activations replaced.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if a parameter is wrong, or if no copy can be made that computes the same.
    """
    GAAF("relu", **parameters)  # raises for wrong ones, even where there is nothing to replace
    return _converted(model, functools.partial(_gaaf_of, parameters), check)


def to_plain(model: keras.Model, check: bool = True) -> tuple[keras.Model, int]:
    """Returns a copy of a model in which φ replaces each GAAF. It loads without this module.

    Values differ by 0.5/frequency at most, for each activation. All else is as for `to_gaaf`.
    """
    return _converted(model, _phi_of_gaaf, check)


def _gaaf_of(parameters, activation):
    """The GAAF that replaces an activation; None if `to_gaaf` does not replace it."""
    phi = _replaceable_phi(activation)
    return phi and GAAF(phi, **parameters)


def _replaceable_phi(activation):
    """The φ that a function, layer or operation of Keras computes, if `to_gaaf` replaces it."""
    phi, kind = _keras_equivalent(activation), type(activation)
    for each in _SHAPE_OF:
        if _is_keras(kind) and kind.__name__.lower() == each.__name__:  # such as the layer ReLU
            phi = each
    if phi is relu and hasattr(activation, "negative_slope"):
        limits = activation.max_value, activation.negative_slope, activation.threshold
        usual = {(None, 0, 0): relu, (6, 0, 0): relu6}.get(limits)
        return usual or keras.layers.ReLU(*limits, dtype="float32")
    return phi if any(phi is each for each in _SHAPE_OF) else None


def _phi_of_gaaf(activation):
    """The φ of a GAAF, of the innermost one if they are nested; None of anything else."""
    if activation is GAAF_relu:
        return relu
    if activation is GAAF_tanh:
        return tanh
    phi = activation.activation if isinstance(activation, GAAF) else None
    return phi and (_phi_of_gaaf(phi) or phi)


def _is_keras(thing):
    """Whether Keras or this module defines it."""
    module = thing.__module__ or ""
    return module == __name__ or module.partition(".")[0] == "keras"


def _converted(model, replacement, check):
    """Returns the copy and how many activations were replaced. Warns of what was not."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: allowed is a keras.Model; received {type(model).__name__}")
    converter = _Converter(replacement)
    try:
        copy = converter.copy_of(model)
        as_asked, result = _compare(model, copy) if check else (True, "not compared")
    except Exception as error:  # whatever the code of layers that are not Keras' own raises
        allowed = "model: allowed is one whose copy, saved and loaded by Keras, computes the same"
        given = f"'{model.name}' ({type(model).__name__}): {' '.join(str(error).split())[:400]}"
        raise ValueError(f"{allowed}; received {given}") from error
    count = len(converter.replaced)
    message = f"'{model.name}', {count} activations replaced, {result}"
    logging.getLogger(__name__).info(message)
    if converter.not_replaced:
        message += f"; left as they are: {', '.join(converter.not_replaced)}"
    if converter.not_replaced or not as_asked:
        warnings.warn(message, stacklevel=3)
    return copy, count


class _Converter:
    """Copies a model through its saved config, in which it replaces activations.

    A config has names and numbers, but not the Python objects. So the converter goes through the
    config and the model side by side: `config` is an entry of the config, `held` is the object that
    it describes.
    """

    def __init__(self, replacement):
        self.replacement = replacement  # from an activation to what replaces it, or to None
        self.objects = {}  # the classes and functions that the new config names: {name: object}
        self.replaced = set()  # places: (id of the owner, name of the argument)
        self.not_replaced = {}  # names for the warning, in order

    def copy_of(self, model):
        """The copy: Keras saves the model and loads it with the new config."""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about saving: nobody keeps this file
            keras.saving.save_model(model, folder, zipped=False)
            file = pathlib.Path(folder, "config.json")
            file.write_text(json.dumps(self.convert(json.loads(file.read_text()), model)))
            copy = keras.saving.load_model(folder, self.objects, compile=False, safe_mode=False)
        if [*map(_weight_signature, copy.weights)] != [*map(_weight_signature, model.weights)]:
            raise ValueError("its copy has other weights, or in another order")
        for new, old in zip(copy.weights, model.weights, strict=True):
            new.trainable = old.trainable
        return copy

    def convert(self, config, held, owner=None, key=""):
        """Returns the new config of `held`, which is the argument `key` of `owner`."""
        if isinstance(config, list) and isinstance(held, list | tuple) and len(config) == len(held):
            return [self.convert(*pair) for pair in zip(config, held, strict=True)]
        if not isinstance(config, dict | str):
            return config
        if new := self.replacement_of(held, owner):
            self.replaced.add((id(owner or held), key))
            return self.config_of_replacement(config, held, new)
        is_own_function = callable(held) and not (_is_keras(held) or hasattr(held, "call"))
        if is_own_function and key.endswith(("activation", "function")):
            self.note_not_replaced(held, owner)
        content = config.get("config") if isinstance(config, dict) else config
        if isinstance(content, dict) and config.get("class_name") == type(held).__name__:
            return self.convert_object(config, held)
        # The user's own function or lambda, named by its id: so load_model finds this same object.
        name = getattr(held, "__name__", "")
        if name and name in (content, "<lambda>") and not _is_keras(held):
            self.objects[str(id(held))] = held
            return {"class_name": "function", "config": str(id(held))}
        return config

    def replacement_of(self, held, owner):
        """What replaces an activation; None if `held` is no activation, or stays."""
        if not callable(held) or isinstance(owner, GAAF):
            return None
        with contextlib.suppress(ValueError):  # as of GAAF(tanh, shape="bsilu")
            new = self.replacement(held)
            if not (new and _is_of_integers(held, owner)):
                return new
        self.note_not_replaced(held, owner)
        return None

    def note_not_replaced(self, held, owner):
        name = getattr(held, "__name__", type(held).__name__)
        layer = getattr(owner or held, "name", type(owner).__name__)
        self.not_replaced[f"{layer} ({name})"] = None

    def config_of_replacement(self, config, held, new):
        """The config of what replaces an activation. A layer keeps its name and dtype."""
        is_layer = isinstance(held, keras.Layer)
        is_in_graph = isinstance(config, dict) and "inbound_nodes" in config
        if is_layer:
            new = keras.layers.Activation(new)
        elif is_in_graph:
            new = _operation_of(new, held.output.dtype)
        # A φ of the user's own inside it needs a name in `self.objects`.
        new_config = self.convert(keras.saving.serialize_keras_object(new), new)
        if is_layer or is_in_graph:
            kept = {"name", "trainable", "dtype", "activity_regularizer"} & config["config"].keys()
            new_config["config"] |= {key: config["config"][key] for key in kept}
        # Of the old entry, its place in the graph is kept.
        return config | new_config if isinstance(config, dict) else new_config

    def convert_object(self, config, held):
        """Returns the new config of an object. It names the class by its id.

        By the class's own name, Keras might find another class.
        """
        kind = type(held)
        self.objects[str(id(kind))] = kind
        new = {"registered_name": str(id(kind)), "compile_config": None}
        return config | new | {"config": self.convert_arguments(config["config"], held)}

    def convert_arguments(self, config, held):
        """Returns the new config of the arguments that an object was made with."""
        kind = type(held)
        has_own_code = hasattr(kind, "call") and not all(map(_is_keras, (kind.call, kind.__init__)))
        # The tanh of attention is in its code, where no config names it.
        is_additive = getattr(held, "score_mode", "") == "concat"
        if has_own_code or is_additive or kind is keras.layers.AdditiveAttention:
            self.note_not_replaced(held, held)
        # In Keras an object has its arguments as attributes. If it has not, the entry stays.
        arguments = {key: getattr(held, key, None) for key in config}
        if hasattr(held, "forward_layer"):  # which the config of a Bidirectional calls "layer"
            arguments["layer"] = held.forward_layer
        new = {key: self.convert(config[key], arguments[key], held, key) for key in config}
        if isinstance(held, keras.Model) and "layers" in config:
            new["layers"] = self.convert_layers(config["layers"], held)
        return new

    def convert_layers(self, configs, model):
        """Returns the new configs of a model's layers.

        A layer used twice has one shared_object_id in both places, so that Keras loads it once. A
        layer without weights has none: Keras loads it once for each model.
        """
        layers = _layers_of(model)
        # A Sequential's `layers` lacks the InputLayer and may have a layer twice. `configs` begins
        # with the InputLayer and has each layer once.
        inputs = len(configs) - len(set(layers))
        config_of = dict(zip(dict.fromkeys(layers), configs[inputs:], strict=True))
        new = [self.convert(config_of[layer], layer) for layer in layers]
        times = collections.Counter(layers)
        for config, layer in zip(new, layers, strict=True):
            is_input = isinstance(layer, keras.layers.InputLayer)
            if is_input or getattr(layer, "weights", None) or times[layer] > 1:
                config["shared_object_id"] = id(layer)
        return configs[:inputs] + new


def _layers_of(model):
    """The layers of a model and, in a graph, its operations, in order."""
    return getattr(model, "operations", None) or model.layers


def _is_of_integers(held, owner):
    """Whether an activation in a graph gets integers, which GAAF does not take."""
    applied = owner if isinstance(owner, keras.layers.Activation) else held
    x = getattr(applied, "input", None)  # outside a graph there is none
    return isinstance(x, keras.KerasTensor) and "float" not in x.dtype


def _operation_of(function, dtype):
    """The one operation that Keras makes of a function in a graph.

    An operation passes no masks on. The layer Activation does.
    """
    x = keras.Input((1,))
    try:
        _, operation = keras.Model(x, function(x)).operations  # ValueError if there are several
        return operation
    except (ValueError, TypeError):  # Keras has no single operation for it
        return keras.layers.Activation(function, dtype=dtype)


def _weight_signature(weight):
    """The shape and, unless Keras has numbered it, the name of a weight."""
    name = "" if weight.name.startswith("variable") else weight.name
    return name, weight.shape


_LARGEST_DIFFERENCE = 1e-3  # of outputs, as a share of the largest


def _compare(model, copy):
    """Raises ValueError if the copy, with φ for GAAF, computes something else.

    Returns whether model and copy could be compared, and the result in words.
    """
    try:
        expected = _outputs(model, model.outputs)
    except Exception as error:  # the model does not take a random batch
        return False, f"not compared with its copy ({' '.join(str(error).split())[:200]})"
    largest = _difference(expected, _outputs(copy, copy.outputs))
    if largest <= _LARGEST_DIFFERENCE:
        share = f"{largest:.0e} of the largest"
        return True, f"with φ for GAAF, outputs of a random batch differ by {share}"
    for layer, twin in zip(_layers_of(model), _layers_of(copy), strict=True):
        if isinstance(layer, keras.Model):
            _compare(layer, twin)  # which raises if the difference is inside
            continue
        expected, found = _outputs(model, layer.output), _outputs(copy, twin.output)
        if _difference(expected, found) > _LARGEST_DIFFERENCE:
            raise ValueError(f"the first layer whose output differs is '{layer.name}'")
    raise ValueError("its output differs")


def _difference(expected, found):
    """The largest difference of arrays, as a share of the largest value."""
    pairs = zip(expected, found, strict=True)
    shares = [np.abs(a - b).max(initial=0) / np.abs(a).max(initial=1e-30) for a, b in pairs]
    return max(shares, default=0)


def _outputs(model, tensors):
    """The values of a model's tensors, with φ for GAAF, for a batch that is always the same."""
    probe = keras.Model(model.inputs, tensors)
    # Both models draw the same random numbers. Keras does not save the states of their generators.
    states = [
        ops.zeros(x.shape, x.dtype) if x.name == "seed_generator_state" else x
        for x in probe.non_trainable_variables
    ]
    batch = [_random_batch(tensor) for tensor in model.inputs]
    context = contextvars.copy_context()
    context.run(_values_are_of_phi.set, True)  # so that only rounding may differ
    # Code that a layer has jitted, and that was traced with GAAF before, would use GAAF here.
    with _library.disable_jit() if _BACKEND == "jax" else contextlib.nullcontext():
        outputs, _ = context.run(
            probe.stateless_call, probe.trainable_variables, states, batch, training=False
        )
    outputs = [ops.cast(output, "float32") for output in keras.tree.flatten(outputs)]
    return [np.nan_to_num(ops.convert_to_numpy(output)) for output in outputs]


def _random_batch(tensor):
    """Two random samples for an input of a model."""
    shape = [tensor.shape[0] or 2, *(size or 64 for size in tensor.shape[1:])]
    low = -1 if "float" in tensor.dtype else 0  # an Embedding takes 0 and 1
    return ops.cast(keras.random.uniform(shape, low, low + 2, seed=0), tensor.dtype)
