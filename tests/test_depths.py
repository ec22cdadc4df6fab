"""Every network that the README names trains as it is: pytest -m slow tests/test_depths.py"""

import keras
import numpy as np
import pytest

import main
from docs.make import DEPTHS
from training.data import load

pytestmark = pytest.mark.slow
NETWORKS = [(version, depth) for version, depths in DEPTHS.items() for depth in depths]


@pytest.fixture
def digits(tmp_path):
    """The path of 160 of the digits, and as many to test on."""
    data = load("digits")
    some = {name: array[:160] for name, array in data._asdict().items()}
    np.savez(tmp_path / "digits.npz", **some)
    return str(tmp_path / "digits.npz")


@pytest.mark.parametrize("version, depth", NETWORKS, ids=lambda value: str(value))
def test_two_epochs_end_with_a_lower_and_finite_loss(version, depth, digits, tmp_path):
    settings = main.Settings(
        version=version,
        depth=depth,
        data=digits,
        batch_size=16,
        epochs=2,
        output_dir=str(tmp_path / "run"),
    )
    first, second = main.train(settings).history["loss"]
    keras.utils.clear_session()
    assert np.isfinite([first, second]).all() and second < first


@pytest.mark.parametrize("version", [1, 2])
def test_sgd_learns_the_digits(version, tmp_path):
    settings = main.Settings(
        version=version,
        optimizer="sgd",
        data="digits",
        batch_size=32,
        epochs=10,
        output_dir=str(tmp_path / "run"),
    )
    assert main.train(settings).history["val_accuracy"][-1] > 0.95
