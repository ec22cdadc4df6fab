"""Checkpoints: whole or not there."""

import errno
import zipfile

import keras
import numpy as np
import pytest

from training.checkpoints import Checkpoints, best_of
from training.files import UNFINISHED


def small_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def history(accuracies):
    columns = dict.fromkeys(("loss", "accuracy", "val_loss"), 0.5)
    return [columns | {"epoch": i, "val_accuracy": a} for i, a in enumerate(accuracies, 1)]


def save_epochs(directory, accuracies):
    """Saves a checkpoint an epoch; returns the state after each, and the history."""
    model, rows = small_model(), history(accuracies)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    states = []
    for epoch in range(1, len(rows) + 1):
        model.train_on_batch(x, x[:, :3])
        Checkpoints(directory).save(model, rows[:epoch])
        states.append(state(model))
    return states, rows


def state(model):
    return [v.numpy().copy() for v in (*model.weights, *model.optimizer.variables)]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def restored(directory, model):
    """Loads the latest whole checkpoint into the model; returns its history."""
    rows = Checkpoints(directory).history()
    Checkpoints(directory).restore(model, len(rows))
    return rows


def names(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_a_checkpoint_has_weights_optimizer_and_history(tmp_path):
    states, rows = save_epochs(tmp_path, [0.1, 0.2])
    model = small_model()
    assert restored(tmp_path, model) == rows
    assert_same(state(model), states[1])
    assert int(model.optimizer.iterations) == 2


def test_a_checkpoint_has_the_states_of_random_generators(tmp_path):
    def model_with(n):
        dropouts = [keras.layers.Dropout(0.5) for _ in range(n)]
        return keras.Sequential([keras.Input((4,)), *dropouts, keras.layers.Dense(3)])

    def drawn(model):
        return keras.ops.convert_to_numpy(model(np.ones((8, 4)), training=True))

    model, checkpoints = model_with(1), Checkpoints(tmp_path)
    first = drawn(model)
    checkpoints.save(model, history([0.1]))
    second = drawn(model)
    assert (first != second).any()
    other = model_with(1)
    checkpoints.restore(other, 1)
    np.testing.assert_array_equal(drawn(other), second)

    two = model_with(2)  # an edited network
    checkpoints.restore(two, 1)
    assert_same(two.get_weights(), model.get_weights())


def test_a_checkpoint_of_before_these_were_saved_is_restored(tmp_path):
    states, _ = save_epochs(tmp_path, [0.1])
    path, older = Checkpoints(tmp_path).path(1), tmp_path / "older"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(older, "w") as copy:
        for name in set(archive.namelist()) - {"seeds.json"}:
            copy.writestr(name, archive.read(name))
    older.replace(path)
    model = small_model()
    restored(tmp_path, model)
    assert_same(state(model), states[0])


def test_where_nothing_is_there_is_no_history(tmp_path):
    assert Checkpoints(tmp_path).history() == []


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
    assert len(Checkpoints(tmp_path).history()) == len(accuracies)


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
    path = Checkpoints(tmp_path).path(3)
    noticed = 0
    for what, content in damaged_versions(path.read_bytes()):
        path.write_bytes(content)
        model = small_model()
        found = restored(tmp_path, model)
        warned = f"Warning: {path} is damaged" in capsys.readouterr().out
        # A flipped bit may have hit a date or a file's permissions, which nobody reads.
        assert warned or (found == rows and what.startswith("a bit")), what
        assert found == (rows[:2] if warned else rows), what
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
        Checkpoints(tmp_path).save(model, history([0.1, 0.2, 0.3]))
    assert caught.value.filename.endswith("0003.keras")
    assert names(tmp_path) == ["0001.keras", "0002.keras"]
    assert restored(tmp_path, model) == rows
    assert_same(state(model), states[1])


def test_what_a_killed_process_left_unfinished_is_cleared_away(tmp_path):
    (tmp_path / "checkpoints" / UNFINISHED).mkdir(parents=True)
    (tmp_path / "checkpoints" / UNFINISHED / "0001.keras").write_bytes(b"half")
    save_epochs(tmp_path, [0.1])
    assert names(tmp_path) == ["0001.keras"]


def test_the_best_epoch_is_the_first_of_the_highest_accuracy_or_else_of_the_lowest_loss():
    rows = history([0.1, 0.9, 0.9, 0.2])
    assert best_of(rows)["epoch"] == 2
    losses = [{"epoch": i, "val_loss": loss} for i, loss in enumerate((0.5, 0.2, 0.2, 0.9), 1)]
    assert best_of(losses)["epoch"] == 2


def test_the_latest_is_that_of_the_highest_epoch(tmp_path):
    checkpoints, model = Checkpoints(tmp_path), small_model()
    rows = history([0.1] * 4_999 + [0.9] + [0.1] * 5_001)
    for epoch in (5_000, 10_000, 10_001):  # the first is the best, and stays
        checkpoints.save(model, rows[:epoch])
    assert len(checkpoints.history()) == 10_001


def test_files_of_somebody_else_are_left(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.keras").write_text("mine")
    (tmp_path / "checkpoints" / "7.keras").write_text("mine")
    _, rows = save_epochs(tmp_path, [0.1, 0.2, 0.3])
    assert (tmp_path / "checkpoints" / "7.keras").read_text() == "mine"
    assert Checkpoints(tmp_path).history() == rows
    assert (tmp_path / "checkpoints" / "mine.keras").read_text() == "mine"
