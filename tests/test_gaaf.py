"""The activations: values and gradients against the closed form, dtypes, errors, saving."""

import dataclasses
import inspect
import os
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from backends import BACKEND, derivatives, to_numpy, ways_to_call

import gaaf

ROOT = Path(__file__).parent.parent
X = np.random.default_rng(0).uniform(-8, 8, (667, 3))


def sigmoid(x, shift=-1.0, slope=1.0):
    return 0.5 * (1 + np.tanh(slope * (x + shift) / 2))  # does not overflow


def gaussian(x):
    return np.exp(-(x**2) / 3)


# φ, φ′ and φ″.
RELU = (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0, np.zeros_like)
TANH = (np.tanh, lambda x: 1 - np.tanh(x) ** 2, lambda x: -2 * np.tanh(x) * (1 - np.tanh(x) ** 2))
ELU = (
    lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    lambda x: np.exp(np.minimum(x, 0)),
    lambda x: np.where(x > 0, 0, np.exp(np.minimum(x, 0))),
)


def sigmoid_slope(x, shift=-1.0, slope=1.0):
    return slope * sigmoid(x, shift, slope) * (1 - sigmoid(x, shift, slope))


def gaussian_slope(x):
    return -2 / 3 * x * gaussian(x)


def sigmoid_curvature(x):
    return sigmoid_slope(x, 0) * (1 - 2 * sigmoid(x, 0))


# The gradients that named shapes put in the place of ReLU's, and their derivatives.
SURROGATES = {
    "bsilu": (
        lambda x: sigmoid(x, 0) + (x + 1.67) * sigmoid_slope(x, 0),
        lambda x: 2 * sigmoid_slope(x, 0) + (x + 1.67) * sigmoid_curvature(x),
    ),
    "nelu": (
        lambda x: np.where(x > 0, 1, 0.4 * x / (1 + x**2) ** 2),
        lambda x: np.where(x > 0, 0, 0.4 * (1 - 3 * x**2) / (1 + x**2) ** 3),
    ),
    "leaky": (lambda x: np.where(x > 0, 1, 0.1), np.zeros_like),
}


# GAAF's activation and parameters; φ and its derivatives; s and its derivative.
CASES = [
    ("relu", {}, RELU, sigmoid, sigmoid_slope),
    *[
        (
            "relu",
            {"shift": shift, "slope": slope},
            RELU,
            partial(sigmoid, shift=shift, slope=slope),
            partial(sigmoid_slope, shift=shift, slope=slope),
        )
        for shift, slope in ((4, 1), (-4, 1), (0.5, 5), (0, 100), (1, -2))
    ],
    ("relu", {"frequency": 10}, RELU, sigmoid, sigmoid_slope),
    ("relu", {"frequency": 1e6}, RELU, sigmoid, sigmoid_slope),
    ("relu", {"shape": None}, RELU, np.ones_like, np.zeros_like),
    ("relu", {"shape": "gaussian"}, RELU, gaussian, gaussian_slope),
    ("relu", {"shape": keras.ops.cos}, RELU, np.cos, lambda x: -np.sin(x)),
    ("tanh", {}, TANH, gaussian, gaussian_slope),
    ("tanh", {"frequency": 100}, TANH, gaussian, gaussian_slope),
    ("tanh", {"shape": None}, TANH, np.ones_like, np.zeros_like),
    ("tanh", {"shape": "sigmoid"}, TANH, sigmoid, sigmoid_slope),
    ("elu", {"shape": "gaussian"}, ELU, gaussian, gaussian_slope),
    (keras.activations.elu, {"shape": None}, ELU, np.ones_like, np.zeros_like),
    *[
        ("relu", {"shape": name}, RELU, lambda x, r=slope: r(x) - RELU[1](x), curvature)
        for name, (slope, curvature) in SURROGATES.items()
    ],
]


def all_derivatives(function):
    """Yields the first and second derivative at X, eager and compiled."""
    for way, call in list(ways_to_call(function))[:2]:
        yield way, *derivatives(call, X)


@pytest.mark.parametrize("wave", ["floor", "round", None])
@pytest.mark.parametrize("activation, parameters, phi, s, s_slope", CASES)
def test_values_and_gradients_are_those_of_the_closed_form(
    activation, parameters, phi, s, s_slope, wave
):
    function = gaaf.GAAF(activation, wave=wave, **parameters)
    frequency = parameters.get("frequency", 10_000)
    periods = frequency * X
    height, sign = {
        "floor": ((periods - np.floor(periods) - 0.5) / frequency, 1),
        "round": (
            (np.abs(periods - np.round(periods)) - 0.5) / frequency,
            np.sign(periods - np.round(periods)),
        ),
        None: (0, 1),
    }[wave]
    x = keras.ops.convert_to_tensor(X, "float64")
    own_phi = to_numpy(keras.activations.get(activation)(x))
    for way, call in ways_to_call(function):
        values = to_numpy(call(x))
        np.testing.assert_allclose(values, own_phi + height * s(X), rtol=0, atol=1e-9, err_msg=way)
        if wave is None:
            np.testing.assert_array_equal(
                values, to_numpy(dict(ways_to_call(function.activation))[way](x))
            )
    for way, first, second in all_derivatives(function):
        np.testing.assert_allclose(first, phi[1](X) + sign * s(X), rtol=0, atol=2e-6, err_msg=way)
        np.testing.assert_allclose(
            second, phi[2](X) + sign * s_slope(X), rtol=0, atol=1e-5, err_msg=way
        )


def test_the_two_functions_are_the_object_with_their_defaults():
    x = keras.ops.convert_to_tensor(X, "float64")
    others = {"frequency": 50, "gain": 0.5}
    for function, activation, parameters in (
        (gaaf.GAAF_relu, "relu", {}),
        (gaaf.GAAF_relu, "relu", {"shift": 2.0, "slope": 3.0, **others}),
        (gaaf.GAAF_relu, "relu", {"shape": "gaussian", "wave": "round"}),
        (gaaf.GAAF_tanh, "tanh", {}),
        (gaaf.GAAF_tanh, "tanh", {"shape": "sigmoid", "wave": "round", **others}),
        (gaaf.GAAF_tanh, "tanh", {"wave": None}),
    ):
        same = gaaf.GAAF(activation, **parameters)
        given = partial(function, **parameters)
        np.testing.assert_array_equal(to_numpy(given(x)), to_numpy(same(x)))
        gradients = to_numpy(gaaf.gradient(given, x)), to_numpy(gaaf.gradient(same, x))
        np.testing.assert_array_equal(*gradients)


def test_a_shape_is_added_as_the_page_says(monkeypatch):
    """Its name is then known, and stands in what is allowed."""
    monkeypatch.setitem(gaaf._SHAPES, "ramp", lambda x, shift, slope: slope * x + shift)
    monkeypatch.setitem(gaaf._SHAPES, "twice", lambda x, *_: 2 * keras.ops.ones_like(x))
    monkeypatch.setattr(gaaf, "_FOR_RELU_ALONE", (*gaaf._FOR_RELU_ALONE, "twice"))
    for activation, phi, shape, s in (
        ("relu", RELU, "ramp", 3 * X + 0.5),
        ("elu", ELU, "ramp", 3 * X + 0.5),
        ("relu", RELU, "twice", 2),
    ):
        function = gaaf.GAAF(activation, shift=0.5, slope=3.0, shape=shape)
        found = to_numpy(gaaf.gradient(function, keras.ops.convert_to_tensor(X, "float64")))
        np.testing.assert_allclose(found, phi[1](X) + s, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"'ramp', 'twice', a .* 'leaky', 'twice' for relu alone"):
        gaaf.GAAF("elu", shape="twice")


def test_the_papers_shape_is_slope_5_shift_half():
    gradient, _ = derivatives(gaaf.GAAF("relu", shift=0.5, slope=5, wave=None), [-1e-9, -0.5, -1])
    np.testing.assert_allclose(gradient, [0.924, 0.5, 0.076], atol=1e-3)


@pytest.mark.parametrize("wave", ["floor", "round", None])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_float_dtype_keeps_dtype_and_gradient(dtype, wave):
    x = keras.ops.cast(keras.ops.convert_to_tensor(np.linspace(-100, 100, 4001)), dtype)
    exact = to_numpy(x).astype("float64")
    for function, phi, s in (
        (gaaf.GAAF("relu", wave=wave), RELU, sigmoid),
        (gaaf.GAAF("tanh", wave=wave), TANH, gaussian),
    ):
        y = function(x)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        tolerance = {"float16": 1e-3, "bfloat16": 1e-2}.get(dtype, 1e-6)
        np.testing.assert_allclose(
            to_numpy(y), phi[0](exact), rtol=tolerance, atol=tolerance + 0.5e-4
        )
        gradient, _ = derivatives(function, exact, dtype)
        if wave == "round":
            added = np.abs(gradient.astype("float64") - phi[1](exact))
            assert np.all((added < tolerance) | (np.abs(added - s(exact)) < tolerance))
        else:
            np.testing.assert_allclose(
                gradient.astype("float64"), phi[1](exact) + s(exact), rtol=0, atol=2 * tolerance
            )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_slopes_of_half_precision_alternate_as_those_of_float32(dtype):
    x = to_numpy(keras.ops.cast(keras.ops.convert_to_tensor(X), dtype))
    function = gaaf.GAAF("relu", wave="round", shape=None)
    found, expected = (derivatives(function, x, each)[0] for each in (dtype, "float32"))
    assert {-1, 2} < set(expected.ravel())
    np.testing.assert_array_equal(found.astype("float32"), expected)


HALF_PRECISION = {"float16": 2**-10, "bfloat16": 2**-7}  # the distance from 1 to the next number


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("activation", ["relu", "relu6", "tanh", "gelu"])
def test_a_wave_below_the_rounding_error_is_not_added(activation, dtype):
    """And φ is rounded once: values are those of float32, in half precision."""
    x = keras.ops.cast(keras.ops.convert_to_tensor(np.linspace(-8, 8, 4001)[:, None]), dtype)
    phi = keras.activations.get(activation)
    expected = to_numpy(keras.ops.cast(phi(keras.ops.cast(x, "float32")), dtype))
    lost = 1 / HALF_PRECISION[dtype]  # K at which 0.5/K is eps/2
    for way, called in ways_to_call(gaaf.GAAF(activation, shape=None, frequency=1.01 * lost)):
        # tanh may be computed by another library there, to the same digits but for the last.
        y, digit = to_numpy(called(x)), HALF_PRECISION[dtype]
        np.testing.assert_allclose(y, expected, rtol=digit, atol=1e-7, err_msg=way)
        assert np.mean(y == expected) > 0.99, way
    kept = to_numpy(gaaf.GAAF(activation, shape=None, frequency=lost)(x))
    assert np.mean(kept != expected) > 0.1


@pytest.mark.parametrize("dtype", HALF_PRECISION)
def test_a_wave_above_the_rounding_error_is_rounded_once(dtype):
    function = gaaf.GAAF("relu", shape=None, frequency=100)
    rng = np.random.default_rng(0)
    x = np.concatenate([scale * rng.normal(size=10_000) for scale in (1e-3, 1, 1e4)])[:, None]
    x = keras.ops.cast(keras.ops.convert_to_tensor(x, "float32"), dtype)
    expected = to_numpy(keras.ops.cast(function(keras.ops.cast(x, "float32")), dtype))
    for way, called in ways_to_call(function):
        y, digit = to_numpy(called(x)), HALF_PRECISION[dtype]
        np.testing.assert_allclose(y, expected, rtol=digit, atol=1e-5, err_msg=way)
        # A compiler's last digit of float32 decides some that lie in the middle.
        assert np.mean(y == expected) > 0.999, way


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("wave", ["floor", "round", None])
def test_gradients_of_half_precision_are_those_of_float32(wave, dtype):
    x = to_numpy(keras.ops.cast(keras.ops.convert_to_tensor(X[:, None]), dtype)).astype("float32")
    for activation in ("relu", "tanh", "gelu"):
        function = gaaf.GAAF(activation, shape="gaussian", wave=wave, gain=0.7)
        exact, _ = derivatives(function, x, "float32")
        found, _ = derivatives(function, x, dtype)
        digit = HALF_PRECISION[dtype]
        np.testing.assert_allclose(found.astype("float32"), exact, rtol=digit, atol=1e-6)


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_replaces_the_gradient_of_relu(name):
    gradient, _ = derivatives(gaaf.GAAF("relu", wave=None, shape=name), X)
    np.testing.assert_allclose(gradient, SURROGATES[name][0](X), rtol=1e-6, atol=1e-9)
    far, _ = derivatives(gaaf.GAAF("relu", wave=None, shape=name), [-np.inf, -1e30, 1e30, np.inf])
    left = 0.1 if name == "leaky" else 0
    np.testing.assert_allclose(far, [left, left, 1, 1], rtol=1e-6, atol=1e-9)


def gain_cases():
    for activation, parameters, phi, s, s_slope in CASES[::3]:
        for wave in ("floor", "round", None):
            yield activation, {**parameters, "wave": wave}, phi, s, s_slope


@pytest.mark.parametrize("activation, parameters, phi, s, s_slope", [*gain_cases()])
def test_gain_is_a_factor_of_the_gradient_alone(activation, parameters, phi, s, s_slope):
    plain = gaaf.GAAF(activation, **parameters)
    function = gaaf.GAAF(activation, gain=0.25, **parameters)
    x = keras.ops.convert_to_tensor(X, "float64")
    np.testing.assert_array_equal(to_numpy(function(x)), to_numpy(plain(x)))
    for (way, *scaled), (_, *whole) in zip(
        all_derivatives(function), all_derivatives(plain), strict=True
    ):
        for order in (0, 1):
            np.testing.assert_allclose(scaled[order], 0.25 * whole[order], atol=1e-9, err_msg=way)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gain_in_every_dtype(dtype):
    for activation in ("relu", "elu"):
        plain, function = (gaaf.GAAF(activation, shape="sigmoid", gain=gain) for gain in (1, 4))
        x = keras.ops.cast(X, dtype)
        assert keras.backend.standardize_dtype(function(x).dtype) == dtype
        np.testing.assert_array_equal(to_numpy(function(x)), to_numpy(plain(x)))
        np.testing.assert_array_equal(
            derivatives(function, X, dtype)[0], 4 * derivatives(plain, X, dtype)[0]
        )


def test_where_s_is_zero_the_gain_alone_is_left():
    function = gaaf.GAAF("relu", shift=-1e6, wave=None, gain=0.93)
    np.testing.assert_array_equal(to_numpy(function(X)), to_numpy(keras.ops.relu(X)))
    np.testing.assert_allclose(derivatives(function, X)[0], 0.93 * RELU[1](X), rtol=1e-6)


def gain_at_peak(slope):
    x = np.linspace(-25, 25, 2_000_001)
    return 1 / np.abs(slope(x)).max()


@pytest.mark.parametrize("activation, parameters, phi, s, s_slope", CASES)
def test_gain_at_the_peak_of_the_closed_form(activation, parameters, phi, s, s_slope):
    function = gaaf.GAAF(activation, wave=None, gain="peak", **parameters)
    plain = gaaf.GAAF(activation, wave=None, **parameters)
    ratio = derivatives(function, X)[0].sum() / derivatives(plain, X)[0].sum()
    expected = gain_at_peak(lambda x: phi[1](x) + s(x))
    np.testing.assert_allclose(ratio, expected, rtol=1e-3)


def test_gain_at_the_peak_whatever_phi_and_s_are():
    def narrow(x):
        return keras.ops.exp(-1000 * (x - 3) ** 2)

    def negative(x):
        return -keras.ops.sigmoid(x - 1)

    for activation, parameters, slope in (
        ("relu", {}, lambda x: np.full_like(x, 2)),
        ("relu", {"shift": 1e6}, lambda x: np.full_like(x, 2)),
        ("tanh", {}, lambda x: TANH[1](x) + gaussian(x)),
        ("tanh", {"shape": "sigmoid", "slope": 1e4, "shift": -2}, lambda x: TANH[1](x) + (x > 2)),
        ("tanh", {"shape": narrow}, lambda x: TANH[1](x) + np.exp(-1000 * (x - 3) ** 2)),
        (lambda x: 3 * keras.ops.tanh(20 * x), {"shape": None}, lambda x: 60 * TANH[1](20 * x) + 1),
        # Of 1 + s and 1 − s the latter is the larger one.
        ("relu", {"wave": "round", "shape": negative}, lambda x: np.full_like(x, 2)),
    ):
        function = gaaf.GAAF(activation, gain="peak", **parameters)
        gradient = to_numpy(gaaf.gradient(function, [20.0, -20.0])).astype("float64")
        whole = to_numpy(gaaf.gradient(gaaf.GAAF(activation, **parameters), [20.0, -20.0]))
        np.testing.assert_allclose(gradient, whole * gain_at_peak(slope), rtol=1e-3)
        assert function.get_config()["gain"] == "peak" and "gain='peak'" in repr(function)


def test_gain_at_the_peak_is_found_while_something_is_traced():
    x = keras.ops.convert_to_tensor([-1.0, 50.0])
    for way, call in ways_to_call(lambda x: gaaf.GAAF_relu(x, gain="peak")):
        gaaf._searched_gain_at_peak.cache_clear()
        np.testing.assert_allclose(to_numpy(gaaf.gradient(call, x))[1], 1, err_msg=way)
    gaaf._searched_gain_at_peak.cache_clear()
    if BACKEND == "torch":
        import torch

        with torch.inference_mode():
            gaaf.GAAF("relu", gain="peak")(torch.ones(2))


def test_root_mean_squares_are_those_that_the_docstring_gives():
    x = np.linspace(-12, 12, 480_001)
    density = np.exp(-(x**2) / 2)
    for slope, s, expected in (
        (RELU[1], sigmoid, 1.47),
        (RELU[1], partial(sigmoid, shift=0.5, slope=5), 2.05),
        (TANH[1], gaussian, 2.18),
    ):
        ratio = np.sum((slope(x) + s(x)) ** 2 * density) / np.sum(slope(x) ** 2 * density)
        assert f"{np.sqrt(ratio):.2f}" == f"{expected}"
        assert f" {expected} times" in " ".join(gaaf.GAAF.__doc__.split())


def test_relu_and_tanh_of_other_libraries_are_those_of_keras():
    places = [keras.ops]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        places += [tf, tf.nn, tf.math]
    elif BACKEND == "jax":
        import jax

        places += [jax.nn, jax.numpy, jax.lax]
    else:
        import torch

        places += [torch, torch.nn.functional]
    found = 0
    for place in places:
        for name in ("relu", "relu6", "tanh"):
            if hasattr(place, name):
                found += 1
                plain, function = gaaf.GAAF(name), gaaf.GAAF(getattr(place, name))
                assert function.activation is plain.activation
                assert function.shape == plain.shape
    assert found >= 7

    def relu(x):
        return keras.ops.maximum(x, 1)

    assert gaaf.GAAF(relu, shape="sigmoid").activation is relu
    with pytest.raises(ValueError, match="shape: allowed is "):
        gaaf.GAAF(relu)


def test_the_derivative_of_what_does_not_depend_on_x_is_zero():
    for function in (keras.ops.zeros_like, lambda x: 2 * keras.ops.ones_like(x)):
        assert to_numpy(gaaf.gradient(function, [1.0, 2.0])).tolist() == [0, 0]


def test_a_layer_is_an_activation_if_it_has_no_weights():
    layer = keras.layers.ReLU(negative_slope=0.5)
    function = gaaf.GAAF(layer, wave=None, shape=None)
    assert to_numpy(gaaf.gradient(function, [[-1.0, 2.0]])).tolist() == [[1.5, 2]]
    assert gaaf.GAAF(keras.layers.ReLU()).shape == "sigmoid"


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others compile whole steps, or nothing")
def test_only_shapes_known_but_for_the_batch_are_compiled(monkeypatch):
    import tensorflow as tf

    traced, function = [], tf.function

    def counted(body, **options):
        return function(lambda *args: traced.append(body) or body(*args), **options)

    monkeypatch.setattr(tf, "function", counted)
    gaaf._make_function_once.cache_clear()

    def step(x):
        return gaaf.gradient(gaaf.GAAF("relu"), x)

    for length in range(1, 9):
        step(tf.ones((2, length, 4)))
    unknown = function(step, input_signature=[tf.TensorSpec((None, None, 4))])
    for length in range(1, 9):
        unknown(tf.ones((2, length, 4)))
    function(step, input_signature=[tf.TensorSpec(None)])(tf.ones((2, 3)))
    function(step, input_signature=[tf.TensorSpec([None])])(tf.ones(3))
    for batch in (0, 2):  # [-1, 0, 4] says nothing about the batch
        empty = function(step, input_signature=[tf.TensorSpec((None, 0, 4))])
        assert empty(tf.ones((batch, 0, 4))).shape == (batch, 0, 4)
    assert not traced
    images = function(step, input_signature=[tf.TensorSpec((None, 8, 8, 4))])
    for batch in (2, 3, 0):
        assert images(tf.ones((batch, 8, 8, 4))).shape == (batch, 8, 8, 4)
    assert len(traced) == 2  # value and gradient

    # Nor what a shape of one's own may have in it, nor on macOS, where TensorFlow has no XLA.
    traced.clear()
    gaaf._make_function_once.cache_clear()
    own = gaaf.GAAF("relu", shape=lambda x: tf.numpy_function(np.cos, [x], x.dtype))
    known = [tf.TensorSpec((2, 8))]
    function(lambda x: tf.ensure_shape(own(x), (2, 8)), input_signature=known)(tf.ones((2, 8)))
    monkeypatch.setattr(gaaf.platform, "system", lambda: "Darwin")
    function(step, input_signature=known)(tf.ones((2, 8)))
    assert not traced
    gaaf._make_function_once.cache_clear()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow alone has ragged tensors")
def test_ragged_tensors():
    import tensorflow as tf

    x = tf.ragged.constant([[1.0, -2.0], [3.0]])
    deep = tf.RaggedTensor.from_row_lengths(tf.reshape(tf.range(-6.0, 6), (6, 2)), [1, 3, 2])
    for function in (gaaf.GAAF("relu", gain=2), gaaf.GAAF("elu", shape=None), gaaf.GAAF_tanh):
        for ragged in (x, deep):
            for way, call in (("eager", function), ("tf.function", tf.function(function))):
                with tf.GradientTape() as tape:
                    tape.watch(ragged.flat_values)
                    y = call(ragged)
                    total = tf.reduce_sum(y.flat_values)
                assert isinstance(y, tf.RaggedTensor), way
                np.testing.assert_array_equal(y.row_splits, ragged.row_splits)
                np.testing.assert_allclose(y.flat_values, function(ragged.flat_values), atol=1e-7)
                np.testing.assert_allclose(
                    tape.gradient(total, ragged.flat_values),
                    gaaf.gradient(function, ragged.flat_values),
                    atol=1e-7,
                )


@pytest.mark.skipif(BACKEND != "jax", reason="of these, JAX alone has forward mode")
@pytest.mark.parametrize("parameters", [{}, {"gain": 0.5}, {"wave": "round"}, {"wave": None}])
@pytest.mark.parametrize("activation", ["relu", "tanh", "elu"])
def test_forward_mode_is_the_same_derivative(activation, parameters):
    import jax

    function = gaaf.GAAF(activation, shape="gaussian", **parameters)
    x = jax.numpy.asarray(X[:5, 0])
    first, second = derivatives(function, x)
    same = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    ones = jax.numpy.ones_like(x)
    for f in (function, jax.jit(function)):
        value, tangent = jax.jvp(f, (x,), (ones,))
        same(value, function(x))
        same(tangent, first)
        same(jax.linearize(f, x)[1](ones), first)
        same(jax.jacfwd(f)(x), np.diag(first))
        same(jax.jacrev(f)(x), np.diag(first))
        same(jax.hessian(lambda x, f=f: f(x).sum())(x), np.diag(second))
        same(jax.jvp(jax.grad(lambda x, f=f: f(x).sum()), (x,), (ones,))[1], second)
        same(jax.grad(lambda x, f=f: jax.jvp(f, (x,), (ones,))[1].sum())(x), second)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX tells what is kept")
@pytest.mark.parametrize("wave", ["floor", "round", None])
def test_the_backward_pass_keeps_no_more_than_the_input(wave):
    import jax

    x = keras.ops.convert_to_tensor(X, "float32")
    for function in (gaaf.GAAF("relu", wave=wave), gaaf.GAAF("tanh", wave=wave)):
        _, backward = jax.vjp(function, x)
        assert sum(kept.nbytes for kept in jax.tree.leaves(backward)) <= x.nbytes


@pytest.mark.parametrize("wave", ["floor", "round", None])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_infinities_and_nan(dtype, wave):
    """Of NaN, those too all of whose bits are set, to which rounding by bits would add 1."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    all_set = np.full(kind.itemsize, 0xFF, "uint8").view(kind)
    x = np.concatenate([np.array([np.inf, -np.inf, np.nan], kind), all_set, -all_set])
    assert np.isnan(x).tolist() == [False, False, True, True, True]
    x = keras.ops.convert_to_tensor(x[:, None], dtype)
    nan = 3 * [np.nan]
    for frequency in (10_000, 10):
        for activation, limits in {
            "relu": [np.inf, 0],
            "tanh": [1, -1],
            "elu": [np.inf, -1],
        }.items():
            function = gaaf.GAAF(activation, wave=wave, shape="sigmoid", frequency=frequency)
            for way, called in ways_to_call(function):
                y = to_numpy(called(x)).ravel()
                np.testing.assert_allclose(y, limits + nan, atol=0.51 / frequency, err_msg=way)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's debugger")
def test_numerics_are_checked_as_the_page_says():
    """With run_eagerly=True: TensorFlow cannot check what XLA compiles."""
    import tensorflow as tf

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, gaaf.GAAF_relu)])
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.ones((2, 4), "float32")
    tf.debugging.enable_check_numerics()
    try:
        model.fit(x, x[:, :3], verbose=0)
        with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
            gaaf.gradient(gaaf.GAAF("relu", shape=lambda x: keras.ops.log(x)), [-1.0])
    finally:
        tf.debugging.disable_check_numerics()


@pytest.mark.parametrize("wave", ["floor", "round"])
def test_values_stay_within_half_a_period_where_floats_are_coarse(wave):
    x = -np.logspace(0, 9, 5001).astype("float32")
    for way, function in ways_to_call(gaaf.GAAF("relu", wave=wave, shape=None)):
        assert np.abs(to_numpy(function(keras.ops.convert_to_tensor(x)))).max() <= 0.5001e-4, way


@pytest.mark.parametrize(
    "name, mistake",
    [
        ("wave", lambda: gaaf.GAAF_relu(X, wave="square")),
        ("wave", lambda: gaaf.GAAF("tanh", wave=True)),
        ("shape", lambda: gaaf.GAAF_tanh(X, shape="triangle")),
        ("shape", lambda: gaaf.GAAF("elu")),
        ("frequency", lambda: gaaf.GAAF_relu(X, frequency=0)),
        ("frequency", lambda: gaaf.GAAF_tanh(X, frequency=-1)),
        ("frequency", lambda: gaaf.GAAF_relu(X, frequency=float("inf"))),
        ("frequency", lambda: gaaf.GAAF_relu(X, frequency=float("nan"))),
        ("frequency", lambda: gaaf.GAAF_relu(X, frequency=None)),
        ("shift", lambda: gaaf.GAAF_relu(X, shift=float("nan"))),
        ("shift", lambda: gaaf.GAAF_relu(X, shift="1")),
        ("slope", lambda: gaaf.GAAF_relu(X, slope=float("-inf"))),
        ("slope", lambda: gaaf.GAAF_relu(X, slope=True)),
        ("strength", lambda: gaaf.GAAF.from_config({"activation": "relu", "strength": 0.5})),
        ("gain", lambda: gaaf.GAAF("relu", gain=0)),
        ("gain", lambda: gaaf.GAAF_relu(X, gain=-1.0)),
        ("gain", lambda: gaaf.GAAF_tanh(X, gain=float("inf"))),
        ("gain", lambda: gaaf.GAAF("relu", gain="max")),
        ("gain", lambda: gaaf.GAAF("relu", gain=None)),
        ("gain", lambda: gaaf.GAAF("exponential", shape=None, gain="peak")),
        ("gain", lambda: gaaf.GAAF(keras.ops.square, shape=None, gain="peak")),
        ("gain", lambda: gaaf.GAAF(keras.ops.sign, shape=lambda x: 0 * x, gain="peak")),
        ("shape", lambda: gaaf.GAAF("relu", shape=["sigmoid"])),
        ("shape", lambda: gaaf.GAAF("tanh", shape="bsilu")),
        ("shape", lambda: gaaf.GAAF("relu6", shape="leaky")),
        ("shape", lambda: gaaf.GAAF("elu", shape="nelu")),
        ("activation", lambda: gaaf.GAAF(keras.layers.PReLU(), shape="sigmoid")),
        ("activation", lambda: gaaf.GAAF(keras.layers.Dense(1), shape="sigmoid")),
        ("activation", lambda: gaaf.GAAF(keras.layers.LSTM(1), shape="sigmoid")),
        ("activation", lambda: gaaf.GAAF(keras.Sequential([keras.layers.PReLU()]), shape=None)),
        ("x", lambda: gaaf.GAAF_relu(np.arange(3))),
        ("x", lambda: gaaf.GAAF_tanh(True)),
        ("x", lambda: gaaf.GAAF_relu(keras.Input((3,), dtype="int32"))),
        ("activation", lambda: gaaf.GAAF("rleu")),
        ("activation", lambda: gaaf.get("GAAF_rleu")),
        ("activation", lambda: gaaf.get(7)),
        ("activation", lambda: gaaf.get(np.ones(3))),
        ("activation", lambda: gaaf.GAAF(keras.layers.ReLU, shape="sigmoid")),
        ("activation", lambda: gaaf.get({"class_name": "Nothing", "config": {}})),
    ],
)
def test_a_mistake_is_told_in_one_line(name, mistake):
    with pytest.raises((ValueError, TypeError)) as caught:
        mistake()
    message = str(caught.value)
    assert message.startswith(f"{name}: allowed is ") and "; received " in message
    assert "\n" not in message


def test_get():
    assert gaaf.get("GAAF_relu") is gaaf.GAAF_relu
    assert gaaf.get("GAAF_tanh") is gaaf.GAAF_tanh
    assert gaaf.get("gelu") is keras.activations.gelu
    assert gaaf.get(None) is keras.activations.linear
    assert gaaf.get(np.tanh) is np.tanh
    for original in (
        gaaf.GAAF_relu,
        gaaf.GAAF("tanh", frequency=7, wave="round", shape=None),
        gaaf.GAAF("relu", wave=None, shape="bsilu", gain="peak"),
    ):
        copy = gaaf.get(keras.activations.serialize(original))
        x = keras.ops.convert_to_tensor(X)
        np.testing.assert_array_equal(to_numpy(copy(x)), to_numpy(original(x)))
        np.testing.assert_array_equal(
            to_numpy(gaaf.gradient(copy, x)), to_numpy(gaaf.gradient(original, x))
        )


def saved_with_strength(strength):
    """The config of a GAAF as versions with a factor of s saved it."""
    saved = keras.activations.serialize(gaaf.GAAF("relu", shift=0.25))
    saved["config"]["strength"] = strength
    return saved


def test_a_config_saved_with_the_strength_1_is_read_as_before():
    assert gaaf.get(saved_with_strength(1.0)).shift == 0.25


def test_a_config_saved_before_there_was_a_gain_has_the_papers():
    config = keras.saving.serialize_keras_object(gaaf.GAAF("relu", shape=keras.ops.sigmoid))
    del config["config"]["gain"]
    assert keras.saving.deserialize_keras_object(config).gain == 1


def model_of_every_kind():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation=gaaf.GAAF_tanh)(inputs)
    x = keras.layers.Dense(8, activation=gaaf.GAAF("relu", 0.5, 5, 200, "round", None))(x)
    x = gaaf.GAAF_relu(x, shift=2, frequency=30)  # a function, on a symbolic tensor
    x = keras.layers.Activation(gaaf.GAAF("elu", wave=None, shape=keras.ops.sigmoid))(x)
    x = gaaf.GAAF("tanh", frequency=3, gain="peak")(keras.layers.Dense(8)(x))
    x = keras.layers.Dense(8, activation=gaaf.GAAF("relu", wave=None, shape="nelu", gain=0.7))(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile("adam", "mse")
    return model


IN_A_FRESH_PROCESS = """
import sys
import numpy as np
import gaaf
import keras

data = np.load(sys.argv[2])
model = keras.models.load_model(sys.argv[1])
predicted = model.predict(data["x"], verbose=0)
np.testing.assert_allclose(predicted, data["predicted"], rtol=1e-5, atol=1e-6)
step = int(model.optimizer.iterations)
model.fit(data["x"], data["y"], verbose=0)
assert int(model.optimizer.iterations) > step > 0
assert not np.allclose(model.predict(data["x"], verbose=0), predicted, atol=1e-6)
"""


def check_in_a_fresh_process(model, x, y, directory):
    """Trains and saves the model; another process that only imports gaaf loads and trains it."""
    model.fit(x, y, verbose=0)
    model.save(directory / "model.keras")
    np.savez(directory / "data.npz", x=x, y=y, predicted=model.predict(x, verbose=0))
    subprocess.run(
        [
            sys.executable,
            "-c",
            IN_A_FRESH_PROCESS,
            directory / "model.keras",
            directory / "data.npz",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )


def test_a_saved_model_loads_in_a_fresh_process_and_trains_on(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("float32"), rng.normal(size=(64, 2)).astype("float32")
    check_in_a_fresh_process(model_of_every_kind(), x, y, tmp_path)


@pytest.mark.slow
def test_a_resnet_of_a_name_loads_in_a_fresh_process_and_trains_on(tmp_path):
    from resnet_v1 import resnet_v1

    rng = np.random.default_rng(0)
    model = resnet_v1((32, 32, 3), 8, activation="GAAF_relu")
    model.compile("adam", "sparse_categorical_crossentropy")
    x = rng.normal(size=(8, 32, 32, 3)).astype("float32")
    check_in_a_fresh_process(model, x, np.arange(8), tmp_path)


def test_clone_model_keeps_parameters():
    model = model_of_every_kind()
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))


torch_compiles_slowly = [pytest.mark.slow] * (BACKEND == "torch")


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=torch_compiles_slowly), False])
def test_training_compiled_and_not(compiled):
    keras.utils.set_random_seed(0)  # with some initial weights it takes more epochs
    model = model_of_every_kind()
    model.compile("adam", "mse", jit_compile=compiled)
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    losses = model.fit(x, x[:, :2], epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_gaaf_runs_where_there_is_no_tensorflow():
    pytest.importorskip("jax")
    code = (
        "import sys; import gaaf; print(gaaf.GAAF_relu(-2.0)); "
        "assert 'tensorflow' not in sys.modules"
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout)) < 0.5e-4


def test_public_names_have_docstrings_of_one_form():
    for thing in (gaaf.GAAF, gaaf.GAAF_relu, gaaf.GAAF_tanh, gaaf.get):
        text = inspect.getdoc(thing)
        assert "Args:" in text and "Returns:" in text and "Raises:" in text


def test_gradient_is_the_derivative():
    x = np.linspace(-3, 3, 12).reshape(3, 4)
    np.testing.assert_allclose(
        to_numpy(gaaf.gradient(gaaf.GAAF("tanh", shape=None), x)), 2 - np.tanh(x) ** 2, rtol=1e-6
    )
    assert to_numpy(gaaf.gradient(keras.activations.relu, [-1.0, 2.0])).tolist() == [0, 1]


def test_there_is_a_gradient_while_a_model_predicts():
    class Slope(keras.layers.Layer):
        def call(self, x):
            return gaaf.gradient(gaaf.GAAF("relu", shape=None), x)

    model = keras.Sequential([keras.Input((2,)), Slope()])
    assert model.predict(np.array([[-1.0, 2.0]]), verbose=0).tolist() == [[1, 2]]


def test_repr_is_what_makes_it_again():
    function = gaaf.GAAF("relu", shift=0.5, slope=5, wave=None, gain="peak", name="gaaf")
    again = eval(repr(function).replace("GAAF(", "gaaf.GAAF(name='gaaf', "))
    assert again.get_config() == function.get_config()


@pytest.mark.parametrize("gain", [1.0, "peak"])
def test_a_shape_and_an_activation_without_a_hash(gain):
    """Such as the objects of a dataclass."""

    @dataclasses.dataclass
    class Bell:
        width: float

        def __call__(self, x):
            return keras.ops.exp(-keras.ops.square(x) / self.width)

    x = np.linspace(-5, 5, 10001)
    bell = np.exp(-(x**2) / 3)
    for function, slope in (
        (gaaf.GAAF("tanh", shape=Bell(3.0), gain=gain), 1 - np.tanh(x) ** 2 + bell),
        (gaaf.GAAF(Bell(3.0), shape="gaussian", gain=gain), -2 / 3 * x * bell + bell),
    ):
        factor = 1 if gain == 1.0 else 1 / np.abs(slope).max()
        found = keras.ops.convert_to_numpy(gaaf.gradient(function, x))
        np.testing.assert_allclose(found, factor * slope, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="shape: allowed is"):
        gaaf.GAAF(Bell(3.0))


@pytest.mark.parametrize("wave", ["floor", "round", None])
@pytest.mark.parametrize("activation, gain", [("relu", 1.0), ("tanh", 0.5), ("elu", 0.5)])
def test_maps_over_a_batch(activation, gain, wave):
    function = gaaf.GAAF(activation, wave=wave, shape="gaussian", gain=gain)
    x = keras.ops.convert_to_tensor(X, "float32")
    mapped = keras.ops.vectorized_map(function, x)
    np.testing.assert_allclose(to_numpy(mapped), to_numpy(function(x)), rtol=0, atol=1e-6)


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch's transforms")
def test_transforms_of_torch():
    import torch

    function, x = gaaf.GAAF("tanh", wave=None), torch.tensor(0.3)
    slope, curvature = derivatives(function, [0.3], "float32")
    found = torch.func.grad(function)(x), torch.func.jvp(function, (x,), (torch.ones(()),))[1]
    np.testing.assert_allclose(found, [slope[0]] * 2, rtol=1e-6)
    np.testing.assert_allclose(torch.func.hessian(function)(x), curvature[0], rtol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="which would keep it for good")
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_rematerialisation_keeps_nothing(activation):
    import torch

    kept, function = [], gaaf.GAAF(activation, shape="gaussian", gain=0.5)

    def block(x):
        for _ in range(3):
            x = x * 1.5
            kept.append(weakref.ref(x))
            x = function(x)
        return x

    x = torch.ones(2, 8, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    assert not any(each() is not None for each in kept)
    y.sum().backward()
    assert np.isfinite(x.grad).all()


def test_the_weight_of_a_layer():
    class Gate(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1],), initializer="ones", name="w")

        def call(self, x):
            return x * gaaf.GAAF_tanh(self.w, wave=None)

    model = keras.Sequential([keras.Input((4,)), Gate()])
    model.compile(keras.optimizers.SGD(1.0), "mean_absolute_error", run_eagerly=True)
    model.fit(np.ones((2, 4)), np.zeros((2, 4)), verbose=0)
    slope = 1 - np.tanh(1) ** 2 + np.exp(-1 / 3)
    np.testing.assert_allclose(to_numpy(model.weights[0]), [1 - slope / 4] * 4, rtol=1e-5)


@pytest.mark.parametrize(
    "activation, shape", [("relu", "cos"), ("exp", "sin"), ("relu", "sigmoid"), ("gelu", "cos")]
)
def test_functions_of_keras_are_found_again(activation, shape, tmp_path):
    phi = activation if activation == "relu" else getattr(keras.ops, activation)
    dense = keras.layers.Dense(3, gaaf.GAAF(phi, shape=getattr(keras.ops, shape)))
    keras.Sequential([keras.Input((4,)), dense]).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").layers[-1].activation
    x = keras.ops.convert_to_tensor(X)
    for f in (lambda a: a(x), lambda a: gaaf.gradient(a, x)):
        np.testing.assert_array_equal(to_numpy(f(loaded)), to_numpy(f(dense.activation)))
