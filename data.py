"""Loads and checks the images to train on."""

import hashlib
import io
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

NUM_CLASSES = 10
IMAGE_SHAPE = (32, 32, 3)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


class Data(NamedTuple):
    """Images, uint8 (n, 32, 32, 3), and their labels, int32 (n,) from 0 to 9, in two splits."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(source):
    """Loads the images that `source` names.

    Args:
        source: "cifar10": downloaded by Keras, and kept. "digits": the 1,797 handwritten digits
            that ship inside scikit-learn, enlarged. Or a path, to an .npz file with the arrays
            x_train, y_train, x_test, y_test, or to the official cifar-10-python.tar.gz.

    Returns:
        `Data`, checked.

    Raises:
        ValueError: if the source cannot be read, or what it holds is not such data.
    """
    require_source(source)
    if source == "cifar10":
        arrays = _download()
    elif source == "digits":
        arrays = _digits()
    elif str(source).endswith((".tar.gz", ".tgz")):
        arrays = _official_archive(source)
    else:
        arrays = _npz(source)
    return _checked(arrays, source)


def require_source(source):
    """Raises ValueError if `source` is neither a name that `load` knows nor a file."""
    if source not in ("cifar10", "digits") and not Path(source).is_file():
        raise ValueError(
            "data: allowed is 'cifar10', 'digits' or the path of an .npz file or of "
            f"cifar-10-python.tar.gz; received {source!r}, which is not a file"
        )


def _download():
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises a bare Exception when there is no connection
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data: CIFAR-10 could not be downloaded ({reason}); give --data the path of "
            "cifar-10-python.tar.gz or of an .npz file, or --data digits to train on digits"
        ) from error
    return x_train, y_train, x_test, y_test


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype("uint8")  # 8×8 pixels from 0 to 16
    images = images.repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
    # NumPy keeps this legacy generator as it is for ever, and so the split.
    order = np.random.RandomState(0).permutation(len(images))
    train, test = order[360:], order[:360]
    return images[train], digits.target[train], images[test], digits.target[test]


def _npz(path):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in ARRAYS]
    except KeyError as error:
        raise ValueError(f"data: {path} must hold {', '.join(ARRAYS)}; {error.args[0]}") from error
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"data: {path} is not a readable .npz file: {error}") from error


def _official_archive(path):
    archive = Path(path).read_bytes()
    received = hashlib.sha256(archive).hexdigest()
    if received != CIFAR10_SHA256:  # anything else may hold a pickle that runs code
        raise ValueError(
            f"data: {path} must be the official archive, SHA-256 {CIFAR10_SHA256}; "
            f"received {received}"
        )
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:

        def read(name):
            batch = pickle.load(tar.extractfile(f"cifar-10-batches-py/{name}"), encoding="bytes")
            images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return images, np.array(batch[b"labels"])

        batches = [read(f"data_batch_{i}") for i in range(1, 6)]
        x_train, y_train = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return x_train, y_train, *read("test_batch")


def _checked(arrays, source):
    def require(ok, name, allowed, received):
        if not ok:
            raise ValueError(f"data: {name} in {source} must be {allowed}; received {received}")

    checked = []
    for split, x, y in (("train", *arrays[:2]), ("test", *arrays[2:])):
        name = f"x_{split}"
        shape_ok = x.ndim == 4 and x.shape[1:] == IMAGE_SHAPE and len(x) > 0
        require(shape_ok, name, "images of shape (n, 32, 32, 3)", f"shape {x.shape}")
        require(x.dtype.kind in "uif", name, "numbers", f"dtype {x.dtype}")
        if x.dtype != np.uint8:  # also refuses NaN, and images scaled to [0, 1] beforehand
            whole = (x >= 0) & (x <= 255) & (x == np.floor(x))
            example = x[~whole][0] if not whole.all() else None
            require(whole.all(), name, "whole numbers from 0 to 255", example)
        name = f"y_{split}"
        shape_ok = y.shape in ((len(x),), (len(x), 1))
        require(shape_ok, name, f"{len(x)} labels, one per image", f"shape {y.shape}")
        require(y.dtype.kind in "ui", name, "integers", f"dtype {y.dtype}")
        in_range = y.min() >= 0 and y.max() < NUM_CLASSES
        require(in_range, name, "labels from 0 to 9", f"{y.min()} to {y.max()}")
        several = split == "test" or y.min() < y.max()
        require(several, name, "labels of two classes or more", f"{y.min()} alone")
        checked += [x.astype("uint8"), y.reshape(-1).astype("int32")]
    return Data(*checked)
