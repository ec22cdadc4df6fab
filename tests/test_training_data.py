"""Reading and checking images."""

import hashlib
import io
import pickle
import tarfile

import keras
import numpy as np
import pytest

import data


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
        ({"x_test": np.zeros((20, 32, 32, 1), "uint8")}, "x_test"),
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
        (replaced("y_train", 3, 10, int), "y_train"),
        (replaced("y_test", 3, -1, int), "y_test"),
        ({"y_train": np.full(20, 3)}, "y_train"),
    ],
)
def test_what_is_not_such_data_is_refused_in_one_line(tmp_path, changes, name, count):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=f"^data: {name} in .* must be .*; received ") as caught:
        data.load(str(tmp_path / "a.npz"))
    assert "\n" not in str(caught.value)
    count("bad inputs refused")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.npz", None, "is not a file"),
        ("empty.npz", b"", "is not a readable .npz"),
        ("text.npz", b"not an archive", "is not a readable .npz"),
        ("truncated.npz", lambda npz: npz[: len(npz) // 2], "is not a readable .npz"),
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
    with pytest.raises(ValueError, match=f"^data: .*{message}"):
        data.load(str(path))
    count("bad inputs refused")


def test_missing_array_single_array_and_directory(tmp_path):
    incomplete = arrays()
    del incomplete["y_test"]
    np.savez(tmp_path / "incomplete.npz", **incomplete)
    with pytest.raises(ValueError, match="must hold x_train, y_train, x_test, y_test; y_test"):
        data.load(str(tmp_path / "incomplete.npz"))
    np.save(tmp_path / "one.npy", arrays()["x_train"])
    with pytest.raises(ValueError, match="not a readable"):
        data.load(str(tmp_path / "one.npy"))
    with pytest.raises(ValueError, match="is not a file"):
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
        with pytest.raises(ValueError, match="data: "):
            data.load(str(tmp_path / name))
    assert not (tmp_path / "exploded").exists()


def write_archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_official_archive(tmp_path, monkeypatch):
    made = arrays(n=50)
    members = {}
    for name, x, y in [
        (f"data_batch_{i + 1}", made["x_train"][i::5], made["y_train"][i::5]) for i in range(5)
    ] + [("test_batch", made["x_test"], made["y_test"])]:
        rows = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # red, green, blue plane after plane
        members[name] = pickle.dumps({b"data": rows, b"labels": y[:, 0].tolist()})
    path = tmp_path / "cifar-10-python.tar.gz"
    write_archive(path, members)
    with pytest.raises(ValueError, match="SHA-256"):
        data.load(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(data, "CIFAR10_SHA256", digest)
    loaded = data.load(str(path))
    order = np.concatenate([np.arange(50)[i::5] for i in range(5)])
    np.testing.assert_array_equal(loaded.x_train, made["x_train"][order])
    np.testing.assert_array_equal(loaded.y_train, made["y_train"][order, 0])
    np.testing.assert_array_equal(loaded.x_test, made["x_test"])


def test_a_failed_download_names_the_ways_out(monkeypatch):
    def fail():
        raise Exception("URL fetch failure on\nhttps://example.org: no route")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(ValueError) as caught:
        data.load("cifar10")
    message = str(caught.value)
    assert "\n" not in message and "no route" in message
    assert all(way in message for way in ("cifar-10-python.tar.gz", ".npz", "--data digits"))


def test_the_download_is_used(monkeypatch):
    made = arrays()
    monkeypatch.setattr(
        keras.datasets.cifar10,
        "load_data",
        lambda: ((made["x_train"], made["y_train"]), (made["x_test"], made["y_test"])),
    )
    np.testing.assert_array_equal(data.load("cifar10").x_train, made["x_train"])


def test_digits_are_split_once_and_for_all():
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 32, 32, 3) and digits.x_test.shape == (360, 32, 32, 3)
    assert digits.x_train.max() == 255 and set(digits.y_test) == set(range(10))
    split = hashlib.sha256(digits.y_train.tobytes() + digits.x_test.tobytes()).hexdigest()
    assert split.startswith("8e37da4b2f578ac4")
    np.testing.assert_array_equal(digits.x_train[:, ::4, ::4, 0], digits.x_train[:, 3::4, 3::4, 2])
