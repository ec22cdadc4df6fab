"""`--evaluate`: the saved model of a run, or any other, on images to test it on."""

import json
import re

import keras
import numpy as np
import pytest
from backends import once
from trainings import stops_with

import main
from training.evaluate import confusion_table, confusions, evaluate, worst_confusions


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
        arguments = ["--evaluate", str(tmp_path / f"{name}.keras"), "--data=digits"]
        message = stops_with(2, arguments, capsys)
        assert f"{name}.keras" in message and "--evaluate: allowed is a model" in message
        count("bad inputs refused")
    for config in ({"depth": 1, "epochs": 1, "batch_size": 1, "activation": "", "data": 5}, None):
        (directory / "config.json").write_text(json.dumps({"settings": config}))
        assert "give --data" in stops_with(2, ["--evaluate", str(directory)], capsys)
    (directory / "config.json").unlink()
    assert "give --data" in stops_with(2, ["--evaluate", str(directory)], capsys)
    with pytest.raises(SystemExit) as end:
        main.main(["--evaluate", str(directory), "--depth=56", "--overwrite"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith("--evaluate: allowed beside it is --data; received depth, overwrite\n")


def test_an_error_without_words_is_told_by_its_kind(run, monkeypatch, capsys):
    def load_model(path, compile):
        raise RuntimeError

    monkeypatch.setattr(keras.models, "load_model", load_model)
    message = stops_with(2, ["--evaluate", str(run[0])], capsys)
    assert message.endswith("which cannot be loaded: RuntimeError\n")


def test_too_little_memory_is_no_fault_of_the_model(run, monkeypatch, capsys):
    def load_model(path, compile):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(keras.models, "load_model", load_model)
    message = stops_with(1, ["--evaluate", str(run[0])], capsys)
    assert message == "main.py: error: the memory is not enough to test this model\n"


def test_the_data_are_found_from_any_directory(npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(npz.parent)
    main.main(["--depth=8", "--epochs=1", "--activation=relu", "--data=small.npz"])
    trained = capsys.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(npz.parent))
    (directory,) = (npz.parent / "runs").iterdir()
    evaluate(f"~/runs/{directory.name}")
    accuracy = re.search(r"accuracy (\S+)", capsys.readouterr().out)[1]
    assert f"Test accuracy: {accuracy} in the last epoch" in trained
    evaluate(directory / "best.keras", "~/small.npz")
    assert f"accuracy {accuracy}" in capsys.readouterr().out
    npz.unlink()
    message = stops_with(2, ["--evaluate", str(directory)], capsys)
    assert "small.npz', which is not a file" in message


def test_data_that_have_changed_are_told(run, npz, tmp_path, capsys):
    directory, _ = run
    evaluate(directory)
    assert "Warning" not in capsys.readouterr().out
    config = json.loads((directory / "config.json").read_text())
    config["settings"]["data"] = str(npz)  # other images and labels
    (directory / "config.json").write_text(json.dumps(config))
    warning = "Warning: the data have changed since this run was trained"
    evaluate(directory)
    assert warning in capsys.readouterr().out
    evaluate(directory, npz)  # which was asked for
    assert warning not in capsys.readouterr().out

    config["settings"]["validation"] = 0.01  # of which no image of a class can be held out
    (directory / "config.json").write_text(json.dumps(config))
    evaluate(directory)
    assert warning in capsys.readouterr().out


def test_a_model_of_other_images_is_refused(run, npz, tmp_path, capsys):
    directory, _ = run
    with np.load(npz) as arrays:
        arrays = dict(arrays)
    grey = arrays | {x: arrays[x][..., 0] for x in ("x_train", "x_test")}
    eleven = arrays | {"y_train": np.arange(128) % 11}
    for other, words in (
        (grey, "from (None, 32, 32, 1) to (None, 10)"),
        (eleven, "from (None, 32, 32, 3) to (None, 11)"),
    ):
        np.savez(tmp_path / "other.npz", **other)
        arguments = ["--evaluate", str(directory), "--data", str(tmp_path / "other.npz")]
        message = stops_with(2, arguments, capsys)
        assert words in message and "from (None, 32, 32, 3) to (None, 10)" in message


@once
def test_images_of_many_classes_train_and_show_the_worst_confusions(tmp_path, capsys):
    """Grey ones of 64 × 64 pixels, too."""
    x = np.random.default_rng(0).integers(0, 256, (110, 64, 64), dtype="uint8")
    y = np.arange(110) % 100
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    flags = [f"--data={tmp_path / 'a.npz'}", "--depth=8", "--activation=relu", "--epochs=1"]
    main.main([*flags, "--batch-size=55", f"--output-dir={tmp_path / 'run'}"])
    capsys.readouterr()
    loaded = keras.models.load_model(tmp_path / "run" / "final.keras")
    assert loaded.input_shape == (None, 64, 64, 1) and loaded.output_shape == (None, 100)
    main.main(["--evaluate", str(tmp_path / "run")])
    said = capsys.readouterr().out
    accuracy = float(re.search(r"accuracy (\S+)", said)[1])
    assert f"the 10 worst confusions, of {round(30 * (1 - accuracy))}:" in said
    rows = said.splitlines()[-10:]
    predicted = loaded.predict(x[:30, ..., None], verbose=0).argmax(axis=1)
    for row in rows:
        true, wrong, n, of = map(int, row.split())
        assert n == np.sum((y[:30] == true) & (predicted == wrong))
        assert of == np.sum(y[:30] == true)


def test_tables_of_confusions():
    counts = np.zeros((3, 3), int)
    counts[0] = [1000, 5, 0]
    counts[2] = [1, 0, 3]
    head, first, second, third = confusion_table(counts).splitlines()
    assert head.split() == ["true", "\\", "predicted", "0", "1", "2", "right"]
    assert first.split() == ["0", "1000", "5", "0", "0.9950"]
    assert second.split() == ["1", "0", "0", "0", "–"]  # no image of it
    assert third.split() == ["2", "1", "0", "3", "0.7500"]
    assert len({len(line) for line in (head, first, second, third)}) == 1
    title, _, worst, then = worst_confusions(counts).splitlines()  # and no others
    assert title == "the 2 worst confusions, of 6:"
    assert (worst.split(), then.split()) == (["0", "1", "5", "1005"], ["2", "0", "1", "4"])


@pytest.mark.parametrize(
    ("classes", "count", "fits"), [(14, 9, True), (15, 9, False), (14, 1000, False)]
)
def test_no_table_is_wider_than_a_screen(classes, count, fits):
    said = confusions(np.full((classes, classes), count))
    assert ("predicted  images" not in said) == fits
    assert max(map(len, said.splitlines())) <= 80


def test_a_model_with_an_activity_regularizer(run, tmp_path, capsys):
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.GlobalAveragePooling2D()]
    layers += [keras.layers.Dense(10, "softmax", activity_regularizer="l2")]
    model = keras.Sequential([keras.Input((32, 32, 3)), *layers])
    model.save(tmp_path / "model.keras")
    main.main(["--evaluate", str(tmp_path / "model.keras"), "--data=digits"])
    assert re.search(r"^loss \d+\.\d+, accuracy", capsys.readouterr().out, re.M)
