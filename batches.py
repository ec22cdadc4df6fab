"""Hands out training images in batches, shuffled and augmented."""

import keras
import numpy as np


class Batches(keras.utils.PyDataset):
    """Training batches, in an order and with an augmentation that follow from (seed, epoch).

    Args:
        images: uint8 (n, height, width, channels).
        labels: Integers (n,).
        batch_size: Images a batch; the last one of an epoch may be smaller.
        augmentation: Whether to flip every other image left to right, at random, and to shift
            each by up to 10 % of its size in either direction, repeating the pixels of its edge.
        seed: Non-negative integer.
    """

    def __init__(self, images, labels, batch_size, augmentation, seed):
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.augmentation, self.seed = augmentation, seed
        self.epoch = 0  # counted from 1; Keras looks at a few batches before the first
        self.order = np.arange(len(images))

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        batch = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.images[batch]
        if self.augmentation:
            images = augment(images, np.random.default_rng((self.seed, self.epoch, index)))
        return images, self.labels[batch]

    def on_epoch_begin(self):  # not on_epoch_end, which Keras also calls before the first epoch
        self.epoch += 1
        rng = np.random.default_rng((self.seed, self.epoch))
        self.order = rng.permutation(len(self.images))


def augment(images, rng):
    """Flips and shifts images (n, height, width, channels) at random, as `Batches` says."""
    n, height, width = images.shape[:3]
    down, right = (rng.integers(-(size // 10), size // 10 + 1, (n, 1)) for size in (height, width))
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    columns = np.where(rng.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    return images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
