"""Runs that are stopped, damaged, changed or fed with nonsense, through the command line."""

import errno
import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
from backends import once

import data
import main
import runs


def flags(npz, directory, **settings):
    settings = {"depth": 8, "data": npz, "batch_size": 32, "epochs": 3} | settings
    return [
        *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()),
        f"--output-dir={directory}",
    ]


def state(directory):
    """Weights and optimizer of final.keras, and the bytes of history.csv."""
    model = keras.models.load_model(directory / "final.keras")
    arrays = [v.numpy() for v in (*model.weights, *model.optimizer.variables)]
    return arrays, (directory / "history.csv").read_bytes()


def assert_same_run(a, b):
    (arrays_a, history_a), (arrays_b, history_b) = state(a), state(b)
    assert history_a == history_b
    for x, y in zip(arrays_a, arrays_b, strict=True):
        np.testing.assert_array_equal(x, y)


def stops_with(code, arguments, capsys):
    """Runs main.py, which must end with the code; returns the one line that it says why."""
    with pytest.raises(SystemExit) as end:
        main.main(arguments)
    assert end.value.code == code
    message = capsys.readouterr().err
    assert message.startswith("main.py: ") and message.count("\n") == 1
    return message


def at_step(monkeypatch, epoch, step, action):
    """Has something happen before a step of an epoch, both counted from 1."""

    class WithAction(runs.StopOnNotFinite):
        def on_train_batch_begin(self, batch, logs=None):
            if (self.epoch, batch + 1) == (epoch, step):
                action()

    monkeypatch.setattr(runs, "StopOnNotFinite", WithAction)


slow = pytest.mark.slow
CASES = [
    (1, 8, "", signal.SIGINT),
    pytest.param(2, 11, "--data-augmentation", signal.SIGTERM, marks=once),
    pytest.param(1, 8, "--data-augmentation", signal.SIGTERM, marks=slow),
    pytest.param(2, 11, "", signal.SIGINT, marks=slow),
]


@pytest.mark.parametrize("version, depth, augmentation, number", CASES)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    version, depth, augmentation, number, npz, tmp_path, capsys, monkeypatch
):
    def command(name):
        some = flags(npz, tmp_path / name, version=version, depth=depth)
        return [*some, augmentation] if augmentation else some

    main.main(command("whole"))
    with monkeypatch.context() as patch:
        at_step(patch, 2, 3, lambda: signal.raise_signal(number))
        message = stops_with(128 + number, command("stopped"), capsys)
    assert f"stopped by {number.name}; the state after epoch 1 is in" in message
    assert "to go on, run the same command again" in message
    assert not (tmp_path / "stopped" / ".unfinished").exists()
    main.main(command("stopped"))
    assert "Going on after epoch 1 of 3" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.fixture(scope="module")
def run_of_two_epochs(tmp_path_factory):
    """A finished run, and its data; to be copied before it is changed."""
    directory = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (64, 32, 32, 3), dtype="uint8"), np.arange(64) % 10
    np.savez(directory / "small.npz", x_train=x, y_train=y, x_test=x[:16], y_test=y[:16])
    main.main(flags(directory / "small.npz", directory / "run", epochs=2))
    return directory


@pytest.fixture
def run(run_of_two_epochs, tmp_path):
    """A copy of that run: its directory, and the flags that made it."""
    shutil.copytree(run_of_two_epochs / "run", tmp_path / "run")
    return tmp_path / "run", flags(run_of_two_epochs / "small.npz", tmp_path / "run", epochs=2)


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_other_settings_are_refused_and_listed(run, capsys):
    directory, arguments = run
    before = contents(directory)
    changed = [*arguments, "--seed=1", "--activation=relu", "--epochs=1"]
    message = stops_with(2, changed, capsys)
    for part in ("seed 0, not 1", "activation 'GAAF_relu', not 'relu'", "epochs 2, not 1"):
        assert part in message
    assert "depth" not in message and "--overwrite" in message
    assert contents(directory) == before


def test_a_foreign_config_is_refused(run, capsys):
    directory, arguments = run
    for text in ("", "[]", '{"settings": 1}', "\xff"):
        (directory / "config.json").write_text(text, encoding="latin-1")
        assert "config.json cannot be read" in stops_with(2, arguments, capsys)


def test_more_epochs_go_on(run, capsys):
    directory, arguments = run
    first_rows = (directory / "history.csv").read_text().splitlines()
    main.main([*arguments, "--epochs=3"])
    assert "Going on after epoch 2 of 3" in capsys.readouterr().out
    rows = (directory / "history.csv").read_text().splitlines()
    assert rows[:3] == first_rows and len(rows) == 4
    assert json.loads((directory / "config.json").read_text())["settings"]["epochs"] == 3


def test_overwrite_begins_anew(run, capsys):
    directory, arguments = run
    (directory / "notes.txt").write_text("mine")
    main.main([*arguments, "--seed=1", "--epochs=1", "--overwrite"])
    assert "Going on" not in capsys.readouterr().out
    assert len((directory / "history.csv").read_text().splitlines()) == 2
    assert (directory / "notes.txt").read_text() == "mine"


def test_a_run_stopped_between_its_files_gets_them(run):
    directory, arguments = run
    whole = contents(directory)
    for name in ("final.keras", "best.keras", "history.csv", "curves.png"):
        (directory / name).unlink()
    main.main(arguments)
    again = contents(directory)
    for name in ("final.keras", "best.keras", "history.csv"):
        assert again[directory / name] == whole[directory / name]
    assert (directory / "curves.png").exists()


def test_a_damaged_checkpoint_costs_an_epoch(run, run_of_two_epochs, capsys):
    directory, arguments = run
    latest = directory / "checkpoints" / "0002.keras"
    latest.write_bytes(latest.read_bytes()[:-100])
    main.main(arguments)
    said = capsys.readouterr().out
    assert f"Warning: {latest} is damaged" in said and "Going on after epoch 1 of 2" in said
    assert_same_run(directory, run_of_two_epochs / "run")


def test_a_second_process_is_refused(run, capsys):
    directory, arguments = run
    before = contents(directory)
    with runs.locked(directory):
        message = stops_with(2, [*arguments, "--epochs=3"], capsys)
    assert "no other process trains in" in message
    assert contents(directory) == before


def test_a_full_disk_is_told_and_what_was_there_stays(run, capsys, monkeypatch):
    directory, arguments = run
    before = contents(directory / "checkpoints")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(keras.Sequential, "save", full)
    message = stops_with(1, [*arguments, "--epochs=3"], capsys)
    assert "0003.keras: No space left on device; the state after epoch 2 is in" in message
    assert contents(directory / "checkpoints") == before


def test_a_loss_that_is_not_finite_ends_the_run(run, capsys, monkeypatch):
    directory, arguments = run
    before = contents(directory / "checkpoints")
    monkeypatch.setattr(main, "learning_rate_at", lambda epoch, settings: 1e30)
    message = stops_with(3, [*arguments, "--epochs=3"], capsys)
    assert "the loss became nan in epoch 3, step 2" in message
    assert "learning rate" in message and "the state after epoch 2 is in" in message
    assert "too deep for GAAF" in message
    assert "GAAF" not in main.cause(main.Settings(activation="relu"))
    assert contents(directory / "checkpoints") == before


def test_ctrl_c_before_the_training_costs_no_traceback(npz, tmp_path, capsys, monkeypatch):
    def interrupted(source):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", interrupted)
    message = stops_with(130, flags(npz, tmp_path / "run"), capsys)
    assert "before the training began" in message
    assert not (tmp_path / "run").exists()


def test_evaluate_takes_a_run_or_a_file(run, capsys):
    directory, _ = run
    main.main(["--evaluate", str(directory)])
    said = capsys.readouterr().out
    assert said.startswith(f"{directory / 'final.keras'}: 16 test images\nloss ")
    rows = [line.split() for line in said.splitlines()[3:]]
    assert [int(row[0]) for row in rows] == list(range(10))
    assert sum(int(count) for row in rows for count in row[1:11]) == 16
    assert [sum(map(int, row[1:11])) for row in rows] == [2, 2, 2, 2, 2, 2, 1, 1, 1, 1]
    (directory / "final.keras").unlink()
    main.main(["--evaluate", str(directory)])
    assert "best.keras: 16 test images" in capsys.readouterr().out
    main.main(["--evaluate", str(directory / "best.keras"), "--data", "digits"])
    assert "best.keras: 360 test images" in capsys.readouterr().out


def test_evaluate_refuses_damaged_and_foreign_files(run, tmp_path, capsys, count):
    directory, _ = run
    whole = (directory / "final.keras").read_bytes()
    shape = (32, 32, 3)
    code = keras.Sequential([keras.Input(shape), keras.layers.Lambda(lambda x: x[:, 0, :10, 0])])
    code.save(tmp_path / "code.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)]).save(tmp_path / "other.keras")
    capsys.readouterr()
    damaged = {"empty": b"", "text": b"no model", "half": whole[: len(whole) // 2]}
    for name, content in damaged.items():
        (tmp_path / f"{name}.keras").write_bytes(content)
    for name in (*damaged, "code", "other"):
        message = stops_with(2, ["--evaluate", str(tmp_path / f"{name}.keras")], capsys)
        assert f"{name}.keras" in message
        count("bad inputs refused")
    (directory / "config.json").unlink()
    assert "give --data" in stops_with(2, ["--evaluate", str(directory)], capsys)
