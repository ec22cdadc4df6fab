"""From images to batches: their order, their augmentation, and who draws them.

The images of an epoch follow from the seed and the number of the epoch alone.
"""

import functools
import itertools
import operator

import keras
import numpy as np

from training import devices

TEST_BATCH = 1024  # on a GPU, which 128 images do not keep busy


def feed(settings, data, first_epoch=0):
    """The arguments of `fit` that say what to train on from an epoch on, and what to test on.

    Args:
        settings: Those of main.py.
        data: `training.data.Data`.
        first_epoch: The epoch to begin with, counted from 0. Default 0.
    """
    images, n = data.x_train, devices.count()
    if devices.keeps_images():
        images = _OnDevice(images)
    elif _draws_in_tensorflow():
        images = _IndexAlone(images)
    drawing = functools.partial(
        draw,
        images,
        data.y_train,
        settings.batch_size,
        settings.data_augmentation,
        settings.seed,
        first_epoch,
        n,
        devices.process(),
    )
    steps = -(-images_of_an_epoch(len(images), settings.batch_size, n) // settings.batch_size)
    part = part_of(len(data.x_test), devices.process())
    return {
        "x": _dataset(drawing, data),
        "steps_per_epoch": steps,
        "shuffle": False,  # that is done
        "initial_epoch": first_epoch,
        "validation_data": (data.x_test[part], data.y_test[part]),
        "validation_batch_size": _test_batch_size(settings, len(data.x_test)),
    }


def _test_batch_size(settings, images):
    """How many test images this process tests at once.

    `devices.require_shareable` has refused what cannot be tested.
    """
    n, tested_at_once = devices.count(), settings.batch_size
    if devices.kind() != "CPU":
        tested_at_once = max(TEST_BATCH // n * n, settings.batch_size)
    if images % n == 0:
        return tested_at_once // devices.process()[1]
    if keras.backend.backend() == "tensorflow":
        # To learn the shape of a batch, Keras takes the mean over the devices' parts of the first
        # one. So these must have one size. Later parts may differ, or be empty.
        return min(tested_at_once, images // n * n)
    # JAX: Keras splits all batches or none, as `DataParallel.get_data_layout` says for the first.
    # The last one cannot be split. With one image less, neither can the first.
    return tested_at_once - 1


class _OnDevice:
    """Images that lie on the device. On JAX, indexing them is one launch instead of a dozen."""

    def __init__(self, images):
        self.images, self.shape = keras.ops.convert_to_tensor(images), images.shape
        self.take = operator.getitem
        if keras.backend.backend() == "jax":
            import jax

            self.take = jax.jit(self.take)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.take(self.images, index)


class _IndexAlone:
    """Stands for the images: a batch of it is an index, by which TensorFlow draws the images."""

    def __init__(self, images):
        self.shape = images.shape

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return tuple(
            x.reshape(len(x), -1) for x in index
        )  # numbers; with augmentation rows, columns


def _draws_in_tensorflow():
    """Whether TensorFlow draws the images of a batch in its threads: a GPU would wait for NumPy."""
    return keras.backend.backend() == "tensorflow" and devices.kind() != "CPU"


def _dataset(drawing, data):
    """What `fit` takes of a function that returns a generator of batches.

    Keras 3.15 draws a batch to build the model for several devices of TensorFlow, and then begins
    anew: of a mere generator some batches would be lost.
    """
    if keras.backend.backend() != "tensorflow" or (
        devices.count() == 1 and not _draws_in_tensorflow()
    ):
        return drawing()
    import tensorflow as tf

    def drawn_at(index, labels):
        numbers, *places = index
        images = tf.gather(x_train, numbers[:, 0])
        for axis, place in enumerate(places, 1):  # rows, then columns
            images = tf.gather(images, place, axis=axis, batch_dims=1)
        return images, labels

    x, y = (tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in (data.x_train, data.y_train))
    if not _draws_in_tensorflow():
        drawn = tf.data.Dataset.from_generator(drawing, output_signature=(x, y))
        return drawn.prefetch(tf.data.AUTOTUNE)
    with tf.device("CPU:0"):
        x_train = tf.constant(data.x_train)  # an array in a graph may have 2 GB at most
    parts = len(next(drawing())[0])
    index = (tf.TensorSpec((None, None), "int64"),) * parts
    drawn = tf.data.Dataset.from_generator(drawing, output_signature=(index, y))
    return drawn.map(drawn_at, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def draw(images, labels, batch_size, augmentation, seed, first_epoch=0, devices=1, process=(0, 1)):
    """Yields the batches (images, labels) of one epoch after the other, without end.

    Order and augmentation of an epoch follow from (seed, epoch) alone. One iterator for the whole
    run, and not one an epoch, lets the next epoch's first batches be ready in time.

    Args:
        images: uint8 (n, height, width, channels), a NumPy array, or what is indexed like one.
        labels: Integers (n,), a NumPy array.
        batch_size: Images a batch; the last one of an epoch may be smaller.
        augmentation: Whether to flip every other image left to right, at random, and to shift
            each by up to 10 % of its size in either direction, repeating the pixels of its edge.
        seed: Non-negative integer.
        first_epoch: The epoch to begin with, counted from 0. Default 0.
        devices: How many are to share each batch, as `images_of_an_epoch` says. Default 1.
        process: (i, n): only the i-th of n parts of each batch is handed out. Default (0, 1).
    """
    n = images_of_an_epoch(len(images), batch_size, devices)
    for epoch in itertools.count(first_epoch):
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(images))
        for start in range(0, n, batch_size):
            batch = order[start : min(start + batch_size, n)]
            index = augmented(batch, images.shape[1:3], rng) if augmentation else (batch,)
            part = part_of(len(batch), process)
            yield images[tuple(x[part] for x in index)], labels[batch[part]]


def part_of(n, process):
    """The slice of n images that is the i-th of equal parts, for process (i, parts)."""
    part, parts = process
    return slice(n * part // parts, n * (part + 1) // parts)


def images_of_an_epoch(n, batch_size, devices):
    """How many of n images an epoch uses.

    If the devices cannot share the last batch evenly, its remainder is left out: other images in
    each epoch. One device leaves out none.
    """
    return n - n % batch_size % devices


def augmented(batch, size, rng):
    """Returns the index of images flipped and shifted at random: (numbers, rows, columns).

    Args:
        batch: Numbers of the images, integers (n,).
        size: (height, width) of an image.
        rng: `numpy.random.Generator`.
    """
    (height, width), n = size, len(batch)
    down, right = (rng.integers(-(size // 10), size // 10 + 1, (n, 1)) for size in (height, width))
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    columns = np.where(rng.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    return batch[:, None, None], rows[:, :, None], columns[:, None, :]
