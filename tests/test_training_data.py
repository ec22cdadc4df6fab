"""Images: read and checked, and handed out in batches of seed and epoch alone."""

import hashlib
import io
import itertools
import pickle
import re
import tarfile

import keras
import numpy as np
import pytest
from backends import BACKEND

from training import Mistake, batches, data
from training.identity import digest_of_arrays


def arrays(n=20, **changes):
    """The four arrays of a small valid data set, some of them replaced."""
    rng = np.random.default_rng(0)
    made = {}
    for split in ("train", "test"):
        made[f"x_{split}"] = rng.integers(0, 256, (n, 32, 32, 3), dtype="uint8")
        made[f"y_{split}"] = np.arange(n, dtype="uint8")[:, None] % 10
    return made | changes


def test_npz_with_a_difficult_name(tmp_path):
    path = tmp_path / "Bilder für später.npz"
    np.savez(path, **arrays())
    loaded = data.load(str(path))
    np.testing.assert_array_equal(loaded.x_train, arrays()["x_train"])
    np.testing.assert_array_equal(loaded.y_test, np.arange(20) % 10)
    assert loaded.x_test.dtype == "uint8" and loaded.y_train.shape == (20,)


def test_npz_of_other_number_types(tmp_path):
    x, y = arrays()["x_train"], arrays()["y_train"]
    np.savez(tmp_path / "a.npz", **arrays(x_train=x.astype("float64"), y_train=y[:, 0].astype(int)))
    loaded = data.load(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(loaded.x_train, x)
    assert loaded.x_train.dtype == "uint8" and loaded.y_train.dtype == "int32"


def replaced(name, index, value, dtype="float32"):
    array = arrays()[name].astype(dtype)
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"x_train": np.zeros((20, 28, 28), "uint8")}, "x_train"),
        ({"x_train": np.zeros((20, 32, 34, 3), "uint8")}, "x_train"),
        ({"x_train": np.zeros((20, 28, 32, 3), "uint8")}, "x_train"),
        ({"x_train": np.zeros((20, 3, 32, 32), "uint8")}, "x_train"),
        ({"x_test": np.zeros((20, 32, 32, 1), "uint8")}, "x_test"),
        ({"x_test": np.zeros((20, 36, 32, 3), "uint8")}, "x_test"),
        ({"x_train": np.zeros((0, 32, 32, 3), "uint8")}, "x_train"),
        ({"x_train": np.zeros((20, 32, 32, 3), "complex64")}, "x_train"),
        ({"x_train": np.full((20, 32, 32, 3), "a")}, "x_train"),
        (replaced("x_train", (3, 1, 2, 0), np.nan), "x_train"),
        (replaced("x_test", (3, 1, 2, 0), np.inf), "x_test"),
        (replaced("x_train", (3, 1, 2, 0), 256), "x_train"),
        (replaced("x_train", (3, 1, 2, 0), -1, int), "x_train"),
        ({"x_train": arrays()["x_train"] / 255}, "x_train"),
        ({"y_train": np.zeros(19, int)}, "y_train"),
        ({"y_test": np.zeros((20, 10), int)}, "y_test"),
        (replaced("y_train", 3, 2.0), "y_train"),
        (replaced("y_train", 3, 11, int), "y_train"),
        (replaced("y_train", 3, -1, int), "y_train"),
        ({"y_train": np.arange(1, 21)}, "y_train"),
        (replaced("y_test", 3, 10, int), "y_test"),
        (replaced("y_test", 3, -1, int), "y_test"),
        ({"y_train": np.full(20, 3)}, "y_train"),
    ],
)
def test_what_is_not_such_data_is_refused_in_one_line(tmp_path, changes, name, count):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(Mistake, match=f"^data: {name} in .* must be .*; received ") as caught:
        data.load(str(tmp_path / "a.npz"))
    assert "\n" not in str(caught.value)
    count("bad inputs refused")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def locked(npz):
    """With a password, as the flags of each file then say."""
    return re.sub(rb"(?s)(PK\x01\x02.{4}).", lambda match: match[1] + b"\x01", npz)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.npz", None, "is not a file"),
        ("empty.npz", b"", "is not a readable .npz"),
        ("text.npz", b"not an archive", "is not a readable .npz"),
        ("truncated.npz", lambda npz: npz[: len(npz) // 2], "is not a readable .npz"),
        ("locked.npz", locked, "is not a readable .npz"),
        ("flipped.npz", lambda npz: npz[:9000] + b"\xff\x00" + npz[9002:], "is not a readable"),
        ("wrong.tar.gz", b"not the official archive", "SHA-256"),
    ],
)
def test_damaged_files(tmp_path, name, content, message, count):
    path = tmp_path / name
    if callable(content):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays())
        content = content(buffer.getvalue())
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Mistake, match=f"^data: .*{message}"):
        data.load(str(path))
    count("bad inputs refused")


def test_an_archive_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def read_bytes(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "cifar.tar.gz").write_bytes(b"")
    monkeypatch.setattr("pathlib.Path.read_bytes", read_bytes)
    with pytest.raises(
        Mistake, match=r"^data: .*cifar\.tar\.gz cannot be read: Permission denied$"
    ):
        data.load(str(tmp_path / "cifar.tar.gz"))


def test_missing_array_single_array_and_directory(tmp_path):
    incomplete = arrays()
    del incomplete["y_test"]
    np.savez(tmp_path / "incomplete.npz", **incomplete)
    with pytest.raises(Mistake, match="must hold x_train, y_train, x_test, y_test; y_test"):
        data.load(str(tmp_path / "incomplete.npz"))
    np.save(tmp_path / "one.npy", arrays()["x_train"])
    with pytest.raises(Mistake, match="not a readable"):
        data.load(str(tmp_path / "one.npy"))
    with pytest.raises(Mistake, match="is not a file"):
        data.load(str(tmp_path))


def test_no_pickle_is_ever_executed(tmp_path):
    bomb = np.empty(20, object)
    bomb[:] = [Bomb(tmp_path / "exploded")] * 20
    np.savez(tmp_path / "a.npz", **arrays(y_train=bomb))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    write_archive(
        tmp_path / "c.tar.gz", {"data_batch_1": pickle.dumps(Bomb(tmp_path / "exploded"))}
    )
    for name in ("a.npz", "b.npz", "c.tar.gz"):
        with pytest.raises(Mistake, match="data: "):
            data.load(str(tmp_path / name))
    assert not (tmp_path / "exploded").exists()


def write_archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "name, folder, parts, labels",
    [
        ("cifar-10-python.tar.gz", "cifar-10-batches-py", 5, b"labels"),
        ("cifar-100-python.tar.gz", "cifar-100-python", 1, b"fine_labels"),
    ],
)
def test_official_archives(name, folder, parts, labels, tmp_path, monkeypatch):
    made, members = arrays(n=50), {}
    training = [f"data_batch_{i + 1}" for i in range(parts)] if parts > 1 else ["train"]
    batches = [
        (x, made["x_train"][i::parts], made["y_train"][i::parts]) for i, x in enumerate(training)
    ]
    test = "test_batch" if parts > 1 else "test"
    for batch, x, y in [*batches, (test, made["x_test"], made["y_test"])]:
        rows = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # red, green, blue plane after plane
        content = {b"data": rows, labels: y[:, 0].tolist(), b"coarse_labels": [0] * len(y)}
        members[f"{folder}/{batch}"] = pickle.dumps(content)
    path = tmp_path / name
    write_archive(path, members)
    with pytest.raises(Mistake, match="SHA-256"):
        data.load(str(path))
    (official,) = (x for x, (first, *_) in data.ARCHIVES.items() if first[0].startswith(folder))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(data.ARCHIVES, digest, data.ARCHIVES[official])
    loaded = data.load(str(path))
    order = np.concatenate([np.arange(50)[i::parts] for i in range(parts)])
    np.testing.assert_array_equal(loaded.x_train, made["x_train"][order])
    np.testing.assert_array_equal(loaded.y_train, made["y_train"][order, 0])
    np.testing.assert_array_equal(loaded.x_test, made["x_test"])
    same = data.Data(*(np.array(array, order="C") for array in loaded))
    assert digest_of_arrays(loaded) == digest_of_arrays(same)  # which takes memory in order alone


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_failed_download_names_the_ways_out(name, monkeypatch):
    def fail():
        raise Exception("URL fetch failure on\nhttps://example.org: no route")

    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", fail)
    with pytest.raises(Mistake) as caught:
        data.load(name)
    message = str(caught.value)
    assert message.startswith(f"data: {name} ")
    assert "\n" not in message and "no route" in message
    assert all(way in message for way in ("official archive", ".npz", "--data digits"))


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])  # as keras.json says
@pytest.mark.parametrize("name, classes", [("cifar10", 10), ("cifar100", 100)])
def test_the_download_is_used(name, classes, order, monkeypatch):
    y = np.arange(200)[:, None] % classes
    made = arrays(n=200, y_train=y, y_test=y)
    files = {split: made[f"x_{split}"].transpose(0, 3, 1, 2).copy() for split in ("train", "test")}
    if order == "channels_last":  # Keras turns what is in the files
        files = {split: x.transpose(0, 2, 3, 1) for split, x in files.items()}
    module = getattr(keras.datasets, name)
    monkeypatch.setattr(module, "load_data", lambda: ((files["train"], y), (files["test"], y)))
    monkeypatch.setattr(keras.config, "image_data_format", lambda: order)
    loaded = data.load(name)
    np.testing.assert_array_equal(loaded.x_train, made["x_train"])
    np.testing.assert_array_equal(loaded.x_test, made["x_test"])
    assert (loaded.num_classes, loaded.image_shape) == (classes, (32, 32, 3))
    assert len(digest_of_arrays(loaded)) == 32


@pytest.mark.parametrize("shape", [(40, 32, 36), (40, 32, 36, 1), (40, 64, 64, 3), (40, 36, 32, 2)])
def test_images_of_any_size_and_number_of_channels(shape, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")
    y = np.arange(40) % 20
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    loaded = data.load(str(tmp_path / "a.npz"))
    assert loaded.image_shape == (*shape, 1)[1:4] and loaded.num_classes == 20
    np.testing.assert_array_equal(loaded.x_train.reshape(shape), x)


def test_a_path_is_made_whole(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **arrays())
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    whole = str((tmp_path / "a.npz").resolve())
    for source in ("a.npz", "./a.npz", "~/a.npz", whole):
        assert data.require_source(source) == whole
    (tmp_path / "link.npz").symlink_to(tmp_path / "a.npz")
    assert data.require_source("link.npz") == str(tmp_path.resolve() / "link.npz")
    assert data.require_source("digits") == "digits"
    with pytest.raises(
        Mistake, match=r"^data: allowed is .*; received '~nobody-of-that-name/a.npz'"
    ):
        data.require_source("~nobody-of-that-name/a.npz")


def test_digits_are_split_once_and_for_all():
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 32, 32, 3) and digits.x_test.shape == (360, 32, 32, 3)
    assert digits.x_train.max() == 255 and set(digits.y_test) == set(range(10))
    split = hashlib.sha256(digits.y_train.tobytes() + digits.x_test.tobytes()).hexdigest()
    assert split.startswith("8e37da4b2f578ac4")
    np.testing.assert_array_equal(digits.x_train[:, ::4, ::4, 0], digits.x_train[:, 3::4, 3::4, 2])


LABELS = np.arange(50)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype="uint8")


def epochs(n=3, seed=1, first_epoch=0, augmentation=False):
    """The first epochs, each a list of its four batches."""
    drawn = batches.draw(IMAGES, LABELS, 16, augmentation, seed, first_epoch)
    return [list(itertools.islice(drawn, 4)) for _ in range(n)]


def labels(epoch):
    return np.concatenate([y for _, y in epoch]).tolist()


def test_an_epoch_covers_all_images_in_an_order_of_its_own():
    first, second, _ = epochs()
    for epoch in (first, second):
        assert [len(x) for x, _ in epoch] == [16, 16, 16, 2]
        assert sorted(labels(epoch)) == LABELS.tolist()
        for x, y in epoch:
            np.testing.assert_array_equal(x, IMAGES[y])
    assert labels(first) != labels(second)
    assert labels(first) not in map(labels, epochs(seed=2))


def test_order_and_augmentation_follow_from_seed_and_epoch_alone():
    for augmentation in (False, True):
        run = epochs(3, augmentation=augmentation)
        resumed = epochs(1, first_epoch=2, augmentation=augmentation)
        for (x, y), (same_x, same_y) in zip(run[2], resumed[0], strict=True):
            np.testing.assert_array_equal(x, same_x)
            np.testing.assert_array_equal(y, same_y)
    other = epochs(1, seed=2, augmentation=True)
    assert not np.array_equal(run[0][0][0], other[0][0][0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the model looks at values while it is called")
def test_keras_trains_on_whole_epochs():
    """Keras looks at a few batches before the first step: those must not be missing then."""
    seen = []

    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            seen.extend(keras.ops.convert_to_numpy(x).reshape(-1).tolist())
            return self.dense(x)

    model = Recorder()
    model.build((None, 1))
    model.compile("sgd", "mse", run_eagerly=True)
    seen.clear()
    drawn = batches.draw(LABELS[:, None].astype("float32"), LABELS, 16, False, seed=1)
    model.fit(drawn, epochs=3, steps_per_epoch=4, shuffle=False, verbose=0)
    trained = [seen[i : i + 50] for i in range(0, len(seen), 50)]
    assert trained[-3:] == [labels(epoch) for epoch in epochs(3)]


def test_augmentation_flips_and_shifts_by_up_to_a_tenth():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype="uint8")
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="edge")
    possible = {}
    for down in range(7):
        for right in range(7):
            shifted = padded[down : down + 32, right : right + 32]
            possible[shifted.tobytes()] = (down, right, False)
            possible[shifted[:, ::-1].tobytes()] = (down, right, True)
    augmented = image[None][batches.augmented(np.zeros(2000, int), (32, 32), rng)]
    drawn = [possible[x.tobytes()] for x in augmented]  # a KeyError is a wrong image
    assert len(set(drawn)) == len(possible) == 98
    assert 0.45 < np.mean([flipped for _, _, flipped in drawn]) < 0.55


def test_images_are_held_out_of_each_class_in_the_same_share():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(3), (20, 40, 60))).astype("int32")
    x = np.broadcast_to(np.arange(120, dtype="uint8")[:, None, None, None], (120, 32, 32, 1))
    whole = data.Data(x, y, x[:7], y[:7])
    assert data.hold_out(whole, 0.0, seed=0) == (whole, None)
    split, (test_images, test_labels) = data.hold_out(whole, 0.25, seed=0)
    assert test_images is whole.x_test and test_labels is whole.y_test
    assert np.bincount(split.y_train).tolist() == [15, 30, 45]
    assert np.bincount(split.y_test).tolist() == [5, 10, 15]
    trained, held_out = split.x_train[:, 0, 0, 0], split.x_test[:, 0, 0, 0]
    assert sorted([*trained, *held_out]) == list(range(120))
    np.testing.assert_array_equal(y[trained], split.y_train)
    np.testing.assert_array_equal(y[held_out], split.y_test)
    again, _ = data.hold_out(whole, 0.25, seed=0)
    np.testing.assert_array_equal(again.x_test, split.x_test)
    other, _ = data.hold_out(whole, 0.25, seed=1)
    assert not np.array_equal(other.x_test, split.x_test)


@pytest.mark.parametrize("share, received", [(0.01, "0 of the 20"), (0.99, "20 of the 20")])
def test_a_share_that_leaves_a_class_without_images_is_refused(share, received):
    y = np.repeat(np.arange(2), 20)
    whole = data.Data(np.zeros((40, 32, 32, 1), "uint8"), y, y, y)
    with pytest.raises(Mistake, match=rf"^validation: allowed .*received {share}, .*{received}"):
        data.hold_out(whole, share, seed=0)


def test_too_little_memory_is_no_fault_of_the_data(npz, monkeypatch):
    def load_nothing(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "load", load_nothing)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", load_nothing)
    for source in (str(npz), "cifar10"):
        with pytest.raises(MemoryError):
            data.load(source)
