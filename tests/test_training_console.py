"""What stands on the terminal: in any encoding, at any width, through any pipe."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from backends import once
from processes import ROOT, on_a_terminal, python

import main
from resnet_v1 import resnet_v1
from training import console
from training.console import likely_cause, own_process  # which the tests replace

unix = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudoterminals")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_lines_break_between_words(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    words = "network       " + "a-word-of-26-letters-or-so " * 8 + "/a/path" * 30
    terminal = Terminal()
    console.say(words, indent=14, file=terminal)
    first, *others = terminal.getvalue().splitlines()
    assert first.startswith("network       a-word")
    assert all(line.startswith(" " * 14) for line in others)
    for line in (first, *others):
        assert len(line) < max(columns, 41) or len(line.split()) == 1
    assert " ".join([first, *others]).split() == words.split()


def test_what_is_no_terminal_gets_whole_lines(capsys):
    console.say("word " * 100)
    assert capsys.readouterr().out == "word " * 100 + "\n"


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "cp932", "ascii"])
def test_what_an_encoding_lacks_is_replaced(encoding, monkeypatch):
    monkeypatch.setattr(console, "_is_program", False)
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
        monkeypatch.setattr(sys, name, stream)
    own_process()
    print("K → ∞ × … –", flush=True)
    console.say("φ′ — é", file=sys.stderr)
    seen = sys.stdout.buffer.getvalue(), sys.stderr.buffer.getvalue()
    assert all(b"?" in text and text.endswith(b"\n") for text in seen)
    done = python(str(ROOT / "main.py"), "--help", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("values of [φ?], only gradients change", " ".join(done.stdout.split()))


STEEP = "the slope of GAAF, up to {} with gain 1, enlarges gradients"


@pytest.mark.parametrize(
    "settings, slope",
    [
        ({"activation": "relu"}, None),
        ({"activation": "relu", "gain": 1.0}, None),
        ({}, None),  # the gain is "peak"
        ({"gain": 0.5}, None),  # which is that of the peak
        ({"gain": 1.0}, 2.0),
        ({"gain": 1.0, "activation": "GAAF_tanh"}, 2.0),
        ({"gain": 1.0, "shape": "leaky", "wave": "none"}, None),
    ],
)
def test_the_likely_causes_are_told_with_the_ways_out(settings, slope, empty_directory):
    words = likely_cause(main.Settings(**settings))
    assert words.endswith("the learning rate is too high")
    plain = settings.get("activation", "GAAF_relu").removeprefix("GAAF_")
    way_out = f"take --gain peak, a smaller --depth or --activation {plain}, or the learning rate"
    assert (way_out in words) == (slope is not None)
    if slope:
        assert words.startswith(f"most likely {STEEP.format(slope)}")


def test_the_learning_rate_that_was_too_high_is_the_optimizers_own(run):
    """Which config.json has: the line optimizer=… of main.py may be another one."""
    directory, _ = run
    config = json.loads((directory / "config.json").read_text())
    settings = main.Settings(output_dir=str(directory))
    for rate, words in (
        (7.0, "the learning rate, 7, is too high"),
        ({"class_name": "CosineDecay"}, "the learning rate is too high"),
    ):
        config["optimizer"]["learning_rate"] = rate
        (directory / "config.json").write_text(json.dumps(config))
        assert likely_cause(settings) == f"most likely {words}"


def small_run(npz, **settings):
    settings = {"depth": 8, "epochs": 1, "batch_size": 16, "data": npz} | settings
    return [str(ROOT / "main.py"), *(f"--{k.replace('_', '-')}={v}" for k, v in settings.items())]


def own_lines(said):
    """The lines on the terminal, without Keras' progress bar and TensorFlow's first lines."""
    lines = said.replace("\r\n", "\n").split("\n")
    others = r"[\r\b\x1b]|/step|^Epoch|^WARNING: All log messages|^[IWE]0000 "
    return [line for line in lines if not re.search(others, line)]


def require_whole_words(said, *phrases):
    for line in own_lines(said):
        assert len(line) < 80 or len(line.split()) == 1, line
    text = " ".join(said.split())
    for phrase in phrases:
        assert phrase in text, said


@once
@unix
def test_a_nan_loss_on_a_terminal(npz, tmp_path):
    (tmp_path / "home").mkdir()
    as_keras_may_have_it = {"image_data_format": "channels_first", "floatx": "float32"}
    (tmp_path / "home" / "keras.json").write_text(json.dumps(as_keras_may_have_it))
    directory = tmp_path / "a directory of several words, in which this run is to be kept"
    run = small_run(npz, learning_rate=1e30, output_dir=directory)
    environment = {"PYTHONIOENCODING": "cp932", "KERAS_HOME": str(tmp_path / "home")}
    code, said = on_a_terminal(*run, cwd=tmp_path, **environment)
    assert code == 3, said
    assert re.search(r"^main\.py: error: the loss became (nan|inf) in epoch 1, step \d", said, re.M)
    require_whole_words(
        said,
        "1 epochs, batch size 16, Adam from 1e+30, schedule step, float32",
        "most likely the learning rate, 1e+30, is too high; no epoch was completed",
    )
    assert f"{resnet_v1((32, 32, 3), 8).count_params():,} parameters" in said  # channels last
    assert "Traceback" not in said


@once
@unix
def test_ctrl_c_on_a_terminal(npz, tmp_path):
    run = small_run(npz, epochs=500, activation="GAAF_elu", shape="gaussian")
    began = "Time left for the whole run"
    code, said = on_a_terminal(*run, interrupt_at=began, cwd=tmp_path, PYTHONIOENCODING="cp437")
    assert code == -signal.SIGINT, said  # in a shell 130; it ends the loop that this is in
    assert re.search(r"^main\.py: stopped by SIGINT; the state after epoch \d+ is in", said, re.M)
    require_whole_words(
        said, "to go on, run the same command again", "activation GAAF_elu, frequency"
    )
    (row,) = (line for line in own_lines(said) if line.startswith("activation"))
    assert "shift" not in row and "slope" not in row  # of which a gaussian has none
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name in said
    epoch = int(re.search(r"the state after epoch (\d+)", " ".join(said.split()))[1])
    assert (directory / "checkpoints" / f"{epoch:04}.keras").exists()


@once
@pytest.mark.parametrize("flags", ["--help", ""])
def test_a_pipe_that_is_closed_ends_it_quietly(flags, npz, tmp_path):
    with subprocess.Popen(
        [sys.executable, *small_run(npz), *flags.split()],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        code = process.wait(200)
    assert code in (0, 141) if flags else code == 141
    for word in ("Traceback", "Exception", "BrokenPipe", "main.py"):
        assert word not in said, said


def test_a_closed_stderr_is_no_crash(tmp_path):
    command = f'"{sys.executable}" "{ROOT / "main.py"}" --epochs=0 2>&-'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_the_backend_is_that_of_the_environment_or_of_keras_json(tmp_path, monkeypatch):
    """And the flags of XLA, which decide the last digits, are those for that backend."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for text, named, backend in (
        (None, None, "tensorflow"),
        ("{}", None, "tensorflow"),
        ("no JSON", None, "tensorflow"),
        ('{"backend": "jax"}', None, "jax"),
        ('{"backend": "jax"}', "", "jax"),
        ('{"backend": "jax"}', "tensorflow", "tensorflow"),
        ('{"backend": "tensorflow"}', "jax", "jax"),
    ):
        if text:
            (tmp_path / "keras.json").write_text(text)
        monkeypatch.delenv("KERAS_BACKEND", raising=False)
        if named is not None:
            monkeypatch.setenv("KERAS_BACKEND", named)
        for name in ("XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS"):
            monkeypatch.delenv(name, raising=False)
        console.prepare_environment()
        assert console.backend_named() == backend
        assert ("XLA_FLAGS" in os.environ) == (backend == "tensorflow")


@pytest.mark.parametrize(
    "machine, backend, before, after",
    [
        ("x86_64", "tensorflow", None, "1"),
        ("x86_64", "tensorflow", "0", "0"),
        ("x86_64", "jax", None, None),
        ("aarch64", "tensorflow", None, None),
    ],
)
def test_tensorflow_gets_the_convolutions_of_onednn(machine, backend, before, after, monkeypatch):
    monkeypatch.setattr(console.platform, "machine", lambda: machine)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if before:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", before)
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    console.prepare_environment()  # too late: TensorFlow has been imported
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == before
    monkeypatch.delitem(sys.modules, "tensorflow")
    console.prepare_environment()
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == after


@pytest.fixture
def ctrl_c_raises():
    """Also in a process that the shell has started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_ctrl_c_that_an_import_swallows_is_not_lost(ctrl_c_raises):
    imported = []
    with pytest.raises(KeyboardInterrupt), console._late_ctrl_c():
        with contextlib.suppress(BaseException):  # as code in C does
            signal.raise_signal(signal.SIGINT)
        imported.append("keras")
    assert imported == ["keras"]
    with pytest.raises(KeyboardInterrupt), console._late_ctrl_c():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the second one does not wait
        imported.append("numpy")
    assert imported == ["keras"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 80 bytes."),
        type("ResourceExhaustedError", (Exception,), {})("OOM when allocating tensor"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."),
    ],
)
def test_too_little_memory_is_told_in_one_line(error, tmp_path):
    code, line = console.ending_of(error, main.Settings(output_dir=str(tmp_path)))
    assert code == 1 and "take a smaller --batch-size" in line and "no epoch was completed" in line
    assert console.ending_of(error, None) == (
        1,
        "error: the memory is not enough to test this model",
    )
    assert console.ending_of(RuntimeError("another one"), main.Settings()) is None


@once
def test_a_jax_user_needs_no_tensorflow(npz, tmp_path):
    """It is never looked for either: that would take seconds where it is installed."""
    pytest.importorskip("jax")
    marker = tmp_path / "imported"
    absent = tmp_path / "absent"
    absent.mkdir()
    code = f"open({str(marker)!r}, 'w').close()\nraise ImportError('no TensorFlow')"
    (absent / "tensorflow.py").write_text(code)
    done = python(
        *small_run(npz, output_dir=tmp_path / "run"),
        cwd=tmp_path,
        KERAS_BACKEND="jax",
        PYTHONPATH=str(absent),
        PYTHONIOENCODING="ascii",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "final.keras").exists() and not marker.exists()
    assert "Compiling the training step ? " in done.stdout and "Test accuracy: " in done.stdout
