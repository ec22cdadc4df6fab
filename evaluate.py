"""Tests a saved model: `python main.py --evaluate runs/NAME`."""

import json
from pathlib import Path

import keras
import numpy as np

import gaaf  # noqa: F401, so that Keras knows what the saved model is made of
from data import IMAGE_SHAPE, NUM_CLASSES, load


def evaluate(path, data=None):
    """Prints loss, accuracy and a confusion table of a model on the test images.

    Args:
        path: A run's directory, of which final.keras is taken, or best.keras where the run has not
            ended; or a .keras file.
        data: What `data.load` takes. Default: the data that the run was trained on.

    Raises:
        ValueError: if there is no such model, or it or the data cannot be used.
    """
    path = model_path(path)
    model = load_model(path)
    images = load(data_of(path) if data is None else data)
    probabilities = model.predict(images.x_test, batch_size=128, verbose=0)
    losses = keras.losses.sparse_categorical_crossentropy(images.y_test, probabilities)
    loss = float(keras.ops.mean(losses)) + sum(float(penalty) for penalty in model.losses)
    predicted = probabilities.argmax(axis=1)
    print(f"{path}: {len(predicted):,} test images")
    print(f"loss {loss:.4f}, accuracy {np.mean(predicted == images.y_test):.4f}")
    print(confusion_table(images.y_test, predicted))


def model_path(path):
    """The file of the model."""
    path = Path(path)
    candidates = [path / "final.keras", path / "best.keras"] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(
        "evaluate: allowed is the directory of a run with at least one epoch, or a .keras file; "
        f"received '{path}'"
    )


def load_model(path):
    """The model, which takes raw images and returns class probabilities."""
    try:
        model = keras.models.load_model(path, compile=False)  # in safe mode: no code of its own
        shapes = model.input_shape, model.output_shape
    except Exception as error:  # of the many kinds that a file not made by Keras leads to
        raise ValueError(
            f"evaluate: allowed is a model saved by Keras, without code of its own; received "
            f"'{path}', which cannot be loaded: {str(error).strip().splitlines()[0]}"
        ) from error
    if shapes != ((None, *IMAGE_SHAPE), (None, NUM_CLASSES)):
        raise ValueError(
            f"evaluate: allowed is a model from {(None, *IMAGE_SHAPE)} to {(None, NUM_CLASSES)}; "
            f"received '{path}', from {shapes[0]} to {shapes[1]}"
        )
    return model


def data_of(path):
    """The data that the run beside the model was trained on."""
    config = path.parent / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["settings"]["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"data: {config} does not say on what to test ({error}); give --data"
        ) from error


def confusion_table(labels, predicted):
    """Counts of each predicted class, a row for each true class, and the share that is right."""
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    np.add.at(counts, (labels, predicted), 1)
    lines = ["true \\ predicted" + "".join(f"{i:6}" for i in range(NUM_CLASSES)) + "    right"]
    for i, row in enumerate(counts):
        right = f"{row[i] / row.sum():9.4f}" if row.sum() else "        –"
        lines.append(f"{i:16}" + "".join(f"{count:6}" for count in row) + right)
    return "\n".join(lines)
