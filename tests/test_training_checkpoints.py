"""Checkpoints and the other files of a run: whole or not there, and never another process'."""

import errno
import signal

import keras
import numpy as np
import pytest

import main
import runs


def small_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def history(accuracies):
    columns = dict.fromkeys(runs.COLUMNS, 0.5)
    return [columns | {"epoch": i, "val_accuracy": a} for i, a in enumerate(accuracies, 1)]


def save_epochs(directory, accuracies):
    """Saves a checkpoint an epoch; returns the state after each, and the history."""
    model, rows = small_model(), history(accuracies)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    states = []
    for epoch in range(1, len(rows) + 1):
        model.train_on_batch(x, x[:, :3])
        runs.Checkpoints(directory).save(model, rows[:epoch])
        states.append(state(model))
    return states, rows


def state(model):
    return [v.numpy().copy() for v in (*model.weights, *model.optimizer.variables)]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def names(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_a_checkpoint_has_weights_optimizer_and_history(tmp_path):
    states, rows = save_epochs(tmp_path, [0.1, 0.2])
    model = small_model()
    assert runs.Checkpoints(tmp_path).restore(model) == rows
    assert_same(state(model), states[1])
    assert int(model.optimizer.iterations) == 2


def test_nothing_is_restored_from_nothing(tmp_path):
    model = small_model()
    before = state(model)
    assert runs.Checkpoints(tmp_path).restore(model) == []
    assert runs.Checkpoints(tmp_path).latest_epoch() == 0
    assert_same(state(model), before)


@pytest.mark.parametrize(
    "accuracies, stay",
    [
        ([0.1], [1]),
        ([0.1, 0.9, 0.2, 0.3], [2, 3, 4]),
        ([0.1, 0.9, 0.2, 0.3, 0.95], [2, 4, 5]),
        ([0.1, 0.9, 0.2, 0.3, 0.95, 0.4], [5, 6]),
    ],
)
def test_the_last_two_and_their_best_stay(tmp_path, accuracies, stay):
    save_epochs(tmp_path, accuracies)
    assert names(tmp_path) == [f"{epoch:04}.keras" for epoch in stay]
    assert runs.Checkpoints(tmp_path).latest_epoch() == len(accuracies)


def damaged_versions(content):
    """A checkpoint damaged in many ways: (what was done, bytes)."""
    rng = np.random.default_rng(0)
    yield "emptied", b""
    yield "not an archive", b"x" * 1000
    for size in rng.integers(1, len(content), 20):
        yield f"truncated to {size}", content[:size]
    for at in rng.integers(0, len(content), 100):
        bit = bytes([content[at] ^ (1 << rng.integers(8))])
        yield f"a bit of byte {at} flipped", content[:at] + bit + content[at + 1 :]


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(tmp_path, capsys, count):
    states, rows = save_epochs(tmp_path, [0.1, 0.3, 0.2])
    path = runs.Checkpoints(tmp_path).path(3)
    noticed = 0
    for what, content in damaged_versions(path.read_bytes()):
        path.write_bytes(content)
        model = small_model()
        restored = runs.Checkpoints(tmp_path).restore(model)
        warned = f"Warning: {path} is damaged" in capsys.readouterr().out
        # A flipped bit may have hit a date or a file's permissions, which nobody reads.
        assert warned or (restored == rows and what.startswith("a bit")), what
        assert restored == (rows[:2] if warned else rows), what
        assert_same(state(model), states[1 if warned else 2])
        noticed += warned
        count("damaged files survived")
    assert noticed > 100


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    states, rows = save_epochs(tmp_path, [0.1, 0.2])
    model = small_model()

    def half(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model, "save", half)
    with pytest.raises(OSError, match="No space left") as caught:
        runs.Checkpoints(tmp_path).save(model, history([0.1, 0.2, 0.3]))
    assert caught.value.filename.endswith("0003.keras")
    assert names(tmp_path) == ["0001.keras", "0002.keras"]
    assert runs.Checkpoints(tmp_path).restore(model) == rows
    assert_same(state(model), states[1])


def test_what_a_killed_process_left_unfinished_is_cleared_away(tmp_path):
    (tmp_path / "checkpoints" / ".unfinished").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".unfinished" / "0001.keras").write_bytes(b"half")
    save_epochs(tmp_path, [0.1])
    assert names(tmp_path) == ["0001.keras"]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runs.replace_file(path, fail)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    runs.replace_file(path, lambda temporary: temporary.write_text("after"))
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_directory_in_use_is_refused(tmp_path):
    refused = pytest.raises(runs.InUse, match=r"^output_dir: allowed is .*; received ")
    with runs.locked(tmp_path), refused, runs.locked(tmp_path):
        pass
    with runs.locked(tmp_path):
        pass


def test_remove_run_leaves_other_files(tmp_path):
    save_epochs(tmp_path, [0.1])
    (tmp_path / "history.csv").write_text("x")
    (tmp_path / "notes.txt").write_text("mine")
    runs.remove_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_signals_are_caught_once_and_given_back():
    before = signal.getsignal(signal.SIGINT)
    with runs.StopOnSignal() as stop:
        stop.on_train_batch_begin(0)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(runs.Interrupted, match="SIGINT"):
            stop.on_train_batch_begin(1)
        with pytest.raises(runs.Interrupted):
            stop.on_test_batch_begin(0)
        # The second one is the system's: it ends the process at once, in C++ code as well.
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_told_with_its_place(loss):
    stop = runs.StopOnNotFinite()
    stop.on_epoch_begin(4)
    stop.on_train_batch_end(6, {"loss": 1e30})
    with pytest.raises(runs.NotFinite, match="in epoch 5, step 8"):
        stop.on_train_batch_end(7, {"loss": loss})


def events(folder):
    """The events in the TensorBoard files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("*")):
        data = path.read_bytes()
        while data:  # each record: its length, 4 bytes of checksum, the event, 4 more
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_gradient_histograms_are_those_of_the_activations(npz, tmp_path):
    flags = ["--depth=8", f"--data={npz}", "--shape=none", f"--output-dir={tmp_path / 'run'}"]
    main.main([*flags, "--epochs=1", "--gradient-histograms"])
    main.main([*flags, "--epochs=2", "--gradient-histograms"])  # goes on, and loses none
    seen = list(events(tmp_path / "run" / "tensorboard" / "gradients"))
    values = [(event.step, value) for event in seen for value in event.summary.value]
    assert [step for step, _ in values] == [1] * 7 + [2] * 7
    for _, value in values:
        assert value.tag.startswith("gradient/") and "_act" in value.tag
        # φ′ + s is 0 + 1 or 1 + 1; 16 images, of which every value counts.
        assert (value.histo.min, value.histo.max) == (1, 2)
        assert value.histo.num % 16 == 0
    assert next(iter(values))[1].histo.num == 16 * 32 * 32 * 16
