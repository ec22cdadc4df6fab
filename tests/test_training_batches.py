"""Images in batches: complete, in an order and with an augmentation of seed and epoch alone."""

import itertools

import keras
import numpy as np
import pytest
from backends import BACKEND

from batches import augment, batches

LABELS = np.arange(50)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype="uint8")


def epochs(n=3, seed=1, first_epoch=0, augmentation=False):
    """The first epochs, each a list of its four batches."""
    drawn = batches(IMAGES, LABELS, 16, augmentation, seed, first_epoch)
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
    drawn = batches(LABELS[:, None].astype("float32"), LABELS, 16, False, seed=1)
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
    augmented = augment(np.repeat(image[None], 2000, axis=0), rng)
    drawn = [possible[x.tobytes()] for x in augmented]  # a KeyError is a wrong image
    assert len(set(drawn)) == len(possible) == 98
    assert 0.45 < np.mean([flipped for _, _, flipped in drawn]) < 0.55
