"""Tests a saved model: `python main.py --evaluate runs/NAME`."""

import os
from pathlib import Path

import keras
import numpy as np

import gaaf  # noqa: F401, so that Keras finds what a saved model names
from training import Mistake, reason
from training.console import is_out_of_memory, say
from training.data import hold_out, load
from training.identity import config_in, digest_of_data
from training.model import require_fitting

WIDTH = 80  # characters, of a screen
WORST = 10


def evaluate(path, data=None):
    """Prints loss, accuracy and the confusions of a model on the test images.

    Args:
        path: A run's directory, of which final.keras is taken, or best.keras where the run has not
            ended; or a .keras file.
        data: What `training.data.load` takes. Default: the data that the run was trained on.

    Raises:
        Mistake: if there is no such model, or it or the data cannot be used.
    """
    path = model_path(path)
    model = load_model(path)
    images = load(data) if data is not None else data_of_run(path)
    require_fitting(model, images, "evaluate", f"'{path}'")
    penalty = sum(map(float, model.losses))  # before `predict`, which may add to them
    probabilities = model.predict(images.x_test, batch_size=128, verbose=0)
    losses = keras.losses.sparse_categorical_crossentropy(images.y_test, probabilities)
    loss = float(keras.ops.mean(losses)) + penalty
    predicted = probabilities.argmax(axis=1)
    counts = np.zeros((probabilities.shape[1],) * 2, int)
    np.add.at(counts, (images.y_test, predicted), 1)
    say(f"{path}: {len(predicted):,} test images")
    print(f"loss {loss:.4f}, accuracy {np.mean(predicted == images.y_test):.4f}")
    print(confusions(counts))


def accuracy_of(model, images, labels):
    """The share of images that the model classifies right."""
    predicted = model.predict(images, batch_size=128, verbose=0).argmax(axis=1)
    return round(float(np.mean(predicted == labels)), 6)


def model_path(path):
    """The file of the model."""
    path = Path(os.path.expanduser(path))  # which leaves the ~ of an unknown user as it is
    candidates = [path / "final.keras", path / "best.keras"] if os.path.isdir(path) else [path]
    for candidate in candidates:
        if os.path.isfile(candidate):  # False for a name that is too long, too
            return candidate
    raise Mistake(
        "evaluate: allowed is the directory of a run with at least one epoch, or a .keras file; "
        f"received '{path}'"
    )


def load_model(path):
    """The model, which takes raw images and returns class probabilities."""
    try:
        return keras.models.load_model(path, compile=False)  # in safe mode: no code of its own
    except Exception as error:  # a file that Keras did not make raises any kind
        if is_out_of_memory(error):
            raise
        raise Mistake(
            f"evaluate: allowed is a model saved by Keras, without code of its own; received "
            f"'{path}', which cannot be loaded: {reason(error)}"
        ) from error


def data_of_run(path):
    """The data that the run of the model was trained on. Warns if they have changed since then."""
    config = config_in(path.parent)
    if config is None or not isinstance(config["settings"].get("data"), str):
        raise Mistake(f"data: no config.json in {path.parent} says on what to test; give --data")
    images = load(config["settings"]["data"])
    if not is_data_of(config, images):
        say("Warning: the data have changed since this run was trained")
    return images


def is_data_of(config, images):
    """Whether a run was trained on these data; an old config.json does not tell."""
    settings = config["settings"]
    try:
        split = hold_out(images, settings.get("validation", 0), settings.get("seed", 0))
    except Mistake:  # other classes
        return False
    return config.get("data") in (None, digest_of_data(*split))


def confusions(counts):
    """The table of all confusions, or where that is too wide the worst of them."""
    table = confusion_table(counts)
    return table if table.index("\n") <= WIDTH else worst_confusions(counts)


def confusion_table(counts):
    """Counts of each predicted class, a row for each true class, and the share that is right."""
    width = max(3, len(str(counts.max())), len(str(len(counts) - 1))) + 1
    lines = ["true \\ predicted".ljust(16), *(f"{i:{width}}" for i in range(len(counts)))]
    lines = ["".join(lines) + "   right"]
    for i, row in enumerate(counts):
        right = f"{row[i] / row.sum():8.4f}" if row.sum() else "       –"
        lines.append(f"{i:16}" + "".join(f"{count:{width}}" for count in row) + right)
    return "\n".join(lines)


def worst_confusions(counts):
    """The most frequent confusions of one class with another."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
    shown = [divmod(int(flat), len(counts)) for flat in order if wrong.flat[flat]]
    lines = [f"the {len(shown)} worst confusions, of {wrong.sum()}:"]
    lines.append("  true  predicted  images      of")
    for true, predicted in shown:
        lines.append(f"{true:6}{predicted:11}{wrong[true, predicted]:8}{counts[true].sum():8}")
    return "\n".join(lines)
