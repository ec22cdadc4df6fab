"""What TensorFlow computes in another way on a CPU is what plain Keras computes."""

import keras
import numpy as np
import pytest
from backends import BACKEND, once

import main
from training import batches, devices, tensorflow_cpu
from training.data import Data
from training.model import build, make_variables, optimizer

tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow alone does it")
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (48, 32, 32, 3), dtype="uint8")
Y = (np.arange(48) % 10).astype("int32")


def model_of(fast, monkeypatch, **settings):
    """The model of `main.py`, or the same with Keras' own normalisation."""
    keras.utils.set_random_seed(0)
    settings = main.Settings(**{"depth": 8, "activation": "GAAF_relu", **settings})
    with monkeypatch.context() as patch:
        if not fast:
            patch.setattr(tensorflow_cpu, "speed_up_normalization", lambda network: None)
        model = build(settings, Data(X, Y, X, Y))
    model.compile(
        optimizer(settings, model),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=devices.jit_compile(),
    )
    make_variables(model, Data(X, Y, X, Y), 32)
    return model


def normalizations(model):
    return [x for x in model.layers[-1].layers if isinstance(x, keras.layers.BatchNormalization)]


@once
@pytest.mark.parametrize("version, depth", [(1, 8), (2, 11)])
def test_training_is_that_of_plain_keras(version, depth, monkeypatch):
    ours, plain = (
        model_of(fast, monkeypatch, version=version, depth=depth, learning_rate=1e-5)
        for fast in (True, False)
    )
    for step in range(3):
        a = ours.train_on_batch(X[:16], Y[:16], return_dict=True)
        b = plain.train_on_batch(X[:16], Y[:16], return_dict=True)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)  # with all L2 penalties
        assert a["accuracy"] == b["accuracy"]
        if step:
            continue
        # Adam's momentums are the gradients now, and the moving averages are a step old.
        for x, y in zip(ours.optimizer.variables, plain.optimizer.variables, strict=True):
            if "momentum" in x.path:
                # Rounding takes a few inputs of the activations over the step in φ′; and the
                # gradient of a bias before a normalisation is nothing but rounding.
                difference = np.linalg.norm(x.numpy() - y.numpy())
                assert difference < 0.01 * np.linalg.norm(y.numpy()) + 1e-4, x.path
        for x, y in zip(ours.non_trainable_weights, plain.non_trainable_weights, strict=True):
            # n/(n-1) in the moving variances: of 16 images of 8×8 or more pixels.
            tolerance = 1e-3 if "moving_variance" in x.path else 1e-4
            np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=tolerance, atol=1e-6)


@tensorflow
def test_the_operation_is_used_where_it_does_what_keras_does(monkeypatch):
    def calls(model):
        return {getattr(x.call, "__func__", x.call).__name__ for x in normalizations(model)}

    assert calls(model_of(True, monkeypatch)) == {"_fused"}
    with monkeypatch.context() as patch:
        patch.setattr(devices, "count", lambda: 2)
        assert calls(model_of(True, patch)) == {"_over_all_devices"}
    fused = tensorflow_cpu._fused

    def different(layer, inputs, training=None, mask=None):
        return fused(layer, inputs, training) * 1.01

    def failing(layer, inputs, training=None, mask=None):
        raise AttributeError("Keras has changed")

    for other in (different, failing):
        with monkeypatch.context() as patch:
            patch.setattr(tensorflow_cpu, "_fused", other)
            assert calls(model_of(True, patch)) == {"call"}


@tensorflow
def test_the_step_is_traced_once(monkeypatch):
    """Also with a last batch that is smaller, and with the tests after each epoch."""
    model = model_of(True, monkeypatch, batch_size=20)
    traced = []
    network = model.layers[-1]
    call = network.call

    def counting(inputs, training=None, mask=None):
        traced.append(training)
        return call(inputs, training=training, mask=mask)

    network.call = counting
    given = batches.feed(main.Settings(batch_size=20), Data(X, Y, X, Y))
    model.fit(**given, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 6
    assert traced.count(True) == 1 and len(traced) <= 2


@once
def test_a_saved_model_predicts_what_the_accelerated_one_does(monkeypatch, tmp_path):
    model = model_of(True, monkeypatch, version=2, depth=11)
    model.train_on_batch(X[:16], Y[:16])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-4, atol=1e-6
    )
    model.reset_metrics()  # of the step before, as Keras 3.12 does not
    assert loaded.train_on_batch(X[:16], Y[:16], return_dict=True)["loss"] == pytest.approx(
        model.train_on_batch(X[:16], Y[:16], return_dict=True)["loss"], rel=1e-4
    )


def test_a_saved_or_copied_model_is_plain_keras(monkeypatch, tmp_path):
    model = model_of(True, monkeypatch)
    model.save(tmp_path / "model.keras")
    for copy in (
        keras.models.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
    ):
        for layer in normalizations(copy):
            assert type(layer).call is keras.layers.BatchNormalization.call
            assert "call" not in vars(layer) and not layer.synchronized


SETTINGS = main.Settings(depth=8, batch_size=16)


def trained(small_graph, monkeypatch, optimizer="adam", **compiled):
    monkeypatch.setattr(tensorflow_cpu, "DEEP", 0 if small_graph else 1000)
    keras.utils.set_random_seed(0)
    model = build(SETTINGS, Data(X, Y, X, Y))
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False, **compiled)
    make_variables(model, Data(X, Y, X, Y), 32)
    tensorflow_cpu.shrink_graph(model)
    given = batches.feed(SETTINGS, Data(X, Y, X, Y))
    return model, model.fit(**given, epochs=2, verbose=0).history["loss"]


@tensorflow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_smaller_graph_trains_as_that_of_keras(optimizer, monkeypatch):
    small, losses = trained(True, monkeypatch, optimizer)
    _, expected = trained(False, monkeypatch, optimizer)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert int(small.optimizer.iterations) == 6
    assert small.train_function.python_function.__module__ == tensorflow_cpu.__name__
    own = optimizer == "sgd"  # of which there is one operation in Keras' step already
    assert (small.optimizer.update_step.__func__.__module__ == tensorflow_cpu.__name__) != own


@tensorflow
def test_an_adam_with_another_formula_is_left_to_keras(monkeypatch):
    model, _ = trained(True, monkeypatch, keras.optimizers.Adam(amsgrad=True))
    assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step


@tensorflow
def test_an_adam_whose_variables_share_a_path_is_left_to_keras(monkeypatch):
    def network():
        x = keras.Input((4,))
        return keras.Model(x, keras.layers.Dense(4, name="dense")(x))

    monkeypatch.setattr(tensorflow_cpu, "DEEP", 0)
    model = keras.Sequential([keras.Input((4,)), network(), network()])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    make_variables(model, Data(X, Y, X, Y), 32)
    tensorflow_cpu.shrink_graph(model)
    assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step


@tensorflow
@pytest.mark.parametrize("settings", [{}, {"wave": "none"}, {"precision": "mixed_bfloat16"}])
def test_tensorflow_can_optimise_the_graph(settings, monkeypatch, capfd):
    model = model_of(True, monkeypatch, **settings)
    tensorflow_cpu.shrink_graph(model)  # of a deep network nothing is optimised, so nothing fails
    model.evaluate(X[:8], Y[:8], verbose=0)
    assert "meta_optimizer" not in capfd.readouterr().err


@tensorflow
def test_run_eagerly_is_left_alone(monkeypatch):
    model, _ = trained(True, monkeypatch, run_eagerly=True)
    assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step


@tensorflow
def test_networks_that_are_not_deep_are_left_alone(monkeypatch):
    import tensorflow as tf

    trained(True, monkeypatch)  # its graph is not optimised, but the next one is again
    assert tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]
    model, _ = trained(False, monkeypatch)
    assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step
    assert not tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]


@tensorflow
def test_what_keras_no_longer_does_is_left_to_keras(monkeypatch):
    assert tensorflow_cpu._steps_as_keras(tensorflow_cpu._adam_step)

    def twice(optimizer, variables):
        step = tensorflow_cpu._adam_step(optimizer, variables)
        return lambda gradient, variable, rate: step(gradient, variable, 2 * rate)

    def fails(optimizer, variables):
        raise AttributeError("as if Keras had renamed it")

    for other in (twice, fails):
        assert not tensorflow_cpu._steps_as_keras(other)
        monkeypatch.setattr(tensorflow_cpu, "_adam_step", other)
        model, losses = trained(True, monkeypatch)
        assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step
        assert np.isfinite(losses).all()


@tensorflow
def test_the_model_is_saved_as_plain_keras(monkeypatch, tmp_path):
    model, _ = trained(True, monkeypatch)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras.optimizers.Adam
    before = [v.numpy() for v in model.optimizer.variables]
    for saved, value in zip(loaded.optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(saved.numpy(), value)
