"""Hands out training images in batches, shuffled and augmented."""

import itertools

import numpy as np


def batches(
    images, labels, batch_size, augmentation, seed, first_epoch=0, devices=1, process=(0, 1)
):
    """Yields the batches (images, labels) of one epoch after the other, without end.

    Order and augmentation of an epoch follow from (seed, epoch) alone. One iterator for the whole
    run, and not one an epoch, lets the next epoch's first batches be ready in time.

    Args:
        images: uint8 (n, height, width, channels), a NumPy array or a tensor on the device.
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
            x = augment(images[batch], rng) if augmentation else images[batch]
            ours = share(len(x), process)
            yield x[ours], labels[batch][ours]


def share(n, process):
    """The slice of n images that is the i-th of equal parts, for process (i, parts)."""
    part, parts = process
    return slice(n * part // parts, n * (part + 1) // parts)


def images_of_an_epoch(n, batch_size, devices):
    """How many of n images an epoch uses.

    From its last batch it leaves out as many as the devices cannot share evenly: other ones each
    time, and none where there is one device.
    """
    return n - n % batch_size % devices


def augment(images, rng):
    """Flips and shifts images (n, height, width, channels) at random, as `batches` says."""
    n, height, width = images.shape[:3]
    down, right = (rng.integers(-(size // 10), size // 10 + 1, (n, 1)) for size in (height, width))
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    columns = np.where(rng.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    return images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
