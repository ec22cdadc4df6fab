"""Runs Python as a user would, in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        encoding=environment.get("PYTHONIOENCODING"),
        text=True,
    )


def copy_of_main(directory):
    """Copies main.py and what it is made of, to be edited there as a user would."""
    directory.mkdir()
    for name in ("main.py", "gaaf.py", "resnet_v1.py", "resnet_v2.py"):
        shutil.copy(ROOT / name, directory)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "training", directory / "training", ignore=ignored)
    return directory


def edit(path, before, after):
    """Replaces a piece of text that is there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, before
    path.write_text(text.replace(before, after), encoding="utf-8")
