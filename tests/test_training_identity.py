"""What makes two runs the same one: settings, code, data and optimizer."""

import ast
import dataclasses
import json
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from backends import once
from processes import ROOT, copy_of_main, edit, python

import main
from training import Mistake, identity
from training.settings import check, comments_of


def test_directories_of_different_settings_differ():
    base = main.Settings()
    directories = {identity.directory_of(base)}
    changes = {"depth": 32, "shift": 0.0, "seed": 1, "precision": "mixed_float16"}
    changes |= {"data": "digits", "optimizer": "sgd", "schedule": "cosine", "weight_decay": 0.0}
    for change in changes.items():
        directories.add(identity.directory_of(dataclasses.replace(base, **dict([change]))))
    assert len(directories) == 9
    for directory in directories:
        assert directory.parent.name == "runs" and "-resnet" in directory.name
    other = dataclasses.replace(base, output_dir="a/b")
    assert identity.directory_of(other).as_posix() == "a/b"


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 300},
        {"gradient_histograms": True},
        {"overwrite": True},
        {"ignore_changes": True},
    ],
)
def test_what_changes_no_weight_leaves_the_directory(change):
    base = main.Settings()
    assert identity.directory_of(dataclasses.replace(base, **change)) == identity.directory_of(base)


def test_one_file_of_images_has_one_directory(npz, monkeypatch):
    monkeypatch.chdir(npz.parent)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(npz.parent))
    paths = ("small.npz", "./small.npz", "~/small.npz", str(npz))
    directories = {identity.directory_of(check(main.Settings(data=path))) for path in paths}
    assert len(directories) == 1
    assert directories.pop().name.startswith("small-resnet20_v1-GAAF_relu-")


def digest(code):
    return identity.digest_of_code(ast.parse(code))


CODE = '''
"""What it is."""
RATE = 0.1

class Settings:
    """Those."""
    depth: int = 20  # layers

def step(x, y=2):
    """Goes on."""
    return f"{x}{y}"
'''


@pytest.mark.parametrize(
    "before, after",
    [
        ("# layers", "# the layers"),
        ("  # layers", ""),
        ("int = 20", "int = 56"),
        ('"""What it is."""', "# nothing to say"),
        ('    """Goes on."""\n', ""),
        ("x, y=2", "x,  y = 2"),
        ("RATE = 0.1", "\n\nRATE = (0.10)"),
        ("\n", "\r\n"),
    ],
)
def test_what_code_does_is_the_same(before, after):
    assert before in CODE and digest(CODE.replace(before, after)) == digest(CODE)


@pytest.mark.parametrize(
    "before, after",
    [
        ("RATE = 0.1", "RATE = 0.2"),
        ("y=2", "y=3"),
        ("{x}{y}", "{y}{x}"),
        ("{y}", "{y!r}"),
        ("step", "stride"),
        ("depth: int", "depth: float"),
        ("class Settings", "class Others"),
        ("    depth: int = 20", "    depth: int = 20\n    width: int = 1"),
    ],
)
def test_what_code_does_is_another_thing(before, after):
    assert before in CODE and digest(CODE.replace(before, after)) != digest(CODE)


def test_a_digest_is_the_same_in_every_version_of_python():
    code = r"""
async def f(a, /, b: int = 1, *c, d=2.5, **e) -> str:
    def h(): pass
    async with a as b, c: await b
    return f"{a!r:>{b}.{c}}{{x}} é\n" rf"\d{d=}" "t" if 0 else f""
class C(B, metaclass=M):
    y: str = u"z"
    def m(self): return lambda *a, k=..., **b: (yield)
match v:
    case {"a": [1, *_], **rest} | C(x=1) if v: pass
    case None | -1.5j: del v[1:2, ...]
try: x[0:1] += 1 if y else {*()}
except* E as e: raise e from None
for i, in [*(j for j in k if j if j)]: continue
else: print(f"{1:{2}}", f"a{'b'}c" 'd' f'{e}', "", 10**30, 1e400, not b"", x @ y, a[b:=1])
"""
    assert digest(code) == "c5dc3656c2d4442c"
    assert digest(code.replace('"", ', "")) != digest(code)


def test_the_sources_are_those_of_the_repository():
    networks = {"main.py", "gaaf.py", "resnet_v1.py", "resnet_v2.py"}
    parts = {f"training/{path.name}" for path in (ROOT / "training").glob("*.py")}
    assert set(identity.sources_of(main.Settings)) == networks | parts


def settings_in_a_module(monkeypatch, name, file, code):
    """The class `Mine` of a module with that code."""
    module = types.ModuleType(name)
    if file:
        file.write_text(code)
        module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, name, module)
    exec(code, module.__dict__)
    return module.Mine


MINE = """
import dataclasses
import main
@dataclasses.dataclass(frozen=True)
class Mine(main.Settings):
    smoothing: float = 0.1  # of the labels
    depth: int = 8
"""


def test_settings_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "house").mkdir()
    mine = settings_in_a_module(monkeypatch, "mine", tmp_path / "house" / "mine.py", MINE)
    sources = identity.sources_of(mine)
    assert set(sources) == {*identity.sources_of(main.Settings), "house/mine.py"}
    assert comments_of(mine) == comments_of(main.Settings) | {"smoothing": "of the labels"}
    assert check(mine()).depth == 8
    other = mine(smoothing=0.2)
    assert identity.directory_of(mine()) != identity.directory_of(other)
    # An edit of that script is noticed, and that it is no longer there does no harm.
    (tmp_path / "house" / "mine.py").write_text(MINE + "# a comment\n")
    assert identity.sources_of(mine) == sources
    (tmp_path / "house" / "mine.py").write_text(MINE.replace("depth: int = 8", "depth: int = 20"))
    assert identity.sources_of(mine) == sources
    (tmp_path / "house" / "mine.py").write_text(MINE + "x = 1\n")
    edited = identity.sources_of(mine)
    assert {name for name in edited if edited[name] != sources[name]} == {"house/mine.py"}
    (tmp_path / "house" / "mine.py").unlink()
    assert identity.sources_of(mine) == identity.sources_of(main.Settings)
    # In a notebook, a class has no file.
    cell = settings_in_a_module(monkeypatch, "cell", None, MINE)
    assert identity.sources_of(cell) == identity.sources_of(main.Settings)
    assert comments_of(cell) == comments_of(main.Settings)


ARRAYS = [np.zeros((2, 4), "uint8"), np.ones(2, "int32")]
DIGEST = identity.digest_of_arrays(ARRAYS)


@pytest.fixture
def directory(tmp_path):
    """The directory of a run with the default settings, with Adam, on two images."""
    settings = main.Settings(output_dir=str(tmp_path))
    known = identity.identity_of(settings, DIGEST, keras.optimizers.Adam(1e-3))
    known["stretches"] = [{"first_epoch": 1, "sources": identity.sources_of(main.Settings)}]
    (tmp_path / "config.json").write_text(json.dumps(known))
    return tmp_path


def changed(directory, data=ARRAYS, optimizer=None, **settings):
    """What has changed since that run."""
    optimizer = optimizer or keras.optimizers.Adam(1e-3)
    settings = main.Settings(output_dir=str(directory), **settings)
    digest = identity.digest_of_arrays(data)
    return identity.require_same_run(settings, data_digest=digest, optimizer=optimizer)


def test_the_same_is_gone_on_with(directory):
    assert changed(directory) == ""
    assert changed(directory, epochs=201, gradient_histograms=True) == ""
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3, name="my_adam"))
    assert changed(directory, optimizer=scaled) == ""


def test_a_setting_may_be_a_tuple_or_a_path(directory):
    """config.json has a list in its place, or text."""

    @dataclasses.dataclass(frozen=True)
    class Wide(main.Settings):
        widths: tuple = (16, 32)
        teacher: Path = Path("teacher.keras")

    def require(**settings):
        return identity.require_same_run(Wide(output_dir=str(directory), **settings))

    config = identity.identity_of(Wide(output_dir=str(directory)))
    (directory / "config.json").write_text(json.dumps(config | {"stretches": []}))
    assert require() == "" == require(widths=(16, 32))
    with pytest.raises(Mistake, match=r"holds a run with widths \[16, 32\], not \[16, 64\]; "):
        require(widths=(16, 64))


@pytest.mark.parametrize(
    "now, words",
    [
        ({"optimizer": keras.optimizers.Adam(1e-3, beta_1=0.8)}, "the optimizer"),
        ({"optimizer": keras.optimizers.Nadam(1e-3)}, "the optimizer"),
        (
            {"optimizer": keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 9))},
            "the optimizer",
        ),
        ({"data": [ARRAYS[0] + 1, ARRAYS[1]]}, "the data"),
        ({"data": [ARRAYS[0], ARRAYS[1] * 0]}, "the data"),
        ({"data": [ARRAYS[0].reshape(4, 2), ARRAYS[1]]}, "the data"),
        ({"data": [ARRAYS[0].astype("int8"), ARRAYS[1]]}, "the data"),
    ],
)
def test_what_has_changed_is_told_with_the_ways_out(now, words, directory):
    with pytest.raises(Mistake, match=r"^output_dir: .* changed; ") as caught:
        changed(directory, **now)
    message = str(caught.value)
    assert f"a run made before {words} changed; " in message and "\n" not in message
    for way in ("--overwrite", "--output-dir", "--ignore-changes"):
        assert way in message
    assert changed(directory, **now, ignore_changes=True) == words
    assert changed(directory, **now, overwrite=True) == ""


def test_changed_files_are_named(directory, monkeypatch):
    sources = identity.sources_of(main.Settings)
    now = sources | {"gaaf.py": "another", "my_layers.py": "new"}
    now.pop("resnet_v2.py")
    monkeypatch.setattr(identity, "sources_of", lambda settings: now)
    with pytest.raises(Mistake, match=r"before gaaf\.py, my_layers\.py, resnet_v2\.py changed; "):
        changed(directory)
    assert changed(directory, ignore_changes=True) == "gaaf.py, my_layers.py, resnet_v2.py"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"epochs": 199}, "epochs 200, not 199"),
        ({"depth": 32, "slope": 5.0}, "depth 20, not 32, slope 1.0, not 5.0"),
        ({"schedule": "cosine"}, "schedule 'step', not 'cosine'"),
    ],
)
def test_other_settings_are_never_ignored(settings, words, directory):
    for ignore in (True, False):
        with pytest.raises(Mistake, match=f"holds a run with {words}; "):
            changed(directory, **settings, ignore_changes=ignore)


def test_other_data_of_another_name_are_never_ignored(directory):
    other = identity.digest_of_arrays([ARRAYS[0] + 1, ARRAYS[1]])
    moved = main.Settings(output_dir=str(directory), data="digits", ignore_changes=True)
    with pytest.raises(Mistake, match="holds a run with data 'cifar10', not 'digits'; "):
        identity.require_same_run(moved, data_digest=other)
    assert identity.require_same_run(moved, data_digest=DIGEST) == ""  # the same images elsewhere


def test_a_run_of_before_a_setting_existed_is_gone_on_with(directory):
    config = json.loads((directory / "config.json").read_text())
    del config["settings"]["weight_decay"], config["settings"]["validation"]
    (stretch,) = config.pop("stretches")
    config["sources"] = stretch["sources"]  # at the top, as there was one stretch
    (directory / "config.json").write_text(json.dumps(config))
    assert changed(directory) == ""
    config["sources"]["gaaf.py"] = "another"
    (directory / "config.json").write_text(json.dumps(config))
    assert changed(directory, ignore_changes=True) == "gaaf.py"


@once
def test_edits_of_the_code_are_noticed(npz, tmp_path):
    """In a copy of the repository, as a user would edit it."""
    copy = copy_of_main(tmp_path / "copy")
    flags = [f"--data={npz}", "--activation=relu", "--output-dir=run", "--batch-size=64"]

    def train(*more):
        return python("main.py", *flags, *more, cwd=copy, PYTHONPATH=str(copy))

    done = train("--depth=8", "--epochs=1")
    assert done.returncode == 0, done.stderr

    for name, before, after in (
        ("training/model.py", "keras.optimizers.Adam(rate)", "keras.optimizers.SGD(rate)"),
        ("resnet_v1.py", "import keras\n", "import keras\n\nCHANGED = True\n"),
        ("main.py", 'metrics=["accuracy"]', 'metrics=["accuracy", "mse"]'),
    ):
        edit(copy / name, before, after)
        done = train("--depth=8", "--epochs=2")
        assert done.returncode == 2 and done.stdout == "", done.stderr
        message = done.stderr
        assert message.startswith("main.py: error: --output-dir: ") and message.count("\n") == 1
        assert f"a run made before {name} changed; replace the run with --overwrite" in message
        assert "--output-dir" in message and "--ignore-changes" in message
        edit(copy / name, after, before)

    edit(copy / "main.py", "import dataclasses\n", "import dataclasses  # mine\n\n\n")
    edit(copy / "main.py", "  # layers: 6n+2", "  # how many: 6n+2")
    edit(copy / "main.py", "depth: int = 20", "depth: int = 8")
    edit(copy / "main.py", "epochs: int = 200  # passes", "epochs: int = 2  # my passes")
    done = train()
    assert done.returncode == 0 and "Going on after epoch 1 of 2" in done.stdout, done.stderr
