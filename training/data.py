"""Images and labels: loads them, checks them, and holds some out."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training import Mistake, reason

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NAMED = ("cifar10", "cifar100", "digits")
# The official archives, by SHA-256: their files for training and testing, and the labels' name.
ARCHIVES = {
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce": (
        [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)],
        "cifar-10-batches-py/test_batch",
        b"labels",
    ),
    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7": (
        ["cifar-100-python/train"],
        "cifar-100-python/test",
        b"fine_labels",
    ),
}


class Data(NamedTuple):
    """Images, uint8 (n, height, width, channels), and labels, int32 (n,) from 0, in two splits."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def image_shape(self):
        return self.x_train.shape[1:]

    @property
    def num_classes(self):
        return int(self.y_train.max()) + 1


def load(source):
    """Loads the images that `source` names.

    Args:
        source: "cifar10" or "cifar100" (fine labels): downloaded by Keras, and kept. "digits": the
            1,797 handwritten digits that ship inside scikit-learn, enlarged. Or a path, to an .npz
            file with the arrays x_train, y_train, x_test, y_test, or to the official
            cifar-10-python.tar.gz or cifar-100-python.tar.gz.

    Returns:
        `Data`, checked.

    Raises:
        Mistake: if the source cannot be read, or what it holds is not such data.
    """
    source = require_source(source)
    if source == "digits":
        arrays = _digits()
    elif source in NAMED:
        arrays = _download(source)
    elif source.endswith((".tar.gz", ".tgz")):
        arrays = _official_archive(source)
    else:
        arrays = _npz(source)
    return _checked(arrays, source)


def require_source(source):
    """Returns a name that `load` knows as it is, or the absolute path of a file; else `Mistake`."""
    if source in NAMED:
        return source
    path = Path(os.path.expanduser(source))  # which leaves the ~ of an unknown user as it is
    if not os.path.isfile(path):  # False for a name that is too long, too
        raise Mistake(
            f"data: allowed is {', '.join(map(repr, NAMED))}, or the path of an .npz file or of "
            f"an official .tar.gz; received {source!r}, which is not a file"
        )
    # A link keeps its own name: its target may have another ending.
    return str(path.parent.resolve() / path.name)


def _download(name):
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except MemoryError:
        raise
    except Exception as error:  # Keras raises a bare Exception when there is no connection
        raise Mistake(
            f"data: {name} could not be downloaded ({reason(error)}); give --data the path of its "
            "official archive or of an .npz file, or --data digits to train on digits"
        ) from error
    if keras.config.image_data_format() == "channels_first":  # so keras.json may say
        x_train, x_test = (x.transpose(0, 2, 3, 1) for x in (x_train, x_test))
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
    except MemoryError:  # the file is sound
        raise
    except KeyError as error:
        raise Mistake(f"data: {path} must hold {', '.join(ARRAYS)}; {error.args[0]}") from error
    except Exception as error:  # a damaged archive makes zipfile and NumPy raise any kind
        raise Mistake(f"data: {path} is not a readable .npz file: {reason(error)}") from error


def _official_archive(path):
    try:
        archive = Path(path).read_bytes()
    except OSError as error:
        raise Mistake(f"data: {path} cannot be read: {error.strerror}") from error
    received = hashlib.sha256(archive).hexdigest()
    if received not in ARCHIVES:  # anything else may hold a pickle that runs code
        raise Mistake(
            f"data: {path} must be an official archive, SHA-256 {' or '.join(ARCHIVES)}; "
            f"received {received}"
        )
    training, test, labels = ARCHIVES[received]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:

        def read(name):
            batch = pickle.load(tar.extractfile(name), encoding="bytes")
            images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return images, np.array(batch[labels])

        parts = zip(*map(read, training), strict=True)
        x_train, y_train = (np.concatenate(part) for part in parts)
        return x_train, y_train, *read(test)


def _checked(arrays, source):
    """The arrays as `Data`; `Mistake` if they are not images and labels to train and test on."""

    def require(ok, name, allowed, received):
        if not ok:
            raise Mistake(f"data: {name} in {source} must be {allowed}; received {received}")

    checked, shape, classes = [], None, None
    for split, x, y in (("train", *arrays[:2]), ("test", *arrays[2:])):
        name = f"x_{split}"
        x = x[..., None] if x.ndim == 3 else x  # grey images
        sizes = x.ndim == 4 and all(size >= 32 and size % 4 == 0 for size in x.shape[1:3])
        allowed = "images (n, height, width, channels), height and width from 32 and divisible by 4"
        require(sizes and x.size > 0, name, allowed, f"shape {x.shape}")
        shape = shape or x.shape[1:]
        require(x.shape[1:] == shape, name, f"images {shape} as in x_train", f"shape {x.shape}")
        require(x.dtype.kind in "uif", name, "numbers", f"dtype {x.dtype}")
        if x.dtype != np.uint8:  # also refuses NaN, and images scaled to [0, 1] beforehand
            is_pixel = (x >= 0) & (x <= 255) & (x == np.floor(x))
            example = x[~is_pixel][0] if not is_pixel.all() else None
            require(is_pixel.all(), name, "whole numbers from 0 to 255", example)
        name = f"y_{split}"
        shape_ok = y.shape in ((len(x),), (len(x), 1))
        require(shape_ok, name, f"{len(x)} labels, one per image", f"shape {y.shape}")
        require(y.dtype.kind in "ui", name, "integers", f"dtype {y.dtype}")
        found = np.unique(y)
        if classes is None:
            classes = len(found)
            require(classes > 1, name, "labels of two classes or more", f"{found[0]} alone")
            gap = np.flatnonzero(found != np.arange(classes))
            allowed = f"labels from 0 to {classes - 1}, as there are {classes} of them"
            require(not len(gap), name, allowed, found[gap[0]] if len(gap) else None)
        in_range = found[0] >= 0 and found[-1] < classes
        require(in_range, name, f"labels from 0 to {classes - 1}", f"{found[0]} to {found[-1]}")
        checked += [np.ascontiguousarray(x, "uint8"), np.ascontiguousarray(y.ravel(), "int32")]
    return Data(*checked)


def hold_out(data, share, seed):
    """Splits the training images: to train on, and to validate on after each epoch.

    Args:
        data: `Data`.
        share: Of the images of each class, how many are held out; from 0 to 0.9.
        seed: Non-negative integer, which decides what images these are.

    Returns:
        `Data` whose test images are those held out, and the (images, labels) to test on at the end.
        If the share is 0, the data as it is, and None.

    Raises:
        Mistake: if a class would have no image to train on, or none held out.
    """
    if not share:
        return data, None
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(data.y_train), bool)
    for label in range(data.num_classes):
        of_label = np.flatnonzero(data.y_train == label)
        n = round(share * len(of_label))
        if not 0 < n < len(of_label):
            raise Mistake(
                "validation: allowed with this data is a share that leaves each class an image on "
                f"both sides; received {share:g}, by which {n} of the {len(of_label)} images of "
                f"class {label} are held out"
            )
        held_out[rng.permutation(of_label)[:n]] = True
    trained_on = data.x_train[~held_out], data.y_train[~held_out]
    return Data(*trained_on, data.x_train[held_out], data.y_train[held_out]), data[2:]
