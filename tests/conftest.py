"""What is set before Keras starts, and what tests share."""

import collections
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from training import console
from training.settings import parse

os.environ.setdefault("JAX_ENABLE_X64", "1")  # float64
console.prepare_environment()  # as main.py does
# Many tests, and the programs that they run, compile the same small networks.
cache = Path(tempfile.gettempdir()) / "jax-cache-of-gaaf-tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(autouse=True)
def process_of_the_tests(monkeypatch):
    """Is not main.py's own: on JAX, Keras would do without TensorFlow from then on."""
    monkeypatch.setattr(console, "own_process", lambda: None)


@pytest.fixture
def npz(tmp_path):
    """The path of a small data set, and the working directory of the test beside it."""
    rng = np.random.default_rng(0)
    path = tmp_path / "small.npz"
    x = rng.integers(0, 256, (128, 32, 32, 3), dtype="uint8")
    np.savez(path, x_train=x, y_train=np.arange(128) % 10, x_test=x[:16], y_test=np.arange(16) % 10)
    return path


@pytest.fixture
def few_images(npz):
    """The path of a data set of 16 training images: a CPU is slow in float16."""
    with np.load(npz) as arrays:
        np.savez(npz.with_name("few.npz"), **{name: array[:16] for name, array in arrays.items()})
    return npz.with_name("few.npz")


@pytest.fixture
def empty_directory(tmp_path, monkeypatch):
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def graphics_card(tmp_path, monkeypatch):
    """A machine of which Keras sees the CPU alone, though nvidia-smi is there."""
    program = tmp_path / ("nvidia-smi.exe" if os.name == "nt" else "nvidia-smi")
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("training.devices.kind", lambda: "CPU")


@pytest.fixture(scope="session")
def run_of_two_epochs(tmp_path_factory):
    """A finished run, and its data; to be copied before it is changed."""
    from trainings import flags

    import main

    directory = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (64, 32, 32, 3), dtype="uint8"), np.arange(64) % 10
    np.savez(directory / "small.npz", x_train=x, y_train=y, x_test=x[:16], y_test=y[:16])
    arguments = flags(directory / "small.npz", directory / "run", epochs=2)
    main.train(parse(main.Settings, "", arguments)[0])
    return directory


@pytest.fixture
def run(run_of_two_epochs, tmp_path):
    """A copy of that run: its directory, and the flags that made it."""
    from trainings import flags

    shutil.copytree(run_of_two_epochs / "run", tmp_path / "run")
    return tmp_path / "run", flags(run_of_two_epochs / "small.npz", tmp_path / "run", epochs=2)


COUNTS = collections.Counter()


@pytest.fixture
def count():
    """Adds to what is said at the end of the tests, once the test has seen it: count("kills")."""
    return lambda what, n=1: COUNTS.update({what: n})


def pytest_terminal_summary(terminalreporter):
    for what, n in COUNTS.items():
        terminalreporter.write_line(f"{n} {what}")
