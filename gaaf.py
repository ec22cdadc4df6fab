"""Gradient-accelerated activation functions (GAAF) for Keras 3, on any of its backends.

An activation φ gets a sawtooth g that is almost zero but rises with slope 1, so that gradient
also flows where φ saturates; a shape s says where (Hahn & Choi, arXiv 1806.09783):

    φ_new(x) = φ(x) + g(x)·s(x)      with  |g| ≤ 0.5 / frequency
    φ_new′(x) = φ′(x) + s(x)

Use `GAAF_relu` and `GAAF_tanh` as functions, or a `GAAF` object where other parameters than the
defaults are wanted and the model is to be saved:

    keras.layers.Dense(64, activation=gaaf.GAAF("relu", shift=0.5, slope=5))
"""

import math
import numbers

import keras
from keras import ops

WAVES = ("floor", "round", None)
SHAPES = ("sigmoid", "gaussian", None)
# What shape "auto" stands for.
_SHAPE_OF = {keras.activations.relu: "sigmoid", keras.activations.tanh: "gaussian"}


def _require(name, ok, allowed, received):
    if not ok:
        raise ValueError(f"{name}: allowed is {allowed}; received {received!r}")


def _number(name, value, allowed="a finite number", smallest=-math.inf):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # Larger or smaller ones than float32 holds would turn into inf or 0 in the computation.
    _require(name, real and smallest <= value and abs(value) < 3.4e38, allowed, value)
    return float(value)


def _acceleration(x, s, frequency, wave):
    """The term that GAAF adds: its value is g(x)·s(x), its gradient exactly g′(x)·s(x)."""
    bound = 3e38 / max(frequency, 1)  # keeps K·x finite: inf − inf would be NaN

    def value(x):
        x = ops.clip(x, -bound, bound)
        if wave is None:
            return ops.zeros_like(x)
        periods = frequency * x
        floor = wave == "floor"
        # Not ops.floor: Keras 3.15 computes it in float32 even for float64, on JAX and PyTorch.
        height = periods - periods // 1 if floor else ops.abs(periods - ops.round(periods))
        # XLA fuses K·x into the subtraction, unrounded: for large x that leaves the wave's range.
        return (ops.clip(height, 0, 1 if floor else 0.5) - 0.5) / frequency * s(x)

    def slope(x):
        x = ops.clip(x, -bound, bound)
        if wave != "round":
            return s(x)
        periods = frequency * x
        return s(x) * ops.sign(periods - ops.round(periods))

    # Left to itself, differentiation would add g·s′, noise of size 0.5/K. As the gradient given
    # here is itself made of differentiable operations, second derivatives exist.
    @ops.custom_gradient
    def acceleration(x):
        def gradient(*args, upstream=None):
            # TensorFlow and JAX pass upstream alone; PyTorch passes it by name, after the x
            # through which second derivatives flow.
            at, upstream = (x, *args) if upstream is None else (*args, upstream)
            return upstream * slope(at)

        return value(x), gradient

    return acceleration(x)


@keras.saving.register_keras_serializable("gaaf")
class GAAF(keras.Operation):
    """Gradient-accelerated version of an activation function, φ_new(x) = φ(x) + g(x)·s(x).

    The gradient is φ′(x) + s(x), for wave "round" φ′(x) ± s(x) with the sign of Kx − round(Kx).
    Values differ from φ(x) by 0.5/frequency at most, where |s| ≤ 1. The object goes wherever Keras
    takes `activation=`, and is saved and loaded with the model.

    Args:
        activation: φ: "relu", "tanh", the name of any other Keras activation, or a callable.
        shift: Where s = 0.5 lies: the sigmoid's centre is at x = −shift, in units of x. Finite
            float; default −1.0, with slope 1 the best that the 2018 experiments found.
        slope: Steepness of the sigmoid, in 1/x. Finite float, default 1.0.
        frequency: K, sawtooth periods per unit of x. Positive finite float, default 10,000.
        wave: "floor" (default): g = (Kx − ⌊Kx⌋ − 0.5)/K. "round": g = (|Kx − round(Kx)| − 0.5)/K,
            whose slope alternates. None: the limit K → ∞, values exactly φ(x), gradient φ′ + s.
        shape: s. "sigmoid": sigmoid(slope·(x + shift)). "gaussian": exp(−x²/3). None: 1
            everywhere. A callable: s(x) of a float32 or float64 tensor. Default "auto": "sigmoid"
            for φ = relu and "gaussian" for tanh; any other φ needs one of the former.
        name: Name of the operation in a functional model.

    Call arguments:
        x: Tensor of any shape and float dtype, or a symbolic Keras tensor. For float16 and
            bfloat16 the wave and s are computed in float32.

    Returns:
        Tensor of the shape and dtype of x.

    Raises:
        ValueError: if a parameter is not one of the above.
        TypeError: if x is not of a float dtype.

    Example:

    >>> layer = keras.layers.Dense(64, activation=GAAF("elu", shape="gaussian"))

    Reference:
        [Gradient Acceleration in Activation Functions](https://arxiv.org/abs/1806.09783),
        Hahn & Choi, 2018: the formula φ_new, and the shapes of its ReLU and tanh.
    """

    def __init__(
        self,
        activation,
        shift=-1.0,
        slope=1.0,
        frequency=10_000,
        wave="floor",
        shape="auto",
        name=None,
    ):
        super().__init__(name=name)
        self.activation = get(activation)
        self.shift = _number("shift", shift)
        self.slope = _number("slope", slope)
        self.frequency = _number("frequency", frequency, "a positive finite number", 1.2e-38)
        _require("wave", wave in WAVES, "'floor', 'round' or None", wave)
        self.wave = wave
        if shape == "auto":
            shape = _SHAPE_OF.get(self.activation, "auto")
        allowed = "'sigmoid', 'gaussian', None, a callable, or 'auto' for 'relu' and 'tanh' alone"
        _require("shape", callable(shape) or shape in SHAPES, allowed, shape)
        self.shape = shape

    def __call__(self, x):
        if not isinstance(x, keras.KerasTensor):
            x = ops.convert_to_tensor(x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        if "float" not in dtype:
            raise TypeError(f"x: allowed is a tensor of a float dtype; received {dtype}")
        return super().__call__(x)

    def call(self, x):
        dtype = keras.backend.standardize_dtype(x.dtype)
        wide = ops.cast(x, "float64" if dtype == "float64" else "float32")
        acceleration = _acceleration(wide, self._s, self.frequency, self.wave)
        return self.activation(x) + ops.cast(acceleration, dtype)

    def _s(self, x):
        if self.shape == "sigmoid":
            return ops.sigmoid(self.slope * (x + self.shift))
        if self.shape == "gaussian":
            return ops.exp(-ops.square(x) / 3)
        return ops.ones_like(x) if self.shape is None else self.shape(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "shift": self.shift,
            "slope": self.slope,
            "frequency": self.frequency,
            "wave": self.wave,
            "shape": serialize(self.shape) if callable(self.shape) else self.shape,
        }

    @classmethod
    def from_config(cls, config):
        shape = config["shape"]
        if isinstance(shape, dict):
            shape = keras.saving.deserialize_keras_object(shape)
        return cls(**{**config, "shape": shape})


@keras.saving.register_keras_serializable("gaaf")
def GAAF_relu(x, shift=-1.0, slope=1.0, frequency=10_000, wave="floor", shape="sigmoid"):
    """Gradient-accelerated ReLU, max(x, 0) + g(x)·sigmoid(slope·(x + shift)).

    Its gradient is (x > 0) + sigmoid(slope·(x + shift)). Given as `activation=`, this function has
    its default parameters; `GAAF("relu", …)` takes others along, into saved models too.

    Args:
        x: Tensor of any shape and float dtype, or a symbolic Keras tensor.
        shift: The sigmoid's centre is at x = −shift. Default −1.0, with slope 1 the best that the
            2018 experiments found (test accuracy 0.7948, over shifts from 5 to −4).
        slope: Steepness of the sigmoid. Default 1.0.
        frequency: K, sawtooth periods per unit of x. Default 10,000.
        wave: "floor" (default), "round" or None.
        shape: "sigmoid" (default), "gaussian", None or a callable.

    Returns:
        Tensor of the shape and dtype of x.

    Raises:
        ValueError: if a parameter is none of these.
        TypeError: if x is not of a float dtype.

    Reference:
        [Gradient Acceleration in Activation Functions](https://arxiv.org/abs/1806.09783).
    """
    return GAAF("relu", shift, slope, frequency, wave, shape)(x)


@keras.saving.register_keras_serializable("gaaf")
def GAAF_tanh(x, frequency=10_000, wave="floor", shape="gaussian"):
    """Gradient-accelerated tanh, tanh(x) + g(x)·exp(−x²/3).

    Its gradient is 1 − tanh²(x) + exp(−x²/3). `GAAF("tanh", …)` is the form for `activation=` with
    other parameters than the defaults.

    Args:
        x: Tensor of any shape and float dtype, or a symbolic Keras tensor.
        frequency: K, sawtooth periods per unit of x. Default 10,000.
        wave: "floor" (default), "round" or None.
        shape: "gaussian" (default), "sigmoid", None or a callable.

    Returns:
        Tensor of the shape and dtype of x.

    Raises:
        ValueError: if a parameter is none of these.
        TypeError: if x is not of a float dtype.

    Reference:
        [Gradient Acceleration in Activation Functions](https://arxiv.org/abs/1806.09783).
    """
    return GAAF("tanh", frequency=frequency, wave=wave, shape=shape)(x)


def get(identifier):
    """Returns the activation that an identifier names, as a callable.

    Args:
        identifier: "GAAF_relu" or "GAAF_tanh" (with their default parameters), the name of any
            Keras activation such as "relu", a callable (returned as it is), the config of a
            serialised activation, or None for the identity.

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
        raise ValueError(
            "activation: allowed is 'GAAF_relu', 'GAAF_tanh', the name of a Keras activation, "
            f"a callable or a serialised activation; received {identifier!r}"
        ) from error
