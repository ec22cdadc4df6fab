"""The settings as flags, with their comments as help, and their checks: no Keras is needed."""

import dataclasses
import importlib
import typing
from pathlib import Path

import numpy as np
import pytest

import gaaf
import main
from training import Mistake, settings
from training.settings import check, comments_of, parse


def parsed(*arguments):
    return parse(main.Settings, main.__doc__, arguments)


def test_every_setting_is_a_flag(npz):
    wanted = main.Settings(
        version=2,
        depth=56,
        activation="GAAF_tanh",
        shift=-0.5,
        slope=5.0,
        frequency=100.0,
        wave="round",
        shape="sigmoid",
        gain=0.5,
        data="digits",
        data_augmentation=True,
        subtract_pixel_mean=False,
        validation=0.25,
        batch_size=32,
        epochs=3,
        optimizer="adamw",
        learning_rate=0.01,
        schedule="cosine",
        weight_decay=5e-4,
        precision="mixed_bfloat16",
        seed=7,
        gradient_histograms=True,
        output_dir="somewhere",
        overwrite=True,
        ignore_changes=True,
    )
    arguments = []
    for name, value in dataclasses.asdict(wanted).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
        assert value != getattr(main.Settings(), name)
    assert parsed(*arguments) == (wanted, None)
    assert parsed() == (main.Settings(), None)
    assert parsed("--learning-rate=auto")[0] == main.Settings()
    assert check(wanted) == wanted


def test_what_is_to_be_evaluated():
    assert parsed("--evaluate", "runs/a")[1] == ("runs/a", None)
    assert parsed("--evaluate=runs/a", "--data=digits")[1] == ("runs/a", "digits")


def test_defaults():
    settings = main.Settings()
    assert (settings.batch_size, settings.epochs) == (128, 200)
    assert (settings.optimizer, settings.learning_rate) == ("adam", "auto")
    assert (settings.schedule, settings.weight_decay) == ("step", 1e-4)
    assert (settings.data, settings.data_augmentation) == ("cifar10", False)
    assert settings.subtract_pixel_mean
    assert (settings.activation, settings.shift) == ("GAAF_relu", gaaf.GAAF("relu").shift)


def test_the_comments_are_the_help(capsys):
    comments = comments_of(main.Settings)
    assert list(comments) == [field.name for field in dataclasses.fields(main.Settings)]
    with pytest.raises(SystemExit) as end:
        parsed("--help")
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "None" not in shown
    for name, comment in comments.items():
        assert f"--{name.replace('_', '-')}" in shown and comment[:30] in shown


@dataclasses.dataclass(frozen=True)
class Edited:
    """Settings as somebody may have left them."""

    plain: int = 1
    text: str = "a = b"  # has 5 % of % signs
    number: float | str = 0.5  # of two types
    switch: bool = False
    hash: str = "#"


def test_a_setting_needs_no_comment(capsys):
    assert comments_of(Edited) == {"text": "has 5 % of % signs", "number": "of two types"}
    with pytest.raises(SystemExit) as end:
        parse(Edited, "", ["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for line in ("--plain INT", "--switch, --no-switch", "has 5 % of % signs (default: a = b)"):
        assert line in shown
    assert parse(Edited, "", ["--plain=2", "--number=1", "--switch"])[0] == Edited(
        2, "a = b", 1.0, True
    )


@dataclasses.dataclass(frozen=True)
class Mine(main.Settings):
    smoothing: float = 0.0  # of the labels
    depth: int = 56


def test_settings_of_ones_own_have_those_of_main_and_more():
    assert comments_of(Mine)["smoothing"] == "of the labels"
    assert comments_of(Mine)["depth"] == comments_of(main.Settings)["depth"]
    made, _ = parse(Mine, "", ["--smoothing=0.1", "--seed=3"])
    assert (made.smoothing, made.seed, made.depth) == (0.1, 3, 56)
    assert check(dataclasses.replace(made, data="digits")).smoothing == 0.1


def test_settings_of_ones_own_may_be_of_any_type(capsys):
    @dataclasses.dataclass(frozen=True)
    class Several(main.Settings):
        names: tuple[str, ...] = ("a", "b")
        flags: list[bool] = dataclasses.field(default_factory=list)
        teacher: str | None = None
        augments: bool | None = None
        label: typing.Optional[str] = None  # noqa: UP045  as older code has it
        head: typing.Literal["small", "large"] = "small"
        seed: int = dataclasses.field(default_factory=lambda: 7)

    assert check(Several(data="digits")) == Several(data="digits")
    assert check(Several(data="digits", teacher="a.keras")).teacher == "a.keras"
    assert parse(Several, "", ["--teacher=b"])[0] == Several(teacher="b")
    assert parse(Several, "", ["--evaluate=runs"]) == (Several(), ("runs", None))
    for name in ("names", "flags", "augments", "head"):  # which text cannot give
        with pytest.raises(SystemExit):
            parse(Several, "", [f"--{name}=small"])
        assert f"unrecognized arguments: --{name}" in capsys.readouterr().err


def test_settings_of_ones_own_may_follow_from_others():
    @dataclasses.dataclass(frozen=True)
    class Scaled(main.Settings):
        teacher: Path = Path("a.keras")

        def __post_init__(self):
            if self.learning_rate == "auto":
                object.__setattr__(self, "learning_rate", self.batch_size / 128000)

    assert parse(Scaled, "", ["--batch-size=256"])[0].learning_rate == 0.002
    assert parse(Scaled, "", ["--teacher=b.keras"])[0].teacher == Path("b.keras")


def test_settings_may_be_in_a_script_whose_annotations_are_text(tmp_path, monkeypatch):
    script = "from __future__ import annotations\nimport dataclasses, main\n\n"
    script += "@dataclasses.dataclass(frozen=True)\nclass Mine(main.Settings):\n"
    script += "    smoothing: float = 0.0  # of the labels\n    named: bool = False\n"
    (tmp_path / "with_text.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("with_text").Mine
    made, _ = parse(mine, "", ["--smoothing=0.5", "--named", "--data=digits"])
    assert check(made) == mine(smoothing=0.5, named=True, data="digits")
    with pytest.raises(Mistake, match="named: allowed is bool; received 1"):
        check(mine(named=1))


def test_settings_of_a_wrong_type_are_refused_from_python_too():
    for wrong in (
        main.Settings(depth="20"),
        main.Settings(shift=None),
        main.Settings(data_augmentation=1),
        main.Settings(batch_size=True),
        main.Settings(learning_rate="0.1"),
        main.Settings(learning_rate=True),
        main.Settings(data=None),
        main.Settings(activation=gaaf.GAAF_relu),
    ):
        with pytest.raises(Mistake, match=r"^\w+: allowed is .*; received "):
            check(wrong)
    made = check(main.Settings(shift=2, learning_rate=1, data="digits"))  # an integer is a number
    assert repr(made) == repr(check(main.Settings(shift=2.0, learning_rate=1.0, data="digits")))


def test_every_choice_and_limit_is_of_a_setting():
    names = {field.name for field in dataclasses.fields(main.Settings)}
    assert set(settings.CHOICES) | set(settings.LIMITS) | set(settings.WORDS) <= names
    for name, choices in settings.CHOICES.items():
        assert getattr(main.Settings(), name) in choices
        words = comments_of(main.Settings)[name]
        assert all(str(choice) in words for choice in choices), name
    for name, (least, most) in settings.LIMITS.items():
        for allowed in (least, most):
            kind = type(getattr(main.Settings(), name))
            value = allowed if kind in (int, str) else kind(allowed)
            check(dataclasses.replace(main.Settings(), **{name: value}))


def test_home_is_found(monkeypatch, tmp_path):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    made = check(main.Settings(output_dir="~/run"))
    assert made.output_dir == f"{tmp_path}/run"
    assert check(made) == made
    check(main.Settings(output_dir="~nobody-of-that-name/run"))  # a directory of that name


@pytest.mark.parametrize(
    "given, name, where",
    [
        ({"activation": "relu", "shift": 2.0}, "shift", "activation 'relu'"),
        ({"activation": "elu", "gain": 7}, "gain", "activation 'elu'"),
        ({"activation": "relu", "wave": "round"}, "wave", "activation 'relu'"),
        ({"activation": "relu", "shape": "none"}, "shape", "activation 'relu'"),
        ({"activation": "relu", "frequency": 5}, "frequency", "activation 'relu'"),
        ({"activation": "GAAF_tanh", "slope": 2.0}, "slope", "shape 'gaussian'"),
        ({"shape": "bsilu", "shift": 0}, "shift", "shape 'bsilu'"),
        ({"shape": "none", "slope": 2.0}, "slope", "shape 'none'"),
        ({"wave": "none", "frequency": 5.0}, "frequency", "wave 'none'"),
        ({"precision": "mixed_bfloat16", "frequency": 129.0}, "frequency", "precision .*above 128"),
        ({"precision": "mixed_float16", "frequency": 1e6}, "frequency", "precision .*above 1024"),
    ],
)
def test_what_has_no_effect_is_refused(given, name, where):
    with pytest.raises(Mistake, match=f"^{name}: allowed with {where} is the default, .*received"):
        check(main.Settings(data="digits", **given))


def test_what_has_an_effect_in_half_precision_is_taken():
    for given in ({"frequency": 128.0}, {"frequency": 129.0, "wave": "round"}):
        check(main.Settings(data="digits", precision="mixed_bfloat16", **given))


def test_numbers_of_numpy_and_paths_are_taken(npz):
    given = main.Settings(
        depth=np.int64(8),
        slope=np.float32(0.5),
        data_augmentation=np.bool_(True),
        seed=np.uint32(3),
        data=npz,
        output_dir=npz.parent / "run",
    )
    plain = check(given)
    assert plain == check(
        main.Settings(
            depth=8,
            slope=0.5,
            data_augmentation=True,
            seed=3,
            data=str(npz),
            output_dir=str(npz.parent / "run"),
        )
    )
    types = {type(value) for value in dataclasses.asdict(plain).values()}
    assert types == {int, float, bool, str}
    with pytest.raises(Mistake, match=r"^depth: allowed is int"):
        check(main.Settings(depth=np.float64(8.0)))
