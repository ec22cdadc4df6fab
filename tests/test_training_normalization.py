"""The faster way to train computes what plain Keras computes."""

import keras
import numpy as np
import pytest
from backends import BACKEND, once

import devices
import fast
import main
from data import Data

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (48, 32, 32, 3), dtype="uint8")
Y = (np.arange(48) % 10).astype("int32")


def model_of(accelerated, monkeypatch, **settings):
    """The model of `main.py`, or the same without what `fast` does to it."""
    keras.utils.set_random_seed(0)
    settings = main.Settings(**{"depth": 8, "activation": "GAAF_relu", **settings})
    if not accelerated:
        monkeypatch.setattr(fast, "accelerate", lambda *_: None)
    return main.build_model(settings, main.build_network(settings), Data(X, Y, X, Y))


@once
@pytest.mark.parametrize("version, depth", [(1, 8), (2, 11)])
def test_training_is_that_of_plain_keras(version, depth, monkeypatch):
    ours, plain = (
        model_of(accelerated, monkeypatch, version=version, depth=depth, learning_rate=1e-5)
        for accelerated in (True, False)
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


def test_adam_is_that_of_keras(monkeypatch):
    ours = model_of(True, monkeypatch)
    theirs = keras.optimizers.Adam(1e-3)
    copies = [keras.Variable(v.numpy()) for v in ours.trainable_variables]
    theirs.build(copies)
    for step in range(3):
        gradients = [RNG.normal(size=v.shape).astype("float32") for v in copies]
        gradients = [keras.ops.convert_to_tensor(g) for g in gradients]
        ours.optimizer.apply(gradients, ours.trainable_variables)
        theirs.apply(gradients, copies)
        assert int(ours.optimizer.iterations) == step + 1
        for x, y in zip(ours.trainable_variables, copies, strict=True):
            np.testing.assert_allclose(x.numpy(), y.numpy(), atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's functions")
def test_the_step_is_traced_once(monkeypatch):
    model = model_of(True, monkeypatch, batch_size=20)
    traced = []
    train_step = model.train_step

    def counting(batch):
        traced.append(batch)
        return train_step(batch)

    model.train_step = counting
    model.train_function = fast._train_function(model)
    batches = main.training_batches(main.Settings(batch_size=20), Data(X, Y, X, Y))
    model.fit(**batches, epochs=2, verbose=0)  # with a last batch of 8
    assert len(traced) == 1
    assert int(model.optimizer.iterations) == 6


def test_a_saved_model_predicts_what_the_accelerated_one_does(monkeypatch, tmp_path):
    model = model_of(True, monkeypatch, version=2, depth=11)
    model.train_on_batch(X[:16], Y[:16])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-4, atol=1e-6
    )
    assert loaded.train_on_batch(X[:16], Y[:16], return_dict=True)["loss"] == pytest.approx(
        model.train_on_batch(X[:16], Y[:16], return_dict=True)["loss"], rel=1e-4
    )


def test_the_way_is_told():
    way = fast.way()
    assert way.words
    if (BACKEND, devices.kind()) == ("tensorflow", "CPU"):
        assert way.jit_compile is False and not way.images_on_device
    elif devices.kind() != "CPU":
        assert way.jit_compile == "auto"
