"""The command line, and whole trainings on small data."""

import dataclasses
import functools
import json
import re

import keras
import numpy as np
import pytest
from backends import BACKEND, once
from processes import ROOT, python
from test_training_callbacks import scalars
from trainings import contents, stops_with
from trainings import flags as flags_of

import main
import training.model
import training.tensorflow_cpu
from training import batches, devices, report
from training.data import load
from training.files import read_history
from training.learning_rate import LearningRate
from training.model import build
from training.settings import check, parse


def test_help_names_every_setting_and_needs_no_keras():
    done = python(ROOT / "main.py", "--help")
    assert done.returncode == 0 and done.stderr == ""
    for field in dataclasses.fields(main.Settings):
        assert f"--{field.name.replace('_', '-')}" in done.stdout
    done = python("-c", "import main, sys; assert 'keras' not in sys.modules")
    assert done.returncode == 0, done.stderr


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
        (["--optimizer", "adamax"], "optimizer"),
        (["--schedule", "linear"], "schedule"),
        (["--weight-decay", "-1"], "weight_decay"),
        (["--learning-rate", "fast"], "--learning-rate"),
        (["--activation", "GAAF_elu"], "shape"),
        (["--activation", "GAAF_"], "activation"),
        (["--data", "~nobody-of-that-name/a.npz"], "data"),
        (["--evaluate", "~nobody-of-that-name/a"], "evaluate"),
        (["--ignore-changes", "yes"], "yes"),
        (["--data", ""], "data"),
        (["--data", "."], "data"),
        (["--output-dir", ""], "output_dir"),
        (["--overwrite", "yes"], "yes"),
        (["--evaluate", "missing"], "evaluate"),
        (["--evaluate", "."], "evaluate"),
        (["--data", "missing.npz"], "data"),
        (["--output-dir", "/dev/null/run", "--data", "digits"], "output_dir"),
        (
            ["--output-dir", "x" * 300, "--data", "digits"],
            "output_dir",
        ),  # longer than a name may be
        (["--data", "x" * 300], "data"),
        (["--evaluate", "x" * 300], "evaluate"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(arguments, name, empty_directory, capsys, count):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("main.py: error: ") and message.count("\n") == 1
    assert name.replace("_", "-") in message.split(": ", 2)[2]
    assert list(empty_directory.iterdir()) == []
    count("bad inputs refused")


def test_a_mistake_in_a_process_of_its_own():
    done = python(ROOT / "main.py", "--epochs", "0")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "main.py: error: --epochs: allowed is int from 1 to 1000000; received 0"
    ]


def test_a_backend_that_cannot_be_imported_is_a_mistake(tmp_path):
    done = python(ROOT / "main.py", "--data=digits", cwd=tmp_path, KERAS_BACKEND="pytorch")
    assert (done.returncode, done.stdout) == (2, "") and list(tmp_path.iterdir()) == []
    assert re.fullmatch(
        "main.py: error: KERAS_BACKEND: allowed is tensorflow, jax, torch, if it is installed; "
        "received 'pytorch': .*\n",
        done.stderr,
    )


@pytest.mark.parametrize("backend", ["numpy", "openvino"])
def test_a_backend_that_cannot_train_is_a_mistake(backend, tmp_path, monkeypatch):
    if backend == "openvino":
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        (tmp_path / "openvino.py").write_text("")
    done = python(ROOT / "main.py", "--data=digits", cwd=tmp_path, KERAS_BACKEND=backend)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "main.py: error: KERAS_BACKEND: allowed is tensorflow, jax, torch"
    )
    assert done.stderr.count("\n") == 1 and f"received {backend!r}" in done.stderr


def test_a_matplotlib_that_cannot_be_imported_is_not_the_backends_fault(tmp_path):
    done = python(ROOT / "main.py", "--data=digits", cwd=tmp_path, MPLBACKEND="junk")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("main.py: "))
    assert "'junk' is not a valid value" in line and "KERAS_BACKEND" not in line


@pytest.mark.parametrize(
    "mistake",
    ["--version=3", "--data=missing.npz", "--epochs=0", "--shift=nan", "--optimizer=adamax"],
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


@pytest.mark.parametrize("mistake", ["--depth=21", "--activation=rleu"])
def test_what_cannot_be_built_is_told_before_any_data_is_read(mistake, monkeypatch, capsys):
    monkeypatch.setattr("training.data.load", lambda source: pytest.fail("the data was read"))
    with pytest.raises(SystemExit) as end:
        main.main([mistake, "--data=digits"])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_mixed_precision_trains_and_leaves_keras_as_it_was(few_images, tmp_path):
    settings = main.Settings(
        depth=8,
        data=few_images,
        batch_size=16,
        epochs=1,
        precision="mixed_bfloat16",
        output_dir=str(tmp_path / "run"),
    )
    history = main.train(settings)
    assert keras.config.dtype_policy().name == "float32"
    assert history.model.layers[-1].get_layer("stem_act").compute_dtype == "bfloat16"
    assert np.isfinite(history.history["loss"]).all()


def test_a_loaded_model_of_mixed_float16_scales_its_loss(few_images, tmp_path):
    settings = main.Settings(
        depth=8,
        data=few_images,
        batch_size=16,
        epochs=1,
        precision="mixed_float16",
        optimizer="adamw",
        output_dir=tmp_path / "run",
    )
    trained = main.train(settings).model
    loaded = keras.models.load_model(tmp_path / "run" / "final.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(loaded.optimizer.inner_optimizer, keras.optimizers.AdamW)
    for x, y in zip(loaded.optimizer.variables, trained.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    x, y = np.zeros((8, 32, 32, 3), "uint8"), np.arange(8)
    assert np.isfinite(loaded.fit(x, y, verbose=0).history["loss"]).all()


def test_the_seed_decides_the_run(few_images, tmp_path):
    def weights(seed, run):
        settings = main.Settings(
            depth=8,
            data=few_images,
            batch_size=8,
            epochs=1,
            seed=seed,
            output_dir=str(tmp_path / run),
        )
        return main.train(settings).model.get_weights()

    first, same, other = weights(1, "first"), weights(1, "same"), weights(2, "other")
    for a, b in zip(first, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("augmentation", [False, True])
@pytest.mark.parametrize("wins, precision", [(True, "float32"), (True, "x"), (False, "float32")])
def test_a_run_says_how_it_trains(wins, precision, augmentation, run, monkeypatch, capsys):
    directory, _ = run
    config = json.loads((directory / "config.json").read_text())
    config["settings"] |= {"precision": precision, "data_augmentation": augmentation}
    monkeypatch.setattr(devices, "bfloat16_wins", lambda: wins)
    report.announce(config, directory)
    said = capsys.readouterr().out
    assert re.search(r"^augmentation +(.+)$", said, re.M)[1] == (
        "flips and shifts" if augmentation else "none"
    )
    better = wins and precision == "float32"
    assert ("this CPU is faster with --precision mixed_bfloat16" in said) == better


@once
def test_the_network_is_told_to_the_optimizer_and_to_what_makes_the_graph_smaller(
    npz, tmp_path, monkeypatch
):
    made, told = training.model.optimizer, []
    monkeypatch.setattr(
        training.model, "optimizer", lambda s, model: told.append(model) or made(s, model)
    )
    monkeypatch.setattr(training.tensorflow_cpu, "shrink_graph", told.append)
    settings = {"depth": 8, "data": str(npz), "epochs": 1, "optimizer": "adamw"}
    history = main.train(main.Settings(**settings, output_dir=str(tmp_path / "run")))
    assert history.epoch == [0] and told == [history.model] * 2


@pytest.mark.parametrize(
    "version, depth, activation",
    [(1, 8, "GAAF_relu"), pytest.param(2, 11, "GAAF_tanh", marks=pytest.mark.slow)],
)
def test_training_on_the_digits(version, depth, activation, empty_directory, graphics_card, capsys):
    arguments = {
        "version": version,
        "depth": depth,
        "activation": activation,
        "data": "digits",
        "batch_size": 16,
        "epochs": 3,
    }
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in arguments.items()]
    main.main(flags)
    (directory,) = (empty_directory / "runs").iterdir()
    rows = read_history(directory / "history.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["val_accuracy"] > 0.6  # chance is 0.1

    said = capsys.readouterr().out
    advice = said.splitlines()[0]  # before all else
    assert advice.startswith("This machine has an NVIDIA GPU, but trains on its CPU; ")
    assert advice.endswith(devices.WITH_CUDA[BACKEND])
    for part in (f"resnet{depth}_v{version}", "1,437 training", "Adam from 0.001", "Time left"):
        assert part in said
    assert (
        f"compiler      {devices.compiler_in_words()}" in said
        and "Compiling the training step" in said
    )
    assert f"activation    {activation}" in said and f"results       runs/{directory.name}" in said
    best = max(row["val_accuracy"] for row in rows)
    assert f"{rows[-1]['val_accuracy']:.4f} in the last epoch, 3; {best:.4f} in the best" in said

    config = json.loads((directory / "config.json").read_text())
    assert config["settings"] == dataclasses.asdict(check(parse(main.Settings, "", flags)[0]))
    assert config["stretches"][0]["versions"]["keras"] == keras.__version__
    assert {path.name for path in directory.iterdir()} == {
        *("config.json", "history.csv", "curves.png", "best.keras", "final.keras", "tensorboard"),
        *("checkpoints", ".lock"),
    }
    assert {path.name for path in (directory / "checkpoints").iterdir()} <= {
        f"{epoch:04}.keras" for epoch in range(1, 4)
    }
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.stat().st_size > 0 for path in (directory / "tensorboard").iterdir()] == [True]

    digits = load("digits")  # raw uint8 images
    for name, accuracy in (("final", rows[-1]["val_accuracy"]), ("best", best)):
        model = keras.models.load_model(directory / f"{name}.keras")
        evaluated = model.evaluate(digits.x_test, digits.y_test, verbose=0, return_dict=True)
        assert evaluated["accuracy"] == pytest.approx(accuracy, abs=1e-5)
    model.fit(digits.x_train[:64], digits.y_train[:64], verbose=0)  # goes on training

    main.main(flags)  # the same once more has nothing left to do
    said = capsys.readouterr().out
    assert "Nothing to train: this run ended on " in said
    assert f"{rows[-1]['val_accuracy']:.4f} in the last epoch, 3; {best:.4f} in the best" in said
    assert read_history(directory / "history.csv") == rows

    main.main(["--evaluate", str(directory)])
    said = capsys.readouterr().out
    loss = float(re.search(r"loss (\S+)", said).group(1).rstrip(","))
    assert loss == pytest.approx(rows[-1]["val_loss"], abs=2e-3)
    assert f"accuracy {rows[-1]['val_accuracy']:.4f}" in said


@once
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
    rows = read_history(tmp_path / "Läufe" / "ein Lauf" / "history.csv")
    assert list(rows[0]) == [
        "epoch",
        "learning_rate",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
    ]
    for column in list(rows[0])[1:]:
        assert history.history[column] == pytest.approx([row[column] for row in rows], rel=1e-5)


def test_the_defaults_are_those_of_plain_keras_and_adam(npz, tmp_path):
    settings = main.Settings(depth=8, data=str(npz), epochs=1, output_dir=str(tmp_path / "run"))
    trained = main.train(settings).model
    data = load(str(npz))
    keras.utils.set_random_seed(settings.seed)
    model = build(settings, data)
    model.compile(
        keras.optimizers.Adam(1e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=devices.jit_compile(),
    )
    model.fit(**batches.feed(settings, data), epochs=1, verbose=0)
    for ours, theirs in zip(trained.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def compiled_with(monkeypatch, **changes):
    """Has main.py compile with other arguments, as if they were edited there."""
    compile_ = keras.Model.compile

    def edited(model, **arguments):
        compile_(model, **arguments | changes)

    monkeypatch.setattr(keras.Model, "compile", edited)


class Recorder(keras.callbacks.Callback):
    """Sees what there is after each epoch, and adds a figure of its own."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((epoch, dict(logs)))
        logs["seconds"] = 10.0 * epoch


def test_callbacks_metrics_and_schedules_of_ones_own(npz, tmp_path, monkeypatch, capsys):
    """The history has the metric and the rate, and the run ends where a callback has it end."""
    decay = keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=8, decay_rate=0.5)
    top = keras.metrics.SparseTopKCategoricalAccuracy(k=3, name="top3")
    compiled_with(monkeypatch, optimizer=keras.optimizers.RMSprop(decay), metrics=["accuracy", top])
    settings = main.Settings(
        **{"depth": 8, "data": str(npz), "epochs": 5, "batch_size": 16, "activation": "relu"},
        output_dir=str(tmp_path / "run"),
    )
    recorder = Recorder()
    # It stops when the loss has not risen.
    stop = keras.callbacks.EarlyStopping("loss", patience=1, mode="max")
    history = main.train(settings, callbacks=[recorder, stop])
    said = capsys.readouterr().out
    rows = read_history(tmp_path / "run" / "history.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert "RMSprop, schedule ExponentialDecay, float32" in said
    assert "Stopped after epoch 2 of 5" in said
    first = ["epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert list(rows[0]) == [*first, "top3", "val_top3", "seconds"]
    assert [row["seconds"] for row in rows] == [0, 10] == history.history["seconds"]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.005, 0.0025], rel=1e-5)
    assert [epoch for epoch, _ in recorder.epochs] == [0, 1] == history.epoch
    for (_, logs), row in zip(recorder.epochs, rows, strict=True):
        assert logs["top3"] == pytest.approx(row["top3"], rel=1e-5)
    seen = scalars(tmp_path / "run" / "tensorboard")
    assert (seen[2, "top3/train"], seen[2, "top3/test"]) == (rows[1]["top3"], rows[1]["val_top3"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["optimizer"]["learning_rate"]["class_name"] == "ExponentialDecay"
    assert (tmp_path / "run" / "final.keras").exists()


@once
def test_a_plateau_lowers_a_constant_rate_and_it_stays_low(npz, tmp_path, capsys):
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, mode="max")
    settings = main.Settings(
        **{"depth": 8, "data": str(npz), "epochs": 3, "batch_size": 64, "activation": "relu"},
        **{"schedule": "constant", "optimizer": "sgd", "output_dir": str(tmp_path / "run")},
    )
    with pytest.raises(
        ValueError, match=r"^schedule: allowed with ReduceLROnPlateau is 'constant'"
    ):
        main.train(dataclasses.replace(settings, schedule="step"), callbacks=[plateau])
    assert not (tmp_path / "run").exists()
    main.train(settings, callbacks=[plateau])  # as if the loss were to rise, it lowers the rate
    main.train(dataclasses.replace(settings, epochs=4))
    rates = [row["learning_rate"] for row in read_history(tmp_path / "run" / "history.csv")]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.025])


def test_a_schedule_among_ones_callbacks_has_the_last_word():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), "mse")

    def set_rate(epoch, logs):
        model.optimizer.learning_rate = 0.25 / (epoch + 1)

    theirs = keras.callbacks.LambdaCallback(on_epoch_begin=set_rate)
    ours = LearningRate(main.Settings(epochs=2), model.optimizer)
    x = np.ones((4, 2), "float32")
    history = model.fit(x, x[:, :1], epochs=2, callbacks=[ours, theirs], verbose=0)
    assert history.history["learning_rate"] == pytest.approx([0.25, 0.125])
    history = model.fit(x, x[:, :1], epochs=2, callbacks=[ours], verbose=0)
    assert history.history["learning_rate"] == pytest.approx([0.5, 0.05])
    model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.25, 1, 1)
    history = model.fit(x, x[:, :1], epochs=2, callbacks=[ours], verbose=0)
    assert history.history["learning_rate"] == pytest.approx([0.25, 0.25])


@once
def test_the_schedule_begins_with_the_rate_of_ones_own_optimizer(npz, tmp_path, monkeypatch):
    settings = main.Settings(
        **{"depth": 8, "data": str(npz), "epochs": 2, "batch_size": 64, "activation": "relu"},
        output_dir=str(tmp_path / "run"),
    )
    for epochs in (2, 3):  # the second one goes on
        with monkeypatch.context() as patch:
            compiled_with(patch, optimizer=keras.optimizers.Lion(2e-4))
            main.train(dataclasses.replace(settings, epochs=epochs))
    rates = [row["learning_rate"] for row in read_history(tmp_path / "run" / "history.csv")]
    assert rates == pytest.approx([2e-4, 2e-5, 2e-6])


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="new in Keras 3.15")
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@once
def test_each_of_several_optimizers_has_a_rate_of_its_own(
    precision, few_images, tmp_path, monkeypatch, capsys
):
    sgd, adam = keras.optimizers.SGD(0.5, name="sgd"), keras.optimizers.Adam(0.25, name="adam")
    choice = keras.optimizers.OptimizerMap(sgd, {"classifier/.*": adam})
    several = keras.optimizers.MultiOptimizer(choice)
    if precision == "mixed_float16":
        several = keras.optimizers.LossScaleOptimizer(several)
    compiled_with(monkeypatch, optimizer=several)
    settings = main.Settings(
        **{"depth": 8, "data": few_images, "epochs": 2, "batch_size": 16, "activation": "relu"},
        precision=precision,
        output_dir=str(tmp_path / "run"),
    )
    main.train(settings)
    seen = scalars(tmp_path / "run" / "tensorboard")
    assert seen[1, "learning_rate_sgd"] == 0.5 and seen[1, "learning_rate_adam"] == 0.25
    assert f"MultiOptimizer, schedule step, {precision}" in capsys.readouterr().out
    rows = read_history(tmp_path / "run" / "history.csv")
    assert [row["learning_rate_sgd"] for row in rows] == pytest.approx([0.5, 0.05])
    assert [row["learning_rate_adam"] for row in rows] == pytest.approx([0.25, 0.025])


@once
def test_what_runs_eagerly_can_be_looked_at(npz, tmp_path, monkeypatch):
    seen = []

    def loss(labels, probabilities):
        seen.append(float(probabilities[0, 0]))  # of a symbolic tensor there is no number
        return keras.losses.sparse_categorical_crossentropy(labels, probabilities)

    compiled_with(monkeypatch, loss=loss, run_eagerly=True)
    settings = main.Settings(
        **{"depth": 8, "data": str(npz), "epochs": 1, "batch_size": 64, "activation": "relu"},
        output_dir=str(tmp_path / "run"),
    )
    main.train(settings)
    assert seen.pop(0) == pytest.approx(0.1)  # a trial, before the run begins
    assert len(seen) == 3 and min(seen) > 0 and max(seen) < 1


@pytest.mark.parametrize("kind", [keras.Sequential, keras.Model])
def test_a_network_that_does_not_know_its_input_is_refused(
    kind, npz, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("training.model.build", lambda *_: kind(name="mine"))
    message = stops_with(2, flags_of(npz, tmp_path / "run", epochs=1), capsys)
    assert "model: allowed is a model from (None, 32, 32, 3) to (None, 10)" in message
    assert message.endswith("received mine, from None to None\n")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("steps", [4, "auto"])
def test_several_steps_at_once_are_refused(steps, run, monkeypatch, capsys):
    directory, flags = run
    before = contents(directory)
    compiled_with(monkeypatch, steps_per_execution=steps)
    message = stops_with(2, [*flags, "--overwrite"], capsys)
    assert message.endswith(f"steps_per_execution: allowed is 1; received {steps!r}\n")
    assert contents(directory) == before


@once
def test_a_loss_that_does_not_fit_fails_before_a_run_is_replaced(run, monkeypatch):
    directory, flags = run
    before = contents(directory)
    compiled_with(monkeypatch, loss="categorical_crossentropy")
    with pytest.raises(ValueError, match="same rank"):
        main.main([*flags, "--overwrite"])
    assert contents(directory) == before


def test_without_an_accuracy_the_lowest_loss_is_the_best(run, monkeypatch, capsys):
    directory, flags = run
    compiled_with(monkeypatch, metrics=[keras.metrics.SparseCategoricalAccuracy()])
    main.main([*flags, "--overwrite"])
    losses = [row["val_loss"] for row in read_history(directory / "history.csv")]
    best = losses.index(min(losses)) + 1
    said = capsys.readouterr().out
    assert f"No metric has the name accuracy: epoch {best} is the best, by val_loss\n" in said
    checkpoint = directory / "checkpoints" / f"{best:04}.keras"
    assert (directory / "best.keras").read_bytes() == checkpoint.read_bytes()


class Scaled(keras.layers.Layer):
    """Keras cannot save it: its argument is a function, and it has no `get_config`."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def call(self, x):
        return self.scale(x)


@once
@pytest.mark.parametrize("unsavable", ["layer", "optimizer"])
def test_what_keras_cannot_save_is_refused_before_it_trains(unsavable, run, monkeypatch, capsys):
    directory, flags = run
    before = contents(directory)
    if unsavable == "layer":
        layers = [keras.Input((32, 32, 3)), Scaled(lambda x: x / 255), keras.layers.Flatten()]
        network = keras.Sequential([*layers, keras.layers.Dense(10, "softmax")], name="mine")
        monkeypatch.setattr("training.model.build", lambda *_: network)
    else:
        rate = functools.partial(float, 1e-3)
        compiled_with(monkeypatch, optimizer=keras.optimizers.Adam(rate))
    message = stops_with(2, [*flags, "--overwrite", "--ignore-changes"], capsys)
    assert (
        "model: allowed is one that Keras can save, with its optimizer, loss and metrics; "
        in message
    )
    assert contents(directory) == before


@once
def test_a_network_for_images_of_any_size_trains(npz, tmp_path, monkeypatch):
    layers = [keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()]
    network = keras.Sequential([*layers, keras.layers.Dense(10, "softmax")])
    monkeypatch.setattr("training.model.build", lambda *_: network)
    main.main(flags_of(npz, tmp_path / "run", epochs=1))
    assert (tmp_path / "run" / "final.keras").exists()


@once
def test_a_run_ends_well_if_its_models_cannot_be_loaded(npz, tmp_path, capsys, monkeypatch):
    def with_code(*given):  # Keras saves a lambda, and refuses to load it in safe mode
        network = build(*given)
        raw = keras.Input(network.input_shape[1:], dtype="uint8")
        return keras.Sequential([raw, *network.layers, keras.layers.Lambda(lambda x: x)])

    monkeypatch.setattr("training.model.build", with_code)
    main.main(flags_of(npz, tmp_path / "run", epochs=1, validation=0.25))
    said = capsys.readouterr().out
    assert "Warning: the models of this run are not tested: allowed is a model saved" in said
    assert "Validation accuracy: " in said and "Test accuracy: " not in said
    assert "test_accuracy" not in json.loads((tmp_path / "run" / "config.json").read_text())


@once
def test_validation_images_choose_and_test_images_are_used_once(npz, tmp_path, capsys, monkeypatch):
    def tested(model, images, labels):
        used.append(len(images))
        return accuracy_of(model, images, labels)

    from training import evaluate

    used, accuracy_of = [], evaluate.accuracy_of
    monkeypatch.setattr(evaluate, "accuracy_of", tested)
    settings = main.Settings(
        depth=8, data=npz, batch_size=32, epochs=2, validation=0.25, output_dir=tmp_path / "run"
    )
    history = main.train(settings).history
    said = capsys.readouterr().out
    assert "images" in said and "16 test images" in said
    assert used == [16, 16]
    rows = read_history(tmp_path / "run" / "history.csv")
    assert [row["val_accuracy"] for row in rows] == pytest.approx(history["val_accuracy"], rel=1e-5)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    found = config["test_accuracy"]
    with np.load(npz) as arrays:
        for name in ("final.keras", "best.keras"):
            model = keras.models.load_model(tmp_path / "run" / name, compile=False)
            predicted = model.predict(arrays["x_test"], verbose=0).argmax(axis=1)
            assert found[name] == pytest.approx(np.mean(predicted == arrays["y_test"]))
    assert f"Test accuracy: {found['final.keras']:.4f} of final.keras" in said
    assert "Validation accuracy: " in said
    images = config["images"]
    assert images["training"] + images["validation"] == 128 and images["test"] == 16
    main.train(settings)  # there is nothing to train, nor to test
    assert len(used) == 2 and "Test accuracy: " in capsys.readouterr().out
