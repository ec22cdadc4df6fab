"""The settings of main.py as flags, and their checks. Without Keras, a mistake is told at once."""

import argparse
import contextlib
import dataclasses
import inspect
import math
import os
import re
import types
import typing

import numpy as np

from training import Mistake
from training.data import require_source

CHOICES = {
    "version": (1, 2),
    "wave": ("floor", "round", "none"),
    "shape": ("auto", "sigmoid", "gaussian", "none", "bsilu", "nelu", "leaky"),
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("step", "cosine", "constant"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
}
LIMITS = {
    "depth": (1, 2000),
    "shift": (-1e30, 1e30),
    "slope": (-1e30, 1e30),
    "frequency": (1e-30, 1e30),
    "gain": (1e-30, 1e30),
    "batch_size": (1, 10**6),
    "epochs": (1, 10**6),
    "learning_rate": (1e-30, 1e30),
    "weight_decay": (0, 1e30),
    "seed": (0, 2**32 - 1),
    "validation": (0, 0.9),
}
# What shape "auto" is for an activation.
USUAL_SHAPES = {"relu": "sigmoid", "relu6": "sigmoid", "tanh": "gaussian"}
# Types of which text cannot give a value. `bool` is here for `bool | None`.
WITHOUT_FLAG = (bool, list, tuple, dict, set)
# Words that may stand in the place of a number.
WORDS = {"learning_rate": ("auto",), "gain": ("peak",)}


def check(settings):
    """Returns the settings in Python's own types, with an absolute path of the data.

    Raises:
        Mistake: if no network allows a value, or if a setting has no effect.
    """
    kinds = _kinds(type(settings))
    values = {name: _in_own_type(getattr(settings, name), kinds[name]) for name in kinds}
    for name, value in values.items():
        if name in CHOICES or name in LIMITS or kinds[name] in ((bool,), (str,)):
            _require_allowed(name, kinds[name][0], value)
    if not values["output_dir"]:
        raise Mistake("output_dir: allowed is 'auto' or a path; received ''")
    _require_effect(values, type(settings)())
    values["data"] = require_source(values["data"])
    values["output_dir"] = os.path.expanduser(values["output_dir"])
    return dataclasses.replace(settings, **values)


def _in_own_type(value, kinds):
    """A number of NumPy as Python's own, a path as text, and an int as a float if that is due."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if type(value) is int and float in kinds:
        value = float(value)  # as from the command line: the same run
    return value


def _require_effect(values, defaults):
    """Raises `Mistake` for a parameter of GAAF that changes nothing.

    Such a run would train the same numbers as another one, in a directory of its own.
    """
    phi, shape = values["activation"].removeprefix("GAAF_"), values["shape"]
    if shape == "auto":
        shape = USUAL_SHAPES.get(phi, "auto")
    without_effect = {}
    if shape != "sigmoid":
        without_effect |= dict.fromkeys(("shift", "slope"), f"shape {shape!r}")
    if values["wave"] == "none":
        without_effect["frequency"] = "wave 'none'"
    # Above this frequency, the wave is below the rounding error, and GAAF does not add it.
    limit = {"mixed_float16": 1024, "mixed_bfloat16": 128}.get(values["precision"], math.inf)
    if values["wave"] == "floor" and values["frequency"] > limit:
        without_effect["frequency"] = f"precision {values['precision']!r} and above {limit}"
    if phi == values["activation"]:
        names = ("shift", "slope", "frequency", "wave", "shape", "gain")
        without_effect = dict.fromkeys(names, f"activation {phi!r}")
    for name, where in without_effect.items():
        if values[name] != (default := getattr(defaults, name)):
            raise Mistake(
                f"{name}: allowed with {where} is the default, {default!r}, as it has no effect "
                f"there; received {values[name]!r}"
            )


def _require_allowed(name, kind, value):
    words = WORDS.get(name, ())
    if value in words:
        return
    ok = type(value) is kind
    allowed = kind.__name__
    if name in CHOICES:
        allowed = f"one of {', '.join(map(str, CHOICES[name]))}"
        ok = ok and value in CHOICES[name]
    elif name in LIMITS:
        least, most = LIMITS[name]
        allowed += f" from {least} to {most}"
        ok = ok and least <= value <= most  # not so for NaN
    if not ok:
        allowed = " or ".join([allowed, *map(repr, words)])
        raise Mistake(f"{name}: allowed is {allowed}; received {value!r}")


def _kinds(settings_class):
    """{name: types} of a class of settings; `float | str` is a number, or one of its `WORDS`."""
    # A field's own type is text where annotations are, by `from __future__ import annotations`.
    hints = typing.get_type_hints(settings_class)
    names = [field.name for field in dataclasses.fields(settings_class)]
    return {name: _members(hints[name]) for name in names}


def _members(kind):
    """The types in a union; of any other type, only itself."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def parse(settings_class, description, arguments=None):
    """Returns what the command line asks for; ends the program on a mistake in it.

    Args:
        settings_class: The class whose fields are the flags, and the comments beside them the help.
        description: What the program does.
        arguments: List of str. Default: those of the process.

    Returns:
        The settings; and (path, data or None) of what is to be evaluated, or None.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message):  # without the long usage that argparse puts before it
            self.exit(2, f"{self.prog}: error: {message}\n")

    parser = Parser(
        prog="main.py",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    comments, kinds = comments_of(settings_class), _kinds(settings_class)
    for field in dataclasses.fields(settings_class):
        name, default = field.name, field.default
        if not _has_flag(kinds[name]):
            continue
        if default is dataclasses.MISSING:
            default = field.default_factory()
        flag = "--" + name.replace("_", "-")
        help_text = comments.get(name, "").replace("%", "%%") or " "
        parser.add_argument(flag, default=default, help=help_text, **_argument(name, kinds[name]))
    parser.add_argument(
        "--evaluate",
        metavar="PATH",
        default=argparse.SUPPRESS,  # so that the help shows none
        help="train nothing; test the model of this run, or .keras file, on its data or on --data",
    )
    given = vars(parser.parse_args(arguments, argparse.Namespace(data=None)))
    path, data = given.pop("evaluate", None), given.pop("data")
    changed = [name for name in given if given[name] != parser.get_default(name)]
    if path is not None and changed:
        parser.error(f"--evaluate: allowed beside it is --data; received {', '.join(changed)}")
    if data is not None:
        given["data"] = data
    return settings_class(**given), (path, data) if path is not None else None


def _has_flag(kinds):
    """Whether text can give a value of these types."""
    is_class = isinstance(kinds[0], type)  # Literal and tuple[str, ...] are none
    return kinds == (bool,) or (is_class and kinds[0] not in WITHOUT_FLAG)


def _argument(name, kinds):
    """What argparse is to know of a setting."""
    if kinds == (bool,):
        return {"action": argparse.BooleanOptionalAction}
    words = WORDS.get(name, ())

    def value(text):
        return text if text in words else kinds[0](text)

    metavar = "|".join([kinds[0].__name__.upper(), *words])
    value.__name__ = metavar.lower()  # which argparse names in its error
    return {"type": value, "metavar": metavar}


def as_flag(message, settings):
    """A message about an argument, with the name that it has on the command line."""
    name, colon, rest = message.partition(":")
    flags = {field.name for field in dataclasses.fields(settings)} if settings else {"data"}
    is_flag = colon and name in flags | {"evaluate"}
    return f"--{name.replace('_', '-')}:{rest}" if is_flag else message


def comments_of(settings_class):
    """The comment beside each setting that has one."""
    comments = {}
    for kind in reversed(settings_class.__mro__[:-1]):
        with contextlib.suppress(OSError, TypeError):  # as in an interactive session
            source = inspect.getsource(kind)
            comments |= re.findall(r"^    (\w+):.*?=.*?  # (.+)$", source, re.M)
    return comments
