"""Keeps the files of a training run: config, history, curves, models, TensorBoard logs."""

import csv
import json
import os
import time
from pathlib import Path

import keras
from matplotlib.figure import Figure

COLUMNS = ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy")


def replace_file(path, write):
    """Has `write(temporary_path)` write the file, then puts it in place as a whole."""
    path = Path(path)
    temporary = path.with_name(f".unfinished-{path.name}")  # of the same suffix, Keras asks for it
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_config(directory, config):
    """Writes config.json."""
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    replace_file(directory / "config.json", lambda path: path.write_text(text, encoding="utf-8"))


def write_history(path, rows):
    """Writes history.csv, a row per epoch."""

    def write(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)


def plot_curves(path, histories):
    """Draws loss and accuracy against the epoch, training dashed and test solid.

    Args:
        path: The .png file to write.
        histories: {label: rows of history.csv}.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for i, (label, rows) in enumerate(histories.items()):
            epochs = [row["epoch"] for row in rows]
            for prefix, split, line in (("", "train", "--"), ("val_", "test", "-")):
                values = [row[prefix + quantity] for row in rows]
                axes.plot(epochs, values, f"C{i}{line}", marker=".", label=f"{label} {split}")
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=120))


class RunFiles(keras.callbacks.Callback):
    """Writes a run's files as it goes, and tells what takes time and how much is left.

    After every epoch history.csv and the TensorBoard logs, after the best so far best.keras, at
    the end final.keras and curves.png.

    Args:
        directory: `pathlib.Path` of the run, which exists.
        label: Name of the run in the legend of curves.png.
    """

    def __init__(self, directory, label):
        super().__init__()
        self.directory, self.label = directory, label
        self.rows = []
        self.first_step = None  # when it began, and 0 when it is done

    def on_train_begin(self, logs=None):
        # Not keras.callbacks.TensorBoard: that imports TensorFlow, on every backend.
        from tensorboardX import SummaryWriter

        self.tensorboard = SummaryWriter(str(self.directory / "tensorboard"))

    def on_epoch_begin(self, epoch, logs=None):
        # Not at the end of an epoch, where the progress bar has not ended its line yet.
        if epoch:
            seconds = (self.params["epochs"] - epoch) * (time.monotonic() - self.started)
            minutes = round(seconds / 60)
            left = f"about {minutes // 60} h {minutes % 60} min" if minutes else "under a minute"
            print(f"Time left for the whole run: {left}", flush=True)
        self.started = time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        if self.first_step is None:
            print("Compiling the training step, once for the whole run … ", end="", flush=True)
            self.first_step = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if self.first_step:
            print(f"{time.monotonic() - self.first_step:.0f} s", flush=True)
            self.first_step = 0

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1} | {name: float(f"{logs[name]:.6g}") for name in COLUMNS[1:]}
        self.rows.append(row)
        write_history(self.directory / "history.csv", self.rows)
        self._log(row)
        if row is self.best:
            self._save("best.keras")

    def on_train_end(self, logs=None):
        self.tensorboard.close()
        self._save("final.keras")
        plot_curves(self.directory / "curves.png", {self.label: self.rows})

    @property
    def best(self):
        """The row of the first epoch with the highest test accuracy."""
        return max(self.rows, key=lambda row: row["val_accuracy"])

    def _save(self, name):
        replace_file(self.directory / name, self.model.save)

    def _log(self, row):
        for column, tag in zip(
            COLUMNS[1:],
            ("learning_rate", "loss/train", "accuracy/train", "loss/test", "accuracy/test"),
            strict=True,
        ):
            self.tensorboard.add_scalar(tag, row[column], row["epoch"])
        self.tensorboard.flush()
