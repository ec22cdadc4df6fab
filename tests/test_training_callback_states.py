"""A run in parts ends as the whole one does, whatever callbacks it has."""

import collections
import contextlib
import enum
import itertools
import json
import signal
import sys
from pathlib import Path, PurePosixPath

import keras
import numpy as np
import pytest
from backends import once
from keras import callbacks, layers

import gaaf
import main
from training import callback_states, console, model

BACKEND = keras.backend.backend()
slow = pytest.mark.slow


@pytest.fixture
def small(npz, monkeypatch, tmp_path):
    """A network that trains within a second; returns the settings of a run of it by name."""

    def build(settings, data):
        return keras.Sequential(
            [
                keras.Input(data.image_shape, dtype="uint8"),
                layers.Rescaling(1 / 255, dtype="float32"),
                layers.AveragePooling2D(8),
                layers.Flatten(),
                layers.Dense(8, gaaf.GAAF("relu")),
                layers.Dropout(0.2),  # which a run in parts has to go on with as well
                layers.Dense(data.num_classes, "softmax", name="classifier"),
            ]
        )

    def settings(name, epochs=5):
        directory = tmp_path / name
        given = {"data": npz, "batch_size": 32, "epochs": epochs, "output_dir": directory}
        return main.Settings(schedule="constant", learning_rate=0.01, **given)

    def optimizer(settings, model):
        return keras.optimizers.SGD(0.3, momentum=0.9, use_ema=True, ema_momentum=0.5)

    monkeypatch.setattr(model, "build", build)
    monkeypatch.setattr(model, "optimizer", optimizer)
    monkeypatch.chdir(tmp_path)
    return settings


class Stop(callbacks.Callback):
    """Interrupts a run in the middle of an epoch."""

    def __init__(self, epoch=None):
        super().__init__()
        self.stops_in = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch + 1

    def on_train_batch_begin(self, batch, logs=None):
        if (self.now, batch) == (self.stops_in, 2):
            raise console.Interrupted(signal.SIGINT)


class Mine(callbacks.Callback):
    """A callback as users write them: its state decides the learning rate."""

    def __init__(self):
        super().__init__()
        self.losses, self.best, self.weights, self.seen = [], None, (), {"epochs": 0}

    def on_epoch_end(self, epoch, logs=None):
        self.losses.append(np.float32(logs["loss"]))
        self.best = min(self.losses)
        self.weights = tuple(self.model.get_weights()[:1])
        self.seen["epochs"] += 1
        self.model.optimizer.learning_rate = 0.1 / self.seen["epochs"] + 1e-3 * len(self.losses)


# What makes each callback, in the directory of a run; None where a run cannot have it.
MAKERS = {
    "BackupAndRestore": None,  # is refused: a run goes on by itself
    "CSVLogger": lambda here: callbacks.CSVLogger(f"{here}.csv"),
    "Callback": lambda here: callbacks.Callback(),
    "CallbackList": None,  # is none itself
    "EarlyStopping": lambda here: callbacks.EarlyStopping(
        "loss", patience=3, min_delta=10.0, restore_best_weights=True
    ),
    "History": lambda here: callbacks.History(),
    "LambdaCallback": lambda here: callbacks.LambdaCallback(on_epoch_end=lambda *_: None),
    "LearningRateScheduler": lambda here: callbacks.LearningRateScheduler(
        lambda epoch, rate: rate / (epoch + 1)
    ),
    "ModelCheckpoint": lambda here: callbacks.ModelCheckpoint(
        f"{here}.best.keras", monitor="val_loss", save_best_only=True
    ),
    "OrbaxCheckpoint": lambda here: callbacks.OrbaxCheckpoint(f"{here}.orbax", max_to_keep=9),
    "ProgbarLogger": lambda here: callbacks.ProgbarLogger(),
    "ReduceLROnPlateau": lambda here: callbacks.ReduceLROnPlateau(
        "loss", patience=1, cooldown=1, min_delta=10.0
    ),
    "RemoteMonitor": lambda here: callbacks.RemoteMonitor("http://localhost:1"),
    "SwapEMAWeights": lambda here: callbacks.SwapEMAWeights(swap_on_epoch=True),
    "TensorBoard": lambda here: callbacks.TensorBoard(f"{here}.tensorboard"),
    "TerminateOnNaN": lambda here: callbacks.TerminateOnNaN(),
}
MORE = {
    "Mine": lambda here: Mine(),
    "ModelCheckpoint by steps": lambda here: callbacks.ModelCheckpoint(
        here + ".{epoch}.{batch}.keras", save_freq=7
    ),
    "SwapEMAWeights for tests": lambda here: callbacks.SwapEMAWeights(),
}
NEEDED = {"TensorBoard": "tensorboard", "OrbaxCheckpoint": "orbax.checkpoint"}  # write the files
POSSIBLE = {name: make for name, make in (MAKERS | MORE).items() if make}
STATEFUL = ("EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau", "SwapEMAWeights", "Mine")
STATEFUL += ("CSVLogger", "ModelCheckpoint by steps", "SwapEMAWeights for tests")
STATELESS = ("Callback", "History", "LambdaCallback", "ProgbarLogger", "RemoteMonitor")
STATELESS += ("TerminateOnNaN", "LearningRateScheduler")
TOGETHER = ("EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau", "SwapEMAWeights", "CSVLogger")
TOGETHER += ("ModelCheckpoint by steps",)
# These two would undo each other.
PAIRS = set(itertools.combinations(STATEFUL, 2)) - {("SwapEMAWeights", "SwapEMAWeights for tests")}


def arrays_of(path):
    loaded = keras.models.load_model(path)
    return [np.asarray(v) for v in (*loaded.weights, *loaded.optimizer.variables)]


def require_same(whole, parts):
    for name in ("history.csv", "final.keras", "best.keras"):
        a, b = whole / name, parts / name
        if name == "history.csv":
            assert a.read_bytes() == b.read_bytes()
        else:
            for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
                np.testing.assert_array_equal(x, y, err_msg=name)
    written = [
        sorted(path.name.removeprefix(run.name) for path in run.parent.glob(f"{run.name}.*"))
        for run in (whole, parts)
    ]
    assert written[0] == written[1]
    for name in written[0]:
        a, b = (run.with_name(run.name + name) for run in (whole, parts))
        if name.endswith(".csv"):
            assert a.read_bytes() == b.read_bytes()
        elif name.endswith(".keras"):
            for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
                np.testing.assert_array_equal(x, y, err_msg=name)


def compare(names, small, tmp_path):
    def train(run, stop=None):
        made = [POSSIBLE[name](str(tmp_path / run)) for name in names]
        return main.train(small(run), [*made, Stop(stop)])

    train("whole")
    with pytest.raises(console.Interrupted):
        train("parts", stop=3)
    train("parts")
    require_same(tmp_path / "whole", tmp_path / "parts")


def test_every_callback_of_keras_is_known_here():
    """A new one is to be tried."""
    assert {name for name in dir(callbacks) if not name.startswith("_")} == set(MAKERS)


def alone_and_together():
    """Each callback alone, which is slow if it is also among those that train together."""
    for name in POSSIBLE:
        again = name in STATELESS + TOGETHER
        yield pytest.param([name], marks=slow if again else [], id=name)
    yield pytest.param(STATELESS, id="without a state")
    yield pytest.param(TOGETHER, id="with a state")


@pytest.mark.parametrize("names", list(alone_and_together()))
def test_a_run_in_parts_ends_as_the_whole_one(names, small, tmp_path, capsys):
    for name in names:
        if name in NEEDED:
            pytest.importorskip(NEEDED[name])
    compare(names, small, tmp_path)
    assert "cannot give back" not in capsys.readouterr().out


@slow
@pytest.mark.parametrize("names", sorted(PAIRS), ids=" and ".join)
def test_so_does_one_with_two_callbacks(names, small, tmp_path):
    compare(names, small, tmp_path)


def test_a_callback_that_stops_a_run_stops_one_in_parts_as_early(small, tmp_path):
    patient = [callbacks.EarlyStopping("loss", patience=3, min_delta=10.0)]
    history = main.train(small("whole"), [*patient, Stop()])
    assert history.epoch == [0, 1, 2, 3]
    with pytest.raises(console.Interrupted):
        main.train(small("parts"), [*patient, Stop(3)])
    fresh = callbacks.EarlyStopping("loss", patience=3, min_delta=10.0)
    history = main.train(small("parts"), [fresh, Stop()])
    assert history.epoch == [2, 3]


def test_a_setting_of_a_callback_may_change(small, capsys):
    with pytest.raises(console.Interrupted):
        main.train(small("run"), [callbacks.EarlyStopping("loss", 10.0, 3), Stop(3)])
    main.train(small("run"), [callbacks.EarlyStopping("loss", 10.0, patience=30), Stop()])
    assert "Stopped" not in capsys.readouterr().out


def test_averaged_weights_are_those_that_are_kept_and_tested(small, tmp_path):
    """And training goes on from the others."""
    history = main.train(small("run"), [callbacks.SwapEMAWeights(swap_on_epoch=True)])
    final = keras.models.load_model(tmp_path / "run" / "final.keras", compile=False)
    with np.load(small("run").data) as arrays:
        predicted = final.predict(arrays["x_test"], verbose=0).argmax(axis=1)
        accuracy = np.mean(predicted == arrays["y_test"])
    assert accuracy == pytest.approx(history.history["val_accuracy"][-1], abs=1e-6)


class Unkeepable(callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.generator, self.epochs, self.function = np.random.default_rng(0), 0, print
        # A plain dict or tuple in their place would behave in another way.
        self.counts = collections.defaultdict(int)
        self.best = collections.namedtuple("Best", "epoch loss")(0, 1.0)


def test_what_cannot_be_kept_is_named_when_the_run_begins(small, capsys):
    main.train(small("run", epochs=2), [Unkeepable()])
    said = capsys.readouterr().out
    line = "Callback Unkeepable: a run that goes on cannot give back what is in "
    line += "generator, counts, best; allowed"
    assert line in said and said.index(line) < said.index("Epoch 1/2")
    assert "epochs" not in said.split(line)[1].split("\n")[0] and "function" not in said


class BecomesUnkeepable(callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen, self.mean = {}, None

    def on_epoch_end(self, epoch, logs=None):
        self.seen["epochs"] = {epoch}
        self.mean = keras.metrics.Mean()  # which can be called, but is no function


def test_what_cannot_be_kept_any_more_is_named_once(small, capsys):
    main.train(small("run"), [BecomesUnkeepable()])
    line = "Callback BecomesUnkeepable: a run that goes on cannot give back what is in seen, mean; "
    assert capsys.readouterr().out.count(line) == 1


def test_values_come_back_as_what_they_were():
    tensor = keras.ops.convert_to_tensor([1.5, 2.5])
    values = [None, True, 2, 0.1, "a", [1, (2,)], {3: {"b": []}}, Path("a") / "b", keras.ops.max]
    values += [np.float64(0.1), np.float32(0.1), np.arange(3), np.array("text"), tensor]
    arrays = {}
    plain = json.loads(json.dumps([callback_states._plain(value, arrays) for value in values]))
    for value, kept in zip(values, plain, strict=True):
        back = callback_states._restored(kept, arrays)
        assert type(back) is type(value)
        assert np.all(np.asarray(back == value))


endless = {}
endless["itself"] = endless
UNKEEPABLE = {
    "an object": object(),
    "a set": {1},
    "a counter": collections.Counter("a"),
    "a word of an enumeration": enum.StrEnum("Mode", ["A"]).A,
    "a masked array": np.ma.masked_array([1.0], [True]),
    "an array of objects": np.array([None]),
    "a path of no file system": PurePosixPath("a"),
    "a variable": keras.Variable(0.0),
    "a tensor that NumPy has no type for": keras.ops.cast([1.0], "bfloat16"),
    "a dictionary in itself": endless,
}


@pytest.mark.parametrize("what", UNKEEPABLE)
def test_what_would_come_back_as_something_else_is_not_kept(what):
    callback = Mine()
    callback.state = UNKEEPABLE[what]
    if what.startswith("a tensor") and BACKEND == "torch":
        pytest.skip("there it is kept in float32")
    attributes = callback_states._attributes_of(callback)
    assert "state" not in attributes
    assert callback_states._names_without_copy(callback, attributes) == ["state"]


def test_a_new_shape_of_an_array_and_a_user_s_own_validation_data_come_back():
    callback, later = Mine(), Mine()
    callback.state, callback.validation_data = np.zeros(4), 1
    states = callback_states.CallbackStates([callback])
    states.on_train_begin()
    callback.state, callback.validation_data = callback.state.reshape(2, 2), 2
    callback_states.CallbackStates([later], states.as_bytes()).on_train_begin()
    assert later.state.shape == (2, 2) and later.validation_data == 2


class SetsUpFromTheModel(callbacks.Callback):
    """What it takes from the model in the beginning decides all epochs."""

    def on_train_begin(self, logs=None):
        self.base = float(self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = self.base * 0.5 ** (epoch + 1)
        logs["epoch"] = 77.0  # must not replace that of the history


@once
def test_what_a_callback_takes_from_the_model_in_the_beginning_is_kept(small, tmp_path):
    main.train(small("whole"), [SetsUpFromTheModel()])
    with pytest.raises(console.Interrupted):
        main.train(small("parts"), [SetsUpFromTheModel(), Stop(3)])
    main.train(small("parts"), [SetsUpFromTheModel(), Stop()])
    require_same(tmp_path / "whole", tmp_path / "parts")


@once
def test_an_object_that_trains_again_loses_nothing_for_the_next_one(small, tmp_path):
    """As in a notebook whose cell is run again, and whose kernel is restarted later."""

    def mine():
        return callbacks.ModelCheckpoint(
            str(tmp_path / "best.keras"), monitor="loss", mode="max", save_best_only=True
        )

    main.train(small("whole"), [mine()])
    best = arrays_of(tmp_path / "best.keras")
    again = mine()
    for callback, stop in ((again, 2), (again, 4), (mine(), None)):
        with contextlib.suppress(console.Interrupted):
            main.train(small("parts"), [callback, Stop(stop)])
    for x, y in zip(best, arrays_of(tmp_path / "best.keras"), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux alone tells open files")
def test_an_interrupted_run_leaves_no_file_open(small):
    """Windows removes none that is open, and a notebook keeps the exception."""
    with pytest.raises(console.Interrupted) as kept:
        main.train(small("run"), [Stop(2)])
    assert kept.tb
    (log,) = Path("run/tensorboard").resolve().iterdir()
    assert log not in [path.resolve() for path in Path("/proc/self/fd").iterdir()]


def test_a_stdout_that_only_writes_is_enough(small, monkeypatch):
    class Tee:
        def __init__(self, file):
            self.write, self.flush = file.write, file.flush

    monkeypatch.setattr(sys, "stdout", Tee(sys.stdout))
    main.train(small("run", epochs=1))
    with pytest.raises(console.Interrupted):
        main.train(small("run", epochs=2), [Stop(2)])


def test_other_callbacks_begin_anew(small, capsys):
    main.train(small("run", epochs=1), [Mine()])
    mine = Mine()
    main.train(small("run", epochs=2), [callbacks.History(), mine])
    said = capsys.readouterr().out
    assert "Callback History begins anew: in its place there was Mine" in said
    assert "Callback Mine begins anew: in its place there was none" in said
    assert mine.seen == {"epochs": 1}


@once
def test_a_callback_that_is_left_out_is_named_if_it_remembered_anything(small, capsys):
    main.train(small("run", epochs=1), [callbacks.Callback(), Stop(), Mine()])
    main.train(small("run", epochs=2), [callbacks.Callback()])
    said = capsys.readouterr().out
    assert "Callback Mine is not given any more: what it remembered is lost" in said
    main.train(small("run", epochs=3))
    assert "is not given any more" not in capsys.readouterr().out


@once
def test_a_new_file_of_a_csv_logger_gets_a_header(small, tmp_path):
    for epochs, name in enumerate(("first.csv", "first.csv", "second.csv"), 1):
        main.train(small("run", epochs=epochs), [callbacks.CSVLogger(tmp_path / name)])
    header, row = (tmp_path / "second.csv").read_text().splitlines()
    assert header.startswith("epoch,") and row.startswith("2,")


@once
def test_averages_of_one_of_several_optimizers_are_enough(small, monkeypatch, tmp_path):
    def optimizers(settings, network):
        average = keras.optimizers.SGD(0.1, use_ema=True, name="average")
        adam = keras.optimizers.Adam(name="adam")
        choice = keras.optimizers.OptimizerMap(average, {"classifier/.*": adam})
        return keras.optimizers.MultiOptimizer(choice)

    monkeypatch.setattr(model, "optimizer", optimizers)
    compare(["SwapEMAWeights"], small, tmp_path)


class StopsWithin(callbacks.Callback):
    def __init__(self, epoch, step):
        super().__init__()
        self.stops_in, self.step = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch + 1) == (self.stops_in, self.step):
            self.model.stop_training = True


def test_an_epoch_that_a_callback_ends_within_is_not_kept(small, tmp_path, capsys):
    main.train(small("whole"))
    main.train(small("parts"), [StopsWithin(3, 2)])
    said = capsys.readouterr().out
    assert "Stopped in epoch 3 after step 2 of 4" in said
    rows = (tmp_path / "parts" / "history.csv").read_text().splitlines()
    assert len(rows) == 3 and (tmp_path / "parts" / "final.keras").exists()
    main.train(small("parts"))
    assert "Going on after epoch 2 of 5" in capsys.readouterr().out
    require_same(tmp_path / "whole", tmp_path / "parts")


def test_an_epoch_that_ends_with_its_last_step_is_whole(small, tmp_path, capsys):
    main.train(small("run"), [StopsWithin(2, 4)])
    assert "Stopped after epoch 2 of 5" in capsys.readouterr().out


@once
def test_an_epoch_that_keras_cuts_short_is_not_kept(small, tmp_path, capsys, monkeypatch):
    keras.config.set_max_steps_per_epoch(3)
    try:
        main.train(small("run", epochs=1))
    finally:
        keras.config.set_max_steps_per_epoch(None)
    assert "Stopped in epoch 1 after step 3 of 4" in capsys.readouterr().out
    assert not (tmp_path / "run" / "history.csv").exists()
    main.train(small("run", epochs=1))
    assert "Test accuracy" in capsys.readouterr().out


class Notes(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs |= {"note": "text", "seconds": 1.23456789}


def test_text_in_the_logs_does_not_lose_the_epoch(small, tmp_path):
    main.train(small("run", epochs=2), [Notes()])
    header, *rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert header.endswith("note,seconds")
    assert len(rows) == 2 and all(row.endswith("text,1.23457") for row in rows)


@pytest.mark.skipif(BACKEND != "jax", reason="Keras tells of steps out of order on JAX alone")
def test_the_step_of_a_nan_is_the_first_one(small, monkeypatch):
    """Steps of a NaN that Keras' threads tell of in any order."""
    build = model.build

    def with_nan(settings, data):
        data.x_train[:] = 255
        return build(settings, data)

    monkeypatch.setattr(model, "build", with_nan)
    monkeypatch.setattr(model, "optimizer", lambda *_: keras.optimizers.SGD(1e38))
    told = set()
    for number in range(10):
        with pytest.raises(console.NotFinite) as error:
            main.train(small(f"run{number}"))
        told.add(str(error.value).rpartition(" in ")[2])
    assert len(told) == 1
