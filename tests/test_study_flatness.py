"""How trained networks are disturbed, and what is kept of their accuracy."""

import keras
import numpy as np
import pytest
from backends import once

import main
from study import flatness
from training import Mistake
from training.data import load
from training.evaluate import accuracy_of
from training.files import read_csv
from training.model import build

WEIGHTS = [np.full((3, 3, 4, 5), 0.1), np.zeros(5), np.arange(6.0)]


@pytest.mark.parametrize("size", flatness.SIZES)
def test_each_array_moves_by_its_share_of_its_norm(size):
    for before, after in zip(WEIGHTS, flatness.disturbed(WEIGHTS, size, 0), strict=True):
        moved = np.linalg.norm(after - before)
        assert moved == pytest.approx(size * np.linalg.norm(before))


def test_a_draw_is_a_direction_that_sizes_and_networks_share():
    def direction(weights, size, draw):
        step = flatness.disturbed(weights, size, draw)[0] - weights[0]
        return step / np.linalg.norm(step)

    first = direction(WEIGHTS, 0.01, 3)
    np.testing.assert_allclose(direction(WEIGHTS, 0.02, 3), first)
    np.testing.assert_allclose(direction([7 * w for w in WEIGHTS], 0.01, 3), first)
    assert abs(np.vdot(direction(WEIGHTS, 0.01, 4), first)) < 0.5


@once
def test_the_models_beside_the_results_are_measured_once(npz, tmp_path, monkeypatch):
    settings, results = main.Settings(depth=8, data=str(npz)), tmp_path / "kept" / "flatness.csv"
    data = load(settings.data)
    results.parent.mkdir()
    for seed, name in enumerate(("a", "b")):
        keras.utils.set_random_seed(seed)
        build(settings, data).save(results.with_name(f"{name}.keras"))
    monkeypatch.setattr(flatness, "SIZES", (0.0, 9.0))
    monkeypatch.setattr(flatness, "DRAWS", 2)
    flatness.study(str(npz), results)
    lines = read_csv(results)
    assert [(line["model"], line["size"], line["draw"]) for line in lines] == [
        (name, *noise)
        for name in ("a", "b")
        for noise in (("0", "0"), ("0.0", "0"), ("0.0", "1"), ("9.0", "0"), ("9.0", "1"))
    ]
    for first, *quiet, _, _ in (lines[:5], lines[5:]):
        path = results.with_name(f"{first['model']}.keras")
        plain = accuracy_of(keras.models.load_model(path), data.x_test, data.y_test)
        assert [float(line["accuracy"]) for line in (first, *quiet)] == [plain] * 3
    assert len({line["accuracy"] for line in lines}) > 1
    monkeypatch.setattr(flatness, "lines_of", None)  # nothing is left to measure
    flatness.study(str(npz), results)
    assert read_csv(results) == lines
    with pytest.raises(Mistake, match=r"^data: allowed .* is its small; received digits$"):
        flatness.study("digits", results)


def test_a_model_of_other_images_is_refused(npz, tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)]).save(tmp_path / "other.keras")
    with pytest.raises(
        Mistake, match=r"^model: allowed is a model from .* received .*other\.keras"
    ):
        flatness.study(str(npz), tmp_path / "flatness.csv")
    assert not (tmp_path / "flatness.csv").exists()
