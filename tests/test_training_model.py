"""The model to train, its optimizer, and what changes of them from epoch to epoch."""

import keras
import numpy as np
import pytest
from backends import once, to_numpy

import gaaf
import main
from training import Mistake
from training.data import Data
from training.identity import config_of
from training.learning_rate import factor_at
from training.model import (
    NO_ACTIVATIONS,
    activation_of,
    build,
    learning_rate,
    optimizer,
    require_buildable,
)

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (32, 32, 32, 3), dtype="uint8")
Y = (np.arange(32) % 10).astype("int32")
IMAGES = Data(X, Y, X, Y)


def built(**settings):
    return build(main.Settings(**{"depth": 8, **settings}), IMAGES)


@pytest.mark.parametrize("subtract_pixel_mean", [True, False])
def test_normalisation_is_part_of_the_model(subtract_pixel_mean):
    model = built(subtract_pixel_mean=subtract_pixel_mean)
    x = X / 255
    if subtract_pixel_mean:
        x = x - x.mean(axis=0)
    np.testing.assert_allclose(
        model.predict(X, verbose=0),
        model.layers[-1].predict(x.astype("float32"), verbose=0),
        atol=1e-5,
    )


@pytest.mark.parametrize("version, resnet", [(1, "resnet20_v1"), (2, "resnet20_v2")])
def test_the_network_has_the_activation_of_the_settings(version, resnet):
    def network(**settings):
        return built(depth=20, version=version, **settings).layers[-1]

    made = network(shift=2.0, slope=3.0, wave="none", shape="none")
    activation = made.get_layer("stem_act").activation
    assert made.name == resnet
    assert (activation.shift, activation.slope) == (2.0, 3.0)
    assert activation.wave is None and activation.shape is None
    activation = network(activation="GAAF_tanh", frequency=50.0).get_layer("stem_act").activation
    assert activation.activation is keras.activations.tanh
    assert (activation.frequency, activation.shape) == (50.0, "gaussian")
    made = network(activation="relu")
    assert made.get_layer("stem_act").activation is keras.activations.relu


def test_every_keras_activation_gets_gaaf():
    for name in ("elu", "silu", "hard_sigmoid", "leaky_relu", "softplus"):
        settings = main.Settings(activation=f"GAAF_{name}", shape="gaussian", slope=2.0)
        activation = activation_of(settings)
        assert activation.activation is getattr(keras.activations, name)
        assert (activation.shape, activation.slope) == ("gaussian", 2.0)
        plain = activation_of(main.Settings(activation=name))
        assert plain is getattr(keras.activations, name)


@pytest.mark.parametrize(
    "activation, nearest",
    [
        ("rleu", "relu"),
        ("GAAF_rleu", "GAAF_relu"),
        ("GAAF_TANH", "GAAF_"),
        ("ELU", "elu"),
        ("gaaf_relu", "GAAF_relu"),
        ("GAAF_GAAF_relu", "GAAF_relu"),
        ("", ""),
        ("GAAF_", "GAAF_"),
        ("get", ""),
        ("ReLU", "relu"),
        ("deserialize", ""),
        ("glu", "gelu"),
        ("GAAF_threshold", ""),
    ],
)
def test_a_mistyped_activation_is_told_with_the_three_nearest(activation, nearest):
    with pytest.raises(Mistake, match=r"^activation: ") as caught:
        require_buildable(main.Settings(activation=activation))
    message = str(caught.value)
    assert message.endswith(f"; received {activation!r}") and "\n" not in message
    names = message.split("nearest ")[1].split("; received")[0].split(", ")
    assert len(names) == 3 and any(nearest in name for name in names)
    for name in names:
        require_buildable(main.Settings(activation=name, shape="sigmoid"))


@once
def test_every_name_that_is_allowed_can_be_trained_with():
    x = keras.ops.convert_to_tensor(RNG.normal(size=(2, 4, 4, 8)).astype("float32"))
    names = {name for name in dir(keras.activations) if name[0].islower()} - NO_ACTIVATIONS
    assert len(names) > 20
    for name in names:
        unbounded = name in ("exponential", "log_softmax")  # their slopes have no peak
        accelerated = {"activation": f"GAAF_{name}", "shape": "gaussian"}
        if unbounded:
            with pytest.raises(Mistake, match=r"^gain: .*'peak' where φ′ \+ s has a bound"):
                require_buildable(main.Settings(**accelerated))
            accelerated["gain"] = 1.0
        for settings in ({"activation": name}, accelerated):
            require_buildable(main.Settings(**settings))
            assert activation_of(main.Settings(**settings))(x).shape == x.shape, settings


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"depth": 21}, "depth: .*, nearest 20 and 26; received 21"),
        ({"depth": 32, "version": 2}, "depth: .* 9n"),
        (
            {"activation": "GAAF_elu"},
            "shape: allowed with activation GAAF_elu is one of sigmoid, gaussian, none; received",
        ),
        (
            {"activation": "GAAF_tanh", "shape": "bsilu"},
            "shape: allowed .* is one of auto, sigmoid, gaussian, none; received 'bsilu'",
        ),
    ],
)
def test_what_cannot_be_built_is_told_before_any_data_is_read(settings, words):
    with pytest.raises(Mistake, match=f"^{words}"):
        require_buildable(main.Settings(**settings))


@pytest.mark.parametrize("floatx", ["float16", "bfloat16", "float64"])
def test_another_float_in_keras_json_is_refused(floatx, npz, tmp_path):
    keras.config.set_floatx(floatx)
    try:
        with pytest.raises(Mistake, match=f"^floatx: .* keras.json .*; received {floatx}$"):
            main.train(main.Settings(depth=8, data=str(npz), output_dir=str(tmp_path / "run")))
    finally:
        keras.config.set_floatx("float32")
    assert not (tmp_path / "run").exists()


@once
def test_the_channels_come_last_whatever_keras_json_says():
    sizes = {1: 274_442, 2: 574_090}
    for version, parameters in sizes.items():
        seen = {}
        for order in ("channels_last", "channels_first"):
            keras.config.set_image_data_format(order)
            try:
                keras.utils.set_random_seed(0)
                model = built(version=version, depth=20)
                assert model.count_params() == parameters
                seen[order] = model.predict(X[:4], verbose=0)
            finally:
                keras.config.set_image_data_format("channels_last")
        np.testing.assert_array_equal(*seen.values())


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_of_this_model_alone(precision):
    model = built(precision=precision)
    assert keras.config.dtype_policy().name == "float32"
    assert model.layers[-1].get_layer("stem_act").compute_dtype == precision.removeprefix("mixed_")
    model.compile(optimizer(main.Settings()))
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (precision == "mixed_float16")


def kernels(model):
    return [x for x in model.layers[-1].layers if isinstance(x, keras.layers.Conv2D)]


@pytest.mark.parametrize("name, penalised", [("adam", True), ("sgd", True), ("adamw", False)])
def test_the_weight_decay_is_in_the_loss_or_decoupled(name, penalised):
    model = built(optimizer=name, weight_decay=5e-4)
    squares = sum(np.square(to_numpy(x.kernel)).sum() for x in kernels(model))
    expected = 5e-4 * squares if penalised else 0
    assert sum(float(x) for x in model.losses) == pytest.approx(expected, rel=1e-4)
    assert not built(optimizer=name, weight_decay=0.0).losses


def test_the_optimizers():
    def made(**settings):
        return optimizer(main.Settings(**settings))

    adam, adamw, sgd = made(), made(optimizer="adamw"), made(optimizer="sgd")
    assert config_of(adam) == config_of(keras.optimizers.Adam(1e-3))
    assert config_of(adamw) == config_of(keras.optimizers.AdamW(1e-3, weight_decay=2e-2))
    nesterov = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    assert config_of(sgd) == config_of(nesterov)
    for name in ("adam", "adamw", "sgd"):
        assert float(made(optimizer=name, learning_rate=0.5).learning_rate) == 0.5
    slow = made(optimizer="adamw", learning_rate=1e-4, weight_decay=5e-4)
    assert slow.weight_decay == pytest.approx(2 * 5e-4 * 0.1 / 1e-4)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="new in Keras 3.15")
def test_the_same_optimizers_made_again_are_the_same():
    """Keras numbers their names, and a function has an address."""

    def by_name(rate):
        sgd, other = keras.optimizers.SGD(rate), keras.optimizers.SGD(1.0)
        return keras.optimizers.OptimizerMap(sgd, {"classifier/.*": other})

    def by_function(rate):
        sgd = keras.optimizers.SGD(rate)
        return lambda variable, sgd=sgd: sgd

    for chosen in (by_name, by_function):
        first, second = (keras.optimizers.MultiOptimizer(chosen(0.5)) for _ in range(2))
        assert config_of(first) == config_of(second), chosen
    other = config_of(keras.optimizers.MultiOptimizer(by_name(0.25)))
    assert other != config_of(keras.optimizers.MultiOptimizer(by_name(0.5)))


def test_adamw_decays_the_kernels_of_the_convolutions_alone():
    model = built(optimizer="adamw")
    before = [to_numpy(v) for v in model.trainable_variables]
    adamw = optimizer(main.Settings(optimizer="adamw"), model)
    zero = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    adamw.apply(zero, model.trainable_variables)  # what is left is the decay
    decayed = {id(layer.kernel) for layer in kernels(model)}
    assert len(decayed) == 9
    for variable, value in zip(model.trainable_variables, before, strict=True):
        factor = 1 - 2e-2 * 1e-3 if id(variable) in decayed else 1
        np.testing.assert_allclose(to_numpy(variable), factor * value, rtol=3e-7, atol=1e-12)


def test_the_first_decay_of_adamw_is_that_of_sgd():
    """A step of SGD of the penalty alone, at its usual rate, shrinks a weight as much."""
    sgd = optimizer(main.Settings(optimizer="sgd", weight_decay=5e-4))
    adamw = optimizer(main.Settings(optimizer="adamw", weight_decay=5e-4, learning_rate=3e-3))
    shrunk = []
    for each, gradient in ((sgd, 2 * 5e-4 * 2.0), (adamw, 0.0)):
        weight = keras.Variable([2.0])
        each.momentum = 0.0
        each.nesterov = False
        each.apply([keras.ops.convert_to_tensor([gradient])], [weight])
        shrunk.append(2 - float(to_numpy(weight)[0]))
    assert shrunk[0] == pytest.approx(2e-4, rel=1e-2)
    assert shrunk[1] == pytest.approx(shrunk[0], rel=1e-2)


@pytest.mark.parametrize(
    "epochs, marks", [(200, (80, 120, 160, 180)), (10, (4, 6, 8, 9)), (1, (1, 1, 1, 1))]
)
def test_learning_rate_falls_at_the_marks(epochs, marks):
    settings = main.Settings(epochs=epochs)
    factors = [factor_at(epoch, settings) for epoch in range(epochs)]
    bounds = [0, *marks, epochs]
    for factor, start, end in zip(
        (1, 0.1, 0.01, 0.001, 0.0005), bounds[:-1], bounds[1:], strict=True
    ):
        assert factors[start:end] == [factor] * (end - start)


def test_other_schedules():
    cosine = main.Settings(schedule="cosine", epochs=4)
    half = np.sqrt(0.5) / 2
    expected = [1, 0.5 + half, 0.5, 0.5 - half]
    assert [factor_at(epoch, cosine) for epoch in range(4)] == pytest.approx(expected)
    constant = main.Settings(schedule="constant", epochs=4)
    assert [factor_at(epoch, constant) for epoch in range(4)] == [1] * 4


@pytest.mark.parametrize("name, rate", [("adam", 1e-3), ("adamw", 1e-3), ("sgd", 0.1)])
def test_the_first_learning_rate_suits_the_optimizer(name, rate):
    assert learning_rate(main.Settings(optimizer=name)) == rate
    assert learning_rate(main.Settings(learning_rate=7)) == 7


@pytest.mark.parametrize("gain", ["peak", 1.0, 0.7])
def test_the_gain_is_that_of_the_settings(gain):
    assert activation_of(main.Settings(gain=gain)).gain == gain


def test_no_slope_of_the_default_activation_is_above_1():
    x = np.linspace(-20, 20, 4001, dtype="float32")
    slope = keras.ops.convert_to_numpy(gaaf.gradient(activation_of(main.Settings()), x))
    assert slope.max() == pytest.approx(1, abs=1e-3)
