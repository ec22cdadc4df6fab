"""The pages: their tables are those that docs/make.py makes, and the README's examples run."""

import re

import keras
import numpy as np
import pytest
from backends import once

from docs import make

README = make.PAGES[0].read_text(encoding="utf-8")


@once
@pytest.mark.parametrize("page", make.PAGES, ids=lambda page: page.name)
def test_tables_are_current(page, monkeypatch):
    text = page.read_text(encoding="utf-8")
    table = re.search(r"<!-- networks: .*? -->\n(.*?)\n<!-- end", text, re.S)
    if table:  # test_resnets builds them, and looks them up
        assert len(table[1].splitlines()) == 2 + sum(map(len, make.DEPTHS.values()))
        monkeypatch.setitem(make.TABLES, "networks", lambda: table[1])
    assert make.with_tables(text) == text
    assert "not run yet" not in text


def test_each_table_is_on_a_page():
    texts = "".join(page.read_text(encoding="utf-8") for page in make.PAGES)
    assert set(re.findall(r"<!-- (\w+): made by", texts)) == set(make.TABLES)


def test_links_between_pages_lead_somewhere():
    for page in make.PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@once
def test_pictures_can_be_made(tmp_path):
    texts = "".join(page.read_text(encoding="utf-8") for page in make.PAGES)
    for name, plot in make.PICTURES.items():
        plot(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
        assert re.search(rf"\]\((docs/)?{name}\)", texts) and (make.DOCS / name).exists()


def test_the_readme_is_a_front_door():
    assert len(README.splitlines()) <= 200
    for page in make.PAGES[1:]:
        assert f"](docs/{page.name})" in README


@once
def test_examples_of_models_run(tmp_path, empty_directory, caplog):
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
    caplog.set_level("INFO", "gaaf")
    exec(second, names)
    assert names["replaced"] == 35
    shown = re.escape(re.search(r"```text\nINFO:gaaf:(.*)\n```", README)[1])
    shown = shown.replace(re.escape("0e+00"), r"\d+e[+-]\d+")
    assert any(re.fullmatch(shown, message) for message in caplog.messages), caplog.messages
