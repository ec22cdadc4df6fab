"""The README: its tables are those that docs/make.py makes, its example runs."""

import re
import sys
from pathlib import Path

import keras
import numpy as np
from backends import once

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import make  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")


@once
def test_tables_are_current():
    assert make.readme(README) == README


@once
def test_pictures_can_be_made(tmp_path):
    make.plot_activations(tmp_path / "gaaf.png")
    make.plot_results(tmp_path / "curves.png")
    make.plot_study(tmp_path / "study.png")
    make.plot_first_step(tmp_path / "first_step.png")
    make.plot_why(tmp_path / "why.png")
    for name in ("gaaf.png", "curves.png", "study.png", "first_step.png", "why.png"):
        assert (tmp_path / name).stat().st_size > 10_000
        assert f"](docs/{name})" in README and (ROOT / "docs" / name).exists()


def test_examples_of_models_run(tmp_path, empty_directory):
    first, second = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(first, names)
    model = names["model"]
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).random((4, 784))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))

    if keras.backend.backend() == "torch":  # from which Keras exports with torch_xla alone
        second = second.replace("plain.export", "# plain.export")
    exec(second, names)
    assert names["replaced"] == 35
