"""Very deep networks train by a smaller graph on TensorFlow's CPU, and learn the same by it."""

import keras
import numpy as np
import pytest
from backends import BACKEND

import main
from training import deep, devices
from training.data import Data
from training.model import build, make_variables

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's graphs")
X = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), dtype="uint8")
DATA = Data(X, (np.arange(48) % 10).astype("int32"), X[:16], (np.arange(16) % 10).astype("int32"))
SETTINGS = main.Settings(depth=8, batch_size=16)


def trained(small_graph, monkeypatch, optimizer="adam", **compiled):
    monkeypatch.setattr(deep, "LAYERS", 0 if small_graph else 1000)
    keras.utils.set_random_seed(0)
    model = build(SETTINGS, DATA)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False, **compiled)
    make_variables(model)
    deep.shrink_graph(model)
    given = devices.feed(SETTINGS, DATA)
    return model, model.fit(**given, epochs=2, verbose=0).history["loss"]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_smaller_graph_trains_as_that_of_keras(optimizer, monkeypatch):
    small, losses = trained(True, monkeypatch, optimizer)
    _, expected = trained(False, monkeypatch, optimizer)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert int(small.optimizer.iterations) == 6
    assert small.train_function.python_function.__module__ == deep.__name__
    own = optimizer == "sgd"  # of which there is one operation in Keras' step already
    assert (small.optimizer.update_step.__func__.__module__ == deep.__name__) != own


def test_an_adam_with_another_formula_is_left_to_keras(monkeypatch):
    model, _ = trained(True, monkeypatch, keras.optimizers.Adam(amsgrad=True))
    assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step


def test_run_eagerly_is_left_alone(monkeypatch):
    model, _ = trained(True, monkeypatch, run_eagerly=True)
    assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step


def test_networks_that_are_not_deep_are_left_alone(monkeypatch):
    import tensorflow as tf

    trained(True, monkeypatch)  # its graph is not optimised, but the next one is again
    assert tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]
    model, _ = trained(False, monkeypatch)
    assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step
    assert not tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]


def test_what_keras_no_longer_does_is_left_to_keras(monkeypatch):
    assert deep._is_that_of_keras(deep._adam_step)

    def twice(optimizer, variables):
        step = deep._adam_step(optimizer, variables)
        return lambda gradient, variable, rate: step(gradient, variable, 2 * rate)

    def fails(optimizer, variables):
        raise AttributeError("as if Keras had renamed it")

    for other in (twice, fails):
        assert not deep._is_that_of_keras(other)
        monkeypatch.setattr(deep, "_adam_step", other)
        model, losses = trained(True, monkeypatch)
        assert model.optimizer.update_step.__func__ is keras.optimizers.Adam.update_step
        assert np.isfinite(losses).all()


def test_the_model_is_saved_as_plain_keras(monkeypatch, tmp_path):
    model, _ = trained(True, monkeypatch)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras.optimizers.Adam
    before = [v.numpy() for v in model.optimizer.variables]
    for saved, value in zip(loaded.optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(saved.numpy(), value)
