"""Runs Python as a user would, in a process of its own."""

import contextlib
import os
import shutil
import signal
import struct
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


def on_a_terminal(*arguments, interrupt_at=None, cwd=None, **environment):
    """Runs Python on a terminal of 80 × 24; with Ctrl-C as soon as it says some words.

    Returns:
        The exit code, and all that stood on the terminal.
    """
    import fcntl
    import pty
    import termios

    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "TF_CPP_MIN_LOG_LEVEL")}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment},
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
    )
    os.close(terminal)
    said = b""
    with contextlib.suppress(OSError):  # with which it ends
        while new := os.read(master, 4096):
            said += new
            if interrupt_at and interrupt_at.encode() in said:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
    os.close(master)
    return process.wait(), said.decode(environment.get("PYTHONIOENCODING", "utf-8"))


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
