"""Runs that are stopped, damaged, changed or fed with nonsense, through the command line."""

import errno
import json
import os
import re
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from backends import once
from trainings import assert_same_run, contents, flags, stops_with

import main
from training import Mistake, callbacks, files, identity, learning_rate, model, report
from training.settings import parse


def at_step(monkeypatch, epoch, step, action):
    """Has something happen before a step of an epoch, both counted from 1."""

    class WithAction(callbacks.StopOnNotFinite):
        def on_train_batch_begin(self, batch, logs=None):
            super().on_train_batch_begin(batch, logs)
            if (self.epoch, batch + 1) == (epoch, step):
                action()

    monkeypatch.setattr(callbacks, "StopOnNotFinite", WithAction)


slow = pytest.mark.slow
CASES = [
    (1, 8, "", signal.SIGINT, 2),
    pytest.param(
        *(2, 11, "--data-augmentation --optimizer=sgd --schedule=cosine", signal.SIGTERM, 2),
        marks=once,
    ),
    pytest.param(1, 8, "--optimizer=adamw", signal.SIGTERM, 3, marks=slow),
    pytest.param(1, 8, "--data-augmentation", signal.SIGTERM, 2, marks=slow),
    pytest.param(2, 11, "", signal.SIGINT, 2, marks=slow),
]


@pytest.mark.parametrize("version, depth, more, number, epoch", CASES)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    version, depth, more, number, epoch, npz, tmp_path, capsys, monkeypatch
):
    def command(name):
        return [*flags(npz, tmp_path / name, version=version, depth=depth), *more.split()]

    main.main(command("whole"))
    with monkeypatch.context() as patch:
        at_step(patch, epoch, 3, lambda: signal.raise_signal(number))
        message = stops_with(128 + number, command("stopped"), capsys)
    assert f"stopped by {number.name}; the state after epoch {epoch - 1} is in" in message
    assert "to go on, run the same command again" in message
    assert not (tmp_path / "stopped" / files.UNFINISHED).exists()
    main.main(command("stopped"))
    assert f"Going on after epoch {epoch - 1} of 3" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_other_settings_are_refused_and_listed(run, capsys):
    directory, arguments = run
    before = contents(directory)
    changed = [*arguments, "--seed=1", "--activation=relu", "--epochs=1"]
    message = stops_with(2, changed, capsys)
    for part in ("seed 0, not 1", "activation 'GAAF_relu', not 'relu'", "epochs 2, not 1"):
        assert part in message
    assert "depth" not in message and "--overwrite" in message
    assert contents(directory) == before


@once
def test_a_run_that_could_fade_is_gone_on_with_if_it_did_not(run, capsys):
    directory, arguments = run
    config = json.loads((directory / "config.json").read_text())
    for fade, steps in ((0.0, 10), (0, 3), (0.5, 10)):
        config["settings"] |= {"fade": fade, "fade_steps": steps}
        (directory / "config.json").write_text(json.dumps(config))
        if not fade:
            main.main(arguments)
            assert "Nothing to train" in capsys.readouterr().out
    before = contents(directory)
    for more in ([], ["--ignore-changes"]):
        message = stops_with(2, [*arguments, "--epochs=3", *more], capsys)
        assert "holds a run with fade 0.5, not 0.0; choose another directory" in message
    assert contents(directory) == before
    main.main([*arguments, "--epochs=1", "--overwrite"])


FOREIGN = "[]", "1", "no JSON", "\xff", '{"model_type": "bert"}', '{"settings": {"mine": 1}}'


@pytest.mark.parametrize("config", [None, *FOREIGN])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_what_is_no_run_is_neither_gone_on_with_nor_replaced(more, config, run, capsys):
    directory, arguments = run
    (directory / "config.json").unlink()
    if config:
        (directory / "config.json").write_text(config, encoding="latin-1")
    (directory / "checkpoints" / "step_100000.pt").write_text("mine")
    before = contents(directory)
    message = stops_with(2, [*arguments, "--seed=5", *more], capsys)
    assert f"received '{directory}', which has " in message and "history.csv, " in message
    assert "--overwrite" not in message
    assert message.endswith("but no config.json of a run\n")
    assert contents(directory) == before


def arrays_of(arguments):
    """The images and labels that a command trains on, by name."""
    (path,) = (x.removeprefix("--data=") for x in arguments if x.startswith("--data="))
    with np.load(path) as arrays:
        return dict(arrays)


def test_data_that_the_network_does_not_fit_are_told(run, tmp_path, capsys):
    directory, arguments = run
    arrays = arrays_of(arguments)
    arrays["y_train"][0] = 10  # an eleventh class
    np.savez(tmp_path / "small.npz", **arrays)
    config = json.loads((directory / "config.json").read_text())
    config["settings"]["data"] = str(tmp_path / "small.npz")
    (directory / "config.json").write_text(json.dumps(config))
    before = contents(directory)
    arguments += [f"--data={tmp_path / 'small.npz'}", "--epochs=3", "--ignore-changes"]
    message = stops_with(2, arguments, capsys)
    assert "--output-dir: allowed is a run of the same network; received " in message
    assert contents(directory) == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are text")
def test_a_directory_whose_name_is_no_text(run, tmp_path, capsys):
    directory, arguments = run
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/L\xe4ufe")
    directory.rename(strange)
    sys.stdout.reconfigure(errors="replace")  # as main.py has it
    main.main([*arguments, f"--output-dir={strange}", "--epochs=3"])
    assert "Going on" in capsys.readouterr().out
    config = json.loads(Path(strange, "config.json").read_text())
    assert config["settings"]["output_dir"] == strange


def test_more_epochs_go_on(run, capsys):
    directory, arguments = run
    first_rows = (directory / "history.csv").read_text().splitlines()
    main.main([*arguments, "--epochs=3"])
    assert "Going on after epoch 2 of 3" in capsys.readouterr().out
    rows = (directory / "history.csv").read_text().splitlines()
    assert rows[:3] == first_rows and len(rows) == 4
    assert json.loads((directory / "config.json").read_text())["settings"]["epochs"] == 3


def test_a_run_that_has_ended_is_told_with_its_result(run, capsys):
    directory, arguments = run
    before = contents(directory / "checkpoints")
    main.main([*arguments, "--gradient-histograms"])  # which is no other training
    said = capsys.readouterr().out
    ended = re.search(r"^Nothing to train: this run ended on (.+); its result:$", said, re.M)
    latest = (directory / "checkpoints" / "0002.keras").stat().st_mtime
    assert ended.group(1) == time.strftime("%Y-%m-%d %H:%M", time.localtime(latest))
    result = said[ended.end() :]
    assert "Test accuracy: " in result and f"Written to {directory}" in result
    written = "best.keras, checkpoints, config.json, curves.png, final.keras, history.csv"
    assert f"{directory}: {written}, tensorboard\n" in result
    assert "Going on" not in said and "Epoch" not in said and "Compiling" not in said
    assert contents(directory / "checkpoints") == before


@once
def test_a_run_goes_on_for_longer_in_the_directory_of_its_settings(npz, monkeypatch, capsys):
    monkeypatch.chdir(npz.parent)
    command = ["--depth=8", "--batch-size=64", "--activation=relu", "--data=./small.npz"]
    with monkeypatch.context() as patch:
        at_step(patch, 2, 1, lambda: signal.raise_signal(signal.SIGINT))
        message = stops_with(130, [*command, "--epochs=2"], capsys)
    (directory,) = (npz.parent / "runs").iterdir()
    assert f"the state after epoch 1 is in runs/{directory.name}; " in message.replace("\\", "/")
    command[-1] = f"--data={npz}"  # by another path
    main.main([*command, "--epochs=3"])
    assert "Going on after epoch 1 of 3" in capsys.readouterr().out
    assert "epochs 3, not 2" in stops_with(2, [*command, "--epochs=2"], capsys)
    assert list((npz.parent / "runs").iterdir()) == [directory]


@once
def test_another_optimizer_is_refused_and_begins_anew_where_that_is_ignored(
    run, capsys, monkeypatch
):
    directory, arguments = run
    before = contents(directory)
    arguments.append("--epochs=3")
    monkeypatch.setattr("training.model.optimizer", lambda *_: keras.optimizers.SGD(0.1))
    message = stops_with(2, arguments, capsys)
    assert "a run made before the optimizer changed; " in message and "--ignore-ch" in message
    assert contents(directory) == before
    main.main([*arguments, "--ignore-changes"])
    assert "SGD from 0.1" in capsys.readouterr().out
    assert json.loads((directory / "config.json").read_text())["optimizer"]["name"] == "SGD"
    model = keras.models.load_model(directory / "final.keras")
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert int(model.optimizer.iterations) == 2  # of the third epoch alone


@once
def test_other_code_goes_on_where_that_is_ignored(run, capsys, monkeypatch):
    directory, arguments = run
    before = contents(directory)
    now = identity.sources_of(main.Settings) | {"gaaf.py": "another"}
    monkeypatch.setattr(identity, "sources_of", lambda settings: now)
    monkeypatch.setattr(report, "sources_of", lambda settings: now)
    assert "before gaaf.py changed" in stops_with(2, [*arguments, "--epochs=3"], capsys)
    assert contents(directory) == before
    main.main([*arguments, "--ignore-changes"])
    assert contents(directory)[directory / "config.json"] == before[directory / "config.json"]
    assert "before gaaf.py changed" in stops_with(2, arguments, capsys)  # it has trained nothing
    main.main([*arguments, "--epochs=3", "--ignore-changes"])
    first, second = json.loads((directory / "config.json").read_text())["stretches"]
    assert (first["first_epoch"], second["first_epoch"]) == (1, 3)
    assert second["sources"] == now != first["sources"]
    main.main([*arguments, "--epochs=3"])  # the code is that of the run from now on
    assert "Nothing to train" in capsys.readouterr().out


def test_other_images_in_the_same_file_are_noticed(run, tmp_path, capsys):
    _, arguments = run
    arrays = arrays_of(arguments)
    moved = tmp_path / "small.npz"
    np.savez(moved, **arrays)
    main.main([*arguments, f"--data={moved}", "--epochs=3"])  # the same in another place
    assert "Going on after epoch 2 of 3" in capsys.readouterr().out
    arrays["x_test"][0, 0, 0, 0] ^= 1
    np.savez(moved, **arrays)
    message = stops_with(2, [*arguments, f"--data={moved}", "--epochs=4"], capsys)
    assert "a run made before the data changed; " in message


@once
def test_so_are_other_test_images_where_others_are_validated_on(npz, tmp_path, capsys):
    arrays = arrays_of([f"--data={npz}"])
    copy = tmp_path / "copy.npz"
    np.savez(copy, **arrays)
    arguments = flags(copy, tmp_path / "run", epochs=1, validation=0.25)
    main.main(arguments)
    arrays["x_test"][0, 0, 0, 0] ^= 1
    np.savez(copy, **arrays)
    capsys.readouterr()
    message = stops_with(2, arguments, capsys)
    assert "a run made before the data changed; " in message


def test_overwrite_begins_anew(run, capsys):
    directory, arguments = run
    (directory / "notes.txt").write_text("mine")
    (directory / "checkpoints" / "step_100000.pt").write_text("mine")
    main.main([*arguments, "--seed=1", "--epochs=1", "--overwrite"])
    assert "Going on" not in capsys.readouterr().out
    assert len((directory / "history.csv").read_text().splitlines()) == 2
    assert (directory / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == [
        "0001.keras",
        "step_100000.pt",
    ]


def test_an_overwritten_run_is_gone_at_once(run, capsys, monkeypatch):
    """Else the next command would go on from it, under the new settings."""
    directory, arguments = run
    at_step(monkeypatch, 1, 1, lambda: signal.raise_signal(signal.SIGINT))
    message = stops_with(130, [*arguments, "--seed=1", "--overwrite"], capsys)
    assert "no epoch was completed" in message and message.endswith("without --overwrite\n")
    assert sorted(path.name for path in directory.iterdir()) == [".lock", "config.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_training_saves_what_would_be_overwritten(
    number, run, capsys, monkeypatch
):
    """Of deep networks the user has minutes to think again. The old run is no advice."""
    directory, arguments = run
    before = contents(directory)
    build = model.build
    monkeypatch.setattr(model, "build", lambda *a: signal.raise_signal(number) or build(*a))
    message = stops_with(128 + number, [*arguments, "--seed=1", "--overwrite"], capsys)
    assert message == f"main.py: stopped by {number.name}; nothing was written\n"
    assert contents(directory) == before


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


@pytest.mark.parametrize("damage", ["a bit", "gone"])
def test_a_damaged_checkpoint_never_replaces_the_best_model(damage, run, capsys):
    directory, arguments = run
    rows = files.read_history(directory / "history.csv")
    first_is_best = [rows[0] | {"val_accuracy": 1.0}, rows[1]]
    path = directory / "checkpoints" / "0002.keras"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            text = json.dumps([{**row, "epoch": int(row["epoch"])} for row in first_is_best])
            archive.writestr(name, text if name == "history.json" else content)
    best = (directory / "best.keras").read_bytes()
    first = directory / "checkpoints" / "0001.keras"
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    if damage == "gone":
        first.unlink()
    main.main(arguments)
    assert f"Warning: {first} is damaged or gone, and is not used" in capsys.readouterr().out
    assert (directory / "best.keras").read_bytes() == best


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_by_itself(run, capsys):
    directory, arguments = run
    shutil.rmtree(directory / "checkpoints")
    before = contents(directory)
    message = stops_with(2, arguments, capsys)
    assert "holds a run without a checkpoint that can be read; choose another" in message
    assert contents(directory) == before
    main.main([*arguments, "--overwrite", "--epochs=1"])


def test_a_callback_that_cannot_train_costs_no_run(run):
    directory, arguments = run
    before = contents(directory)
    settings, _ = parse(main.Settings, "", [*arguments, "--overwrite"])
    for callback, allowed in (
        (keras.callbacks.EarlyStopping, "are objects of keras.callbacks.Callback; received <class"),
        (keras.callbacks.SwapEMAWeights(), "with SwapEMAWeights is an optimizer with use_ema=True"),
    ):
        with pytest.raises(Mistake, match=f"^callbacks: allowed {re.escape(allowed)}"):
            main.train(settings, (each for each in [callback]))
    assert contents(directory) == before


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
    with files.locked(directory):
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


@pytest.mark.parametrize("name", ["final.keras", "history.out.tfevents.1.vm"])
def test_a_file_that_another_program_holds_is_told(name, run, capsys, monkeypatch):
    def unlink(path, **options):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        before(path, **options)

    before = Path.unlink
    monkeypatch.setattr(Path, "unlink", unlink)
    _, arguments = run
    (run[0] / "tensorboard" / "history.out.tfevents.1.vm").touch()
    message = stops_with(1, [*arguments, "--epochs=3"], capsys)
    assert f"{name}: Permission denied; the state after epoch 2 is in" in message


def test_a_loss_that_is_not_finite_ends_the_run(run, capsys, monkeypatch):
    directory, arguments = run
    before = contents(directory / "checkpoints")
    monkeypatch.setattr(learning_rate, "factor_at", lambda epoch, settings: 1e33)
    message = stops_with(3, [*arguments, "--epochs=3"], capsys)
    assert "the loss became nan in epoch 3, step 2" in message
    assert "most likely the learning rate, 0.001, is too high; the state after epoch 2" in message
    assert contents(directory / "checkpoints") == before


def test_weights_that_the_last_step_of_an_epoch_breaks_are_not_kept(
    npz, tmp_path, capsys, monkeypatch
):
    """The loss of that step, which is that of the weights before, is a number."""
    monkeypatch.setattr(learning_rate, "factor_at", lambda epoch, settings: 1e33)
    arguments = flags(npz, tmp_path / "run", batch_size=128, epochs=1)
    message = stops_with(3, arguments, capsys)
    assert "the test loss became nan after epoch 1; most likely" in message
    assert "no epoch was completed" in message
    assert not [*(tmp_path / "run").rglob("*.keras")]


def test_a_run_that_goes_on_has_no_final_model_until_it_ends(run, capsys, monkeypatch):
    directory, arguments = run
    monkeypatch.setattr(learning_rate, "factor_at", lambda epoch, settings: 1e33)
    stops_with(3, [*arguments, "--epochs=3"], capsys)
    main.main(["--evaluate", str(directory)])
    assert capsys.readouterr().out.startswith(f"{directory / 'best.keras'}: ")


def test_ctrl_c_before_the_training_costs_no_traceback(npz, tmp_path, capsys, monkeypatch):
    def interrupted(source):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.data.load", interrupted)
    message = stops_with(130, flags(npz, tmp_path / "run"), capsys)
    assert "main.py: stopped; nothing was written" in message
    assert not (tmp_path / "run").exists()
