"""What makes two runs the same: settings, code, data and optimizer; and where a run lies. No Keras.

config.json keeps all four. So only the training that a directory belongs to can go on in it.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import re
from pathlib import Path

from training import Mistake
from training.files import FILES, FOLDERS

REPOSITORY = Path(__file__).resolve().parent.parent
# Settings that change no weight, or that only let the run go on for longer.
MAY_DIFFER = ("data", "output_dir", "overwrite", "ignore_changes", "gradient_histograms", "epochs")
# Settings that earlier versions had, with the only value of each that trains as this one does.
REMOVED = {"fade": 0.0}
# Some of the settings that every config.json of a run has.
ALWAYS_THERE = ("activation", "batch_size", "depth", "epochs")


def directory_of(settings):
    """The directory of the run. Runs share it if their data and what changes weights are equal."""
    if settings.output_dir != "auto":
        return Path(settings.output_dir)
    deciding = {k: v for k, v in dataclasses.asdict(settings).items() if k not in MAY_DIFFER}
    deciding["data"] = settings.data
    digest = hashlib.sha256(repr(deciding).encode()).hexdigest()[:6]
    data = Path(settings.data).name.split(".")[0]
    network = f"resnet{settings.depth}_v{settings.version}"
    return Path("runs") / f"{data}-{network}-{settings.activation}-{digest}"


def identity_of(settings, data_digest=None, optimizer=None):
    """What config.json keeps to tell a run from others; without data and optimizer until known."""
    identity = {"settings": _as_json(settings)}
    if data_digest is not None:
        identity["data"] = data_digest
    if optimizer is not None:
        identity["optimizer"] = config_of(optimizer)
    return identity


def _as_json(settings):
    """The settings as config.json gives them back: a tuple is a list there, and a path is text."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def config_in(directory):
    """The config.json of the run in a directory; None if there is none, or not one of a run."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    settings = config.get("settings") if isinstance(config, dict) else None
    if not isinstance(settings, dict) or not set(ALWAYS_THERE) <= settings.keys():
        return None
    if "stretches" not in config:  # an earlier version kept the last one only
        names = ("versions", "device", "devices", "compiler", "sources")
        stretch = {name: config.pop(name) for name in names if name in config}
        config["stretches"] = [{"first_epoch": 1} | stretch]
    return config


def require_same_run(settings, **known):
    """Raises `Mistake` if the directory holds another run, or files of somebody else.

    Args:
        settings: Those of main.py.
        **known: What `identity_of` takes, as far as it is known.

    Returns:
        What has changed since then, in words; not empty only if the settings say to ignore it.
    """
    directory = directory_of(settings)
    before = config_in(directory)
    if before is None:
        _require_unused(directory)
        return ""
    if settings.overwrite:
        return ""
    # The run may be older than some of the settings.
    defaults = REMOVED | _as_json(type(settings)())
    before["settings"] = defaults | before["settings"]
    now = identity_of(settings, **known)
    if differing := _differing_settings(before, now):
        raise Mistake(
            f"output_dir: '{directory}' holds a run with {differing}; choose another directory, "
            "or replace that run with --overwrite"
        )
    changed = _changes(before, now, sources_of(type(settings)))
    if changed and not settings.ignore_changes:
        raise Mistake(
            f"output_dir: '{directory}' holds a run made before {changed} changed; replace the run "
            "with --overwrite, choose another --output-dir, or go on all the same with "
            "--ignore-changes"
        )
    return changed


def _require_unused(directory):
    """Raises `Mistake` if files are there that a run would replace."""
    names = FILES + FOLDERS
    if found := [name for name in names if os.path.lexists(directory / name)]:
        raise Mistake(
            f"output_dir: allowed is the directory of a run, or one without {', '.join(names)}; "
            f"received '{directory}', which has {', '.join(found)}, but no config.json of a run"
        )


def _differing_settings(before, now):
    """The settings that differ, in words."""
    other_data = "data" in now and before.get("data") != now["data"]
    before, now = before["settings"], REMOVED | now["settings"]
    names = [name for name in now if name not in MAY_DIFFER and before[name] != now[name]]
    if isinstance(before["epochs"], int) and now["epochs"] < before["epochs"]:
        names.append("epochs")
    if other_data and before["data"] != now["data"]:
        names.append("data")
    return ", ".join(f"{name} {before[name]!r}, not {now[name]!r}" for name in names)


def _changes(before, now, sources):
    """The source files that are others than before, and whether data or optimizer are, in words."""
    stretches = before["stretches"]
    old = stretches[-1].get("sources", {}) if stretches else sources  # nothing was trained yet
    changed = sorted(name for name in old | sources if old.get(name) != sources.get(name))
    for name in ("data", "optimizer"):
        if name in now and before.get(name) != now[name]:
            changed.append(f"the {name}")
    return ", ".join(changed)


def digest_of_arrays(arrays):
    """A digest of the images and labels."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(array)
    return digest.hexdigest()


def digest_of_data(data, test=None):
    """A digest of what `hold_out` returns: all images and labels, and how they are split."""
    return digest_of_arrays([*data, *(test or ())])


def config_of(optimizer):
    """The config of an optimizer, as JSON has it; of the one within that scales its loss."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    config = optimizer.get_config() | {"name": type(optimizer).__name__}
    text = json.dumps(config, default=str)
    # The same program makes the same optimizer, but the address of a function differs, and in a
    # notebook the number that Keras adds to a name.
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return json.loads(re.sub(r'("name": "\w*[a-z])_\d+"', r'\1"', text))


def sources_of(settings_class):
    """{path: digest} of the code that trains, and of the user's script that has its settings."""
    names = ("main.py", "gaaf.py", "resnet_v1.py", "resnet_v2.py")
    paths = [*(REPOSITORY / name for name in names), *sorted(REPOSITORY.glob("training/*.py"))]
    sources = {path.relative_to(REPOSITORY).as_posix(): digest_of_file(path) for path in paths}
    with contextlib.suppress(TypeError, OSError):  # where it has no file, as in a notebook
        script = Path(inspect.getfile(settings_class)).resolve()
        if script not in paths:
            name = f"{script.parent.name}/{script.name}"
            sources[name] = digest_of_file(script, settings_class.__name__)
    return sources


def digest_of_file(path, settings="Settings"):
    """A digest of the code in a file."""
    return _digest_of_text(path.read_bytes(), settings)


@functools.cache  # a run asks several times for the digests of the same files
def _digest_of_text(text, settings):
    return digest_of_code(ast.parse(text), settings)


def digest_of_code(tree, settings="Settings"):
    """A digest of a syntax tree, without docstrings and without the values of the settings.

    Args:
        tree: `ast.AST`, which changes.
        settings: The name of the class of settings.
    """
    for node in ast.walk(tree):
        match node:
            case ast.AST(body=[ast.Expr(ast.Constant()), *others]):
                node.body = others
            case ast.JoinedStr():  # into an f-string, Python 3.12 puts empty texts
                node.values = [x for x in node.values if getattr(x, "value", None) != ""]
        if isinstance(node, ast.ClassDef) and node.name == settings:
            for field in node.body:  # config.json has them as settings
                if isinstance(field, ast.AnnAssign):
                    field.value = None
        # Nodes have gained fields that are empty mostly, which of late the dump leaves out.
        for name, value in [*ast.iter_fields(node)]:
            if value is None or value == []:
                delattr(node, name)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
