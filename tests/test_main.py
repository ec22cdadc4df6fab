"""The command line, the settings, and whole trainings on small data."""

import csv
import dataclasses
import json
import os
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from backends import once
from processes import python

import data
import fast
import gaaf
import main
import runs

ROOT = Path(__file__).parent.parent


def test_help_names_every_setting_and_needs_no_keras():
    done = python(ROOT / "main.py", "--help")
    assert done.returncode == 0 and done.stderr == ""
    for field in dataclasses.fields(main.Settings):
        assert f"--{field.name.replace('_', '-')}" in done.stdout
    done = python("-c", "import main, sys; main.parse([]); assert 'keras' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_every_setting_is_a_flag():
    wanted = main.Settings(
        version=2,
        depth=56,
        activation="GAAF_tanh",
        shift=-0.5,
        slope=5.0,
        frequency=100.0,
        wave="none",
        shape="gaussian",
        fade=0.5,
        fade_steps=2,
        data="digits",
        data_augmentation=True,
        subtract_pixel_mean=False,
        batch_size=32,
        epochs=3,
        learning_rate=0.01,
        precision="mixed_bfloat16",
        seed=7,
        gradient_histograms=True,
        output_dir="somewhere",
        overwrite=True,
    )
    arguments = []
    for name, value in dataclasses.asdict(wanted).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
        assert value != getattr(main.Settings(), name)
    assert main.parse(arguments) == (wanted, None)
    assert main.parse([]) == (main.Settings(), None)


def test_defaults():
    settings = main.Settings()
    assert (settings.batch_size, settings.epochs, settings.learning_rate) == (128, 200, 1e-3)
    assert (settings.data, settings.data_augmentation) == ("cifar10", False)
    assert settings.subtract_pixel_mean
    assert (settings.activation, settings.shift) == ("GAAF_relu", gaaf.GAAF("relu").shift)


@pytest.mark.parametrize(
    "arguments, name",
    [
        (["--depth", "twenty"], "--depth"),
        (["--depth"], "--depth"),
        (["--deep", "20"], "--deep"),
        (["--version", "3"], "version"),
        (["--depth", "21"], "depth"),
        (["--depth", "32", "--version", "2"], "depth"),
        (["--activation", "rleu"], "activation"),
        (["--wave", "square"], "wave"),
        (["--shape", "triangle"], "shape"),
        (["--frequency", "0"], "frequency"),
        (["--fade", "1.1"], "fade"),
        (["--fade", "0.5", "--activation", "relu"], "fade"),
        (["--fade-steps", "0"], "fade_steps"),
        (["--shift", "nan"], "shift"),
        (["--slope", "inf"], "slope"),
        (["--batch-size", "0"], "batch_size"),
        (["--epochs", "-1"], "epochs"),
        (["--learning-rate", "0"], "learning_rate"),
        (["--precision", "float8"], "precision"),
        (["--seed", "-1"], "seed"),
        (["--seed", "1.5"], "--seed"),
        (["--depth", "600002"], "depth"),
        (["--depth", "-20"], "depth"),
        (["--batch-size", "99999999999999999999"], "batch_size"),
        (["--batch-size", "2000", "--data", "digits", "--depth", "8"], "data"),
        (["--epochs", "1e3"], "--epochs"),
        (["--epochs", "0"], "epochs"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--learning-rate", "inf"], "learning_rate"),
        (["--frequency", "1e300"], "frequency"),
        (["--shift", "one"], "--shift"),
        (["--data", ""], "data"),
        (["--data", "."], "data"),
        (["--output-dir", ""], "output_dir"),
        (["--overwrite", "yes"], "yes"),
        (["--evaluate", "missing"], "evaluate"),
        (["--evaluate", "."], "evaluate"),
        (["--data", "missing.npz"], "data"),
        (["--output-dir", "/dev/null/run", "--data", "digits"], "output_dir"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(arguments, name, empty_directory, capsys, count):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("main.py: error: ") and message.count("\n") == 1
    assert name in message.split(": ", 2)[2]
    assert list(empty_directory.iterdir()) == []
    count("bad inputs refused")


def test_a_mistake_in_a_process_of_its_own():
    done = python(ROOT / "main.py", "--epochs", "0")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "main.py: error: epochs: allowed is int from 1 to 1000000; received 0"
    ]


@pytest.mark.parametrize(
    "mistake",
    ["--depth=21", "--version=3", "--data=missing.npz", "--epochs=0", "--shift=nan"],
)
def test_a_mistake_is_told_before_keras_starts(mistake, tmp_path):
    code = (
        "import main, sys\n"
        "try: main.main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 2\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    done = python("-c", code, mistake, cwd=tmp_path)
    assert done.returncode == 0 and "main.py: error: " in done.stderr, done.stderr


def test_settings_of_a_wrong_type_are_refused_from_python_too():
    for settings in (
        main.Settings(depth="20"),
        main.Settings(shift=None),
        main.Settings(data_augmentation=1),
        main.Settings(batch_size=True),
    ):
        with pytest.raises(ValueError, match="allowed is"):
            main.check(settings)
    main.check(main.Settings(shift=2))  # an integer is a number


@pytest.mark.parametrize(
    "epochs, marks", [(200, (80, 120, 160, 180)), (10, (4, 6, 8, 9)), (1, (1, 1, 1, 1))]
)
def test_learning_rate_falls_at_the_marks(epochs, marks):
    settings = main.Settings(epochs=epochs)
    rates = [main.learning_rate_at(epoch, settings) for epoch in range(epochs)]
    bounds = [0, *marks, epochs]
    for factor, start, end in zip(
        (1, 0.1, 0.01, 0.001, 0.0005), bounds[:-1], bounds[1:], strict=True
    ):
        assert rates[start:end] == pytest.approx([1e-3 * factor] * (end - start))


def test_directories_of_different_settings_differ():
    base = main.Settings()
    directories = {main.directory_of(base)}
    for name, value in {"depth": 32, "shift": 0.0, "seed": 1, "precision": "mixed_float16"}.items():
        directories.add(main.directory_of(dataclasses.replace(base, **{name: value})))
    assert len(directories) == 5
    for directory in directories:
        assert directory.parent == Path("runs") and directory.name.startswith("cifar10-resnet")
    assert main.directory_of(dataclasses.replace(base, output_dir="a/b")) == Path("a/b")


@pytest.mark.parametrize("subtract_pixel_mean", [True, False])
def test_normalisation_is_part_of_the_model(npz, subtract_pixel_mean):
    settings = main.Settings(
        depth=8, data=str(npz), subtract_pixel_mean=subtract_pixel_mean, output_dir=str(npz.parent)
    )
    model, images = main.prepare(settings)
    x = images.x_train / 255
    if subtract_pixel_mean:
        x = x - x.mean(axis=0)
    np.testing.assert_allclose(
        model.predict(images.x_train, verbose=0),
        model.layers[-1].predict(x.astype("float32"), verbose=0),
        atol=1e-5,
    )


@pytest.mark.parametrize("version, resnet", [(1, "resnet20_v1"), (2, "resnet20_v2")])
def test_the_network_has_the_activation_of_the_settings(version, resnet):
    settings = main.Settings(version=version, shift=2.0, slope=3.0, wave="none", shape="none")
    network = main.build_network(settings)
    activation = network.get_layer("stem_act").activation
    assert network.name == resnet
    assert (activation.shift, activation.slope) == (2.0, 3.0)
    assert activation.wave is None and activation.shape is None
    settings = main.Settings(version=version, activation="GAAF_tanh", frequency=50.0)
    activation = main.build_network(settings).get_layer("stem_act").activation
    assert activation.activation is keras.activations.tanh
    assert (activation.frequency, activation.shape) == (50.0, "gaussian")
    network = main.build_network(main.Settings(version=version, activation="relu"))
    assert network.get_layer("stem_act").activation is keras.activations.relu


def test_mixed_precision_trains_and_leaves_keras_as_it_was(npz, tmp_path):
    settings = main.Settings(
        depth=8,
        data=str(npz),
        batch_size=16,
        epochs=1,
        precision="mixed_bfloat16",
        output_dir=str(tmp_path / "run"),
    )
    history = main.train(settings)
    assert keras.config.dtype_policy().name == "float32"
    assert history.model.layers[-1].get_layer("stem_act").compute_dtype == "bfloat16"
    assert np.isfinite(history.history["loss"]).all()


def test_mixed_float16_scales_its_loss(npz, tmp_path):
    settings = main.Settings(
        depth=8, data=str(npz), precision="mixed_float16", output_dir=str(tmp_path / "run")
    )
    model, _ = main.prepare(settings)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_the_seed_decides_the_run(npz, tmp_path):
    def weights(seed, run):
        settings = main.Settings(
            depth=8, data=str(npz), epochs=1, seed=seed, output_dir=str(tmp_path / run)
        )
        return main.train(settings).model.get_weights()

    first, same, other = weights(1, "first"), weights(1, "same"), weights(2, "other")
    for a, b in zip(first, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "fade, steps, strengths",
    [
        (0.0, 10, [1] * 10),
        (0.3, 1, [1] * 3 + [0] * 7),
        (0.4, 2, [1, 1, 0.5, 0.5] + [0] * 6),
        (1.0, 10, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_strength_fades_in_steps(fade, steps, strengths):
    settings = main.Settings(epochs=10, fade=fade, fade_steps=steps)
    assert [main.strength_at(epoch, settings) for epoch in range(10)] == pytest.approx(strengths)


def test_a_fading_network_trains_with_each_strength(npz, tmp_path, monkeypatch):
    traced = []
    call = gaaf.GAAF.call
    monkeypatch.setattr(
        gaaf.GAAF, "call", lambda self, x: traced.append(self.strength) or call(self, x)
    )
    settings = main.Settings(
        depth=8, data=str(npz), epochs=4, fade=0.75, fade_steps=3, output_dir=str(tmp_path / "run")
    )
    model = main.train(settings).model
    assert sorted(set(traced)) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert model.layers[-1].get_layer("stem_act").activation.strength == 0
    assert int(model.optimizer.iterations) == 1  # Adam began anew with the last of four steps
    loaded = keras.models.load_model(tmp_path / "run" / "final.keras")
    assert loaded.layers[-1].get_layer("stem_act").activation.strength == 0


def read_history(directory):
    with open(directory / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "version, depth, activation",
    [(1, 8, "GAAF_relu"), pytest.param(2, 11, "GAAF_tanh", marks=once)],
)
def test_training_on_the_digits(version, depth, activation, empty_directory, capsys):
    arguments = {
        "version": version,
        "depth": depth,
        "activation": activation,
        "data": "digits",
        "batch_size": 16,
        "epochs": 4,
    }
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in arguments.items()]
    main.main(flags)
    (directory,) = (empty_directory / "runs").iterdir()
    rows = read_history(directory)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["val_accuracy"] > 0.6  # chance is 0.1

    said = capsys.readouterr().out
    for part in (f"resnet{depth}_v{version}", "1,437 training", "Adam from 0.001", "Time left"):
        assert part in said
    assert f"way           {fast.way().words}" in said and "Compiling the training step" in said
    assert f"activation    {activation}" in said and f"results       runs/{directory.name}" in said
    best = max(row["val_accuracy"] for row in rows)
    assert f"{rows[-1]['val_accuracy']:.4f} in the last epoch, 4; {best:.4f} in the best" in said

    config = json.loads((directory / "config.json").read_text())
    assert config["settings"] == dataclasses.asdict(main.parse(flags)[0])
    assert config["versions"]["keras"] == keras.__version__
    assert {path.name for path in directory.iterdir()} == {
        *("config.json", "history.csv", "curves.png", "best.keras", "final.keras", "tensorboard"),
        *("checkpoints", ".lock"),
    }
    assert {path.name for path in (directory / "checkpoints").iterdir()} <= {
        f"{epoch:04}.keras" for epoch in range(1, 5)
    }
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.stat().st_size > 0 for path in (directory / "tensorboard").iterdir()] == [True]

    digits = data.load("digits")  # raw uint8 images
    for name, accuracy in (("final", rows[-1]["val_accuracy"]), ("best", best)):
        model = keras.models.load_model(directory / f"{name}.keras")
        evaluated = model.evaluate(digits.x_test, digits.y_test, verbose=0, return_dict=True)
        assert evaluated["accuracy"] == pytest.approx(accuracy, abs=1e-5)
    model.fit(digits.x_train[:64], digits.y_train[:64], verbose=0)  # goes on training

    main.main(flags)  # the same once more has nothing left to do
    assert "Going on after epoch 4 of 4" in capsys.readouterr().out
    assert read_history(directory) == rows

    main.main(["--evaluate", str(directory)])
    said = capsys.readouterr().out
    loss = float(re.search(r"loss (\S+)", said).group(1).rstrip(","))
    assert loss == pytest.approx(rows[-1]["val_loss"], abs=2e-3)
    assert f"accuracy {rows[-1]['val_accuracy']:.4f}" in said


def test_train_from_python_returns_the_history(npz, tmp_path):
    settings = main.Settings(
        depth=8,
        activation="relu",
        data=str(npz),
        data_augmentation=True,
        batch_size=16,
        epochs=2,
        output_dir=str(tmp_path / "Läufe" / "ein Lauf"),
    )
    history = main.train(settings)
    rows = read_history(tmp_path / "Läufe" / "ein Lauf")
    for column in runs.COLUMNS[1:]:
        assert history.history[column] == pytest.approx([row[column] for row in rows], rel=1e-5)


@once
def test_a_jax_user_needs_no_tensorflow(npz, tmp_path):
    pytest.importorskip("jax")
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "tensorflow.py").write_text("raise ImportError('TensorFlow is not installed')")
    done = python(
        *(ROOT / "main.py", "--depth=8", "--epochs=1", "--batch-size=16"),
        *(f"--data={npz}", f"--output-dir={tmp_path / 'run'}"),
        KERAS_BACKEND="jax",
        PYTHONPATH=str(absent),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "final.keras").exists()


def test_only_an_error_is_shown_of_what_libraries_write(capfd):
    with main.held_back():
        os.write(2, b"a note")
    os.write(2, b"a message")
    assert capfd.readouterr().err == "a message"
    with pytest.raises(ImportError), main.held_back():
        os.write(2, b"the reason")
        raise ImportError
    assert capfd.readouterr().err == "the reason"
