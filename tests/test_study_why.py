"""The looks at gradients and inputs see what training sees, and leave it as it was."""

import json

import keras
import numpy as np
import pytest
from backends import once

import main
from study import why
from training import Mistake
from training.data import load


def small_model(npz, dropout=0.0, **settings):
    settings = main.Settings(depth=8, data=str(npz), **settings)
    data = load(settings.data)
    return why.compiled(settings, data, dropout), data


@once
def test_the_gradients_are_those_that_training_uses(npz):
    model, data = small_model(npz)
    before = [v.numpy() for v in model.weights]
    seen = why.kernel_gradients(model, data.x_train, data.y_train)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert len(seen) == 7 and next(iter(seen)) == "stem_conv"
    model.train_on_batch(data.x_train, data.y_train)
    momentums = {v.path: v for v in model.optimizer.variables if v.path.endswith("_momentum")}
    for name, gradient in seen.items():  # of which Adam's momentum has a tenth
        (momentum,) = (
            v for path, v in momentums.items() if path.endswith(f"{name}_kernel_momentum")
        )
        assert gradient == pytest.approx(10 * abs(momentum.numpy()).mean(), rel=1e-2)


def test_the_histogram_is_of_all_inputs(npz):
    model, data = small_model(npz)
    shares = why.input_histogram(model, data.x_train[:16])
    assert sum(shares) == pytest.approx(1)
    network = model.layers[-1]
    layers = [layer for layer in network.layers if "_act" in layer.name]
    inputs = keras.Model(network.input, [layer.input for layer in layers])
    values = inputs.predict(model.layers[0](data.x_train[:16]), verbose=0)
    below = sum((x < 0).sum() for x in values) / sum(x.size for x in values)
    assert sum(shares[: len(shares) // 2]) == pytest.approx(below, abs=1e-6)


def test_dropout_is_added_after_each_activation(npz):
    plain, _ = small_model(npz, activation="relu")
    model, _ = small_model(npz, activation="relu", dropout=0.2)
    dropouts = [x for x in model.layers[-1].layers if isinstance(x, keras.layers.Dropout)]
    assert len(dropouts) == 7 and {x.rate for x in dropouts} == {0.2}
    assert model.count_params() == plain.count_params()


@pytest.mark.slow
def test_gaaf_enlarges_gradients_on_their_way_and_a_gain_makes_up_for_it(npz, monkeypatch):
    few = {name: why.BY_DEPTH[name] for name in ("relu", "GAAF_relu", "GAAF_relu, peak")}
    monkeypatch.setattr(why, "BY_DEPTH", few)
    found = why.stem_gradients(load(str(npz)), depths=(20,))
    assert len(found) == 2 * len(why.BY_DEPTH)
    plain, accelerated = found["relu, v1"][20], found["GAAF_relu, v1"][20]
    assert accelerated > 2**9 * plain  # 10 activations lie even on the shortest way
    assert found["GAAF_relu, peak, v1"][20] < 2 * plain


@pytest.mark.slow
def test_the_study_trains_what_it_lacks(npz, tmp_path, monkeypatch, capsys):
    small = {name: {**why.NETWORKS[name], "depth": 8} for name in ("relu", "paper")}
    monkeypatch.setattr(why, "NETWORKS", small)
    monkeypatch.setattr(why, "stem_gradients", lambda data: {"relu, v1": {20: 0.5}})
    why.study(str(npz), 1, tmp_path / "why.json")
    found = json.loads((tmp_path / "why.json").read_text())
    assert list(found["networks"]) == list(small)
    for network in found["networks"].values():
        assert len(network["loss"]) == len(network["gradients"]) == 1
    with pytest.raises(Mistake, match=r"^data, epochs: allowed .* are its small and 1; .* 2$"):
        why.study(str(npz), 2, tmp_path / "why.json")  # which would mix or lose what there is
    monkeypatch.setattr(why, "train", None)  # nothing is left to train
    why.study(str(npz), 1, tmp_path / "why.json")
    assert json.loads((tmp_path / "why.json").read_text()) == found
