"""The pages: their tables are those that docs/make.py makes, and the README's examples run."""

import json
import re
from hashlib import sha256

import keras
import numpy as np
import pytest
from backends import once
from PIL import Image

from docs import make, pictures

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


def test_the_figures_of_the_answer_occur_in_the_table():
    text = (make.DOCS / "study.md").read_text(encoding="utf-8")
    answer, results = text.split("![", 1)
    table = re.search("<!-- study: .*?-->\n(.*?)<!-- end", results, re.S)[1]
    cells = {cell.strip(" +-") for cell in table.split("|")}
    figures = re.findall(r"0\.\d+ ± 0\.\d+|(?<=\(p )0\.\d+", answer)
    assert len(figures) >= 10 and set(figures) <= cells


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


@pytest.mark.parametrize("name, results", [("study", pictures.analysis), ("why", pictures.why)])
def test_pictures_are_current(name, results):
    with Image.open(make.DOCS / f"{name}.png") as picture:
        assert picture.text["Source"] == sha256(results.RESULTS.read_bytes()).hexdigest()


@pytest.fixture
def drawn(monkeypatch):
    """Function from the name of a picture to its figure."""

    def figure_of(name):
        make.PICTURES[name](None)
        return figures[-1]

    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, *_: figures.append(figure))
    return figure_of


@once
def test_the_picture_of_activations_shows_the_formula(drawn):
    above, *_, below = drawn("gaaf.png").axes[:4]
    value, gradient, s = (line.get_xydata().T for line in above.lines)
    x = value[0]
    np.testing.assert_allclose(value[1], np.maximum(x, 0), atol=1e-4)
    np.testing.assert_allclose(s[1], 1 / (1 + np.exp(1 - x)), atol=1e-5)
    np.testing.assert_allclose(gradient[1], (x > 0) + s[1], atol=1e-5)
    wave = below.lines[0].get_ydata()  # s(-1) of ±0.5/K, and six periods of it
    assert np.abs(wave).max() == pytest.approx(0.5e-4 / (1 + np.exp(2)), rel=1e-2)
    assert np.sum(np.diff(wave) < -2e-6) in (5, 6, 7)


@once
def test_the_picture_of_the_study_shows_its_results(drawn):
    left, right = drawn("study.png").axes
    found = make.study()
    names = [label.get_text() for label in left.get_yticklabels()]
    shown = [name for name in names if not name.endswith(":")]
    measured = pictures.differences(found, pictures.accuracy), pictures.loss_differences(found)
    several = {f"{row} ({x.seeds})": row for row, x in measured[0].items() if x.seeds > 1}
    assert sorted(shown) == sorted(several)
    assert "weight decay matched" in measured[0] and "weight decay matched" not in measured[1]
    for axes, differences in zip((left, right), measured, strict=True):
        drawn_here = [name for name in shown if several[name] in differences]
        for name, points in zip(drawn_here, axes.containers, strict=True):
            mean, half, *_ = differences[several[name]]
            assert points.lines[0].get_xydata().tolist() == [[mean, -names.index(name)]]
            low, high = points.lines[2][0].get_segments()[0][:, 0]
            assert (high - low) / 2 == pytest.approx(half)


@once
def test_the_picture_of_why_shows_what_was_measured(drawn):
    gradients, inputs, loss, stem = drawn("why.png").axes
    found = json.loads(make.why.RESULTS.read_text(encoding="utf-8"))
    for (name, network), line in zip(found["networks"].items(), loss.lines, strict=True):
        assert line.get_label() == name and list(line.get_ydata()) == network["loss"]
    shares = [list(line.get_ydata()) for line in inputs.lines]
    assert shares == [network["inputs"] for network in found["networks"].values()]
    last = [list(line.get_ydata()) for line in gradients.lines[::2]]
    assert last == [list(x["gradients"][-1].values()) for x in found["networks"].values()]
    relu = list(found["stem"]["relu, v1"].values())
    assert list(stem.lines[0].get_ydata()) == relu
    colors = {(line.get_label(), line.get_color()) for line in (*loss.lines, *stem.lines)}
    named = [(name, color) for name, color in colors if name in pictures.COLOR_OF]
    assert len(named) == len(pictures.COLOR_OF)  # one colour each, in both parts


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
