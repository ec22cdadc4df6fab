"""Keeps the files of a training run, so that it can be stopped at any moment and goes on."""

import csv
import json
import math
import os
import shutil
import signal
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import filelock
import keras
from matplotlib.figure import Figure

import devices
import gaaf

COLUMNS = ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy")
# All that a run writes into its directory.
FILES = ("config.json", "history.csv", "curves.png", "best.keras", "final.keras")
FOLDERS = ("checkpoints", "tensorboard", ".unfinished")
_HISTORY = "history.json"  # inside a checkpoint


def replace_file(path, write):
    """Has `write(temporary_path)` write the file, then puts it in place as a whole."""
    path = Path(path)
    # In a folder of its own, as Keras puts temporary files of its own beside what it saves.
    folder = path.parent / ".unfinished"
    try:
        folder.mkdir(exist_ok=True)
        temporary = folder / path.name
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path, text):
    """Writes a text file."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_config(directory, config):
    """Writes config.json."""
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_text(directory / "config.json", text)


def write_csv(path, columns, rows):
    """Writes a CSV file with a header; each row is a dictionary by column."""

    def write(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
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


class InUse(ValueError):
    """Another process trains in the directory."""


@contextmanager
def locked(directory):
    """Keeps other processes out of a run's directory; raises `InUse` where one is in it."""
    try:
        with filelock.FileLock(directory / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise InUse(
            "output_dir: allowed is a directory that no other process trains in; "
            f"received '{directory}'"
        ) from error


def remove_run(directory):
    """Removes what a run has written into its directory, and nothing else."""
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(directory / name, ignore_errors=True)


def written(directory):
    """The names of the files and folders of a run that there are."""
    return sorted(name for name in FILES + FOLDERS if (directory / name).exists())


def best_of(rows):
    """The row of the first epoch with the highest test accuracy."""
    return max(rows, key=lambda row: row["val_accuracy"])


class Checkpoints:
    """The state after an epoch, kept after every epoch, in one file that is whole or not there.

    A checkpoint is the saved model, with the optimizer's state, and in the same archive the history
    so far. The last two stay, and for each of them the one of its best epoch.

    Args:
        directory: `pathlib.Path` of the run.
    """

    def __init__(self, directory):
        self.folder = directory / "checkpoints"

    def path(self, epoch):
        """The file of an epoch, counted from 1."""
        return self.folder / f"{epoch:04}.keras"

    def latest_epoch(self):
        """The epoch of the latest checkpoint, or 0."""
        return max((int(path.stem) for path in self.folder.glob("*.keras")), default=0)

    def save(self, model, rows):
        """Saves the state after the last epoch of the history."""
        self.folder.mkdir(exist_ok=True)

        def write(temporary):
            with devices.alone():  # the first of several processes saves
                model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(_HISTORY, json.dumps(rows))

        epoch = rows[-1]["epoch"]
        replace_file(self.path(epoch), write)
        needed = set()
        for history in filter(None, (rows, rows[:-1])):
            needed |= {self.path(history[-1]["epoch"]), self.path(best_of(history)["epoch"])}
        for path in set(self.folder.glob("*.keras")) - needed:
            path.unlink()

    def restore(self, model):
        """Loads the latest whole checkpoint into the model, and returns its history, or []."""
        for path in sorted(self.folder.glob("*.keras"), reverse=True):
            try:
                with zipfile.ZipFile(path) as archive:
                    if damaged := archive.testzip():  # compares what is in it with its checksums
                        raise zipfile.BadZipFile(f"{damaged} is damaged")
                    rows = json.loads(archive.read(_HISTORY))
            except Exception as error:  # of the many that a flipped bit has zipfile raise
                reason = " ".join(str(error).split()) or type(error).__name__
                print(f"Warning: {path} is damaged ({reason}); the one before it is used")
            else:
                model.load_weights(path)
                return rows
        return []


def write_event(writer, epoch, summary):
    """Adds a scalar or a histogram of an epoch to a file of TensorBoard's."""
    from tensorboardX.proto.event_pb2 import Event

    writer.write_event(Event(step=epoch, wall_time=time.time(), summary=summary))


class RunFiles(keras.callbacks.Callback):
    """Writes a run's files as it goes, and tells what takes time and how much is left.

    After every epoch a checkpoint, history.csv and the TensorBoard logs, after the best so far
    best.keras, at the end final.keras and curves.png. All follow from the checkpoints.

    Args:
        directory: `pathlib.Path` of the run, which exists.
        label: Name of the run in the legend of curves.png.
        rows: The history that the run goes on from; rows are added to it.
    """

    async_safe = True  # what it does after a batch may be done later, in another thread

    def __init__(self, directory, label, rows):
        super().__init__()
        self.directory, self.label, self.rows = directory, label, rows
        self.checkpoints = Checkpoints(directory)
        self.first_step = None  # when it began, and 0 when it is done

    def on_train_begin(self, logs=None):
        for path in (self.directory / "tensorboard").glob("events*"):
            path.unlink()
        self.tensorboard = None
        for row in self.rows:
            self._log(row)
        if self.rows:  # the run may have been stopped between its files
            write_csv(self.directory / "history.csv", COLUMNS, self.rows)
            self._copy_checkpoint(best_of(self.rows), "best.keras")

    def on_epoch_begin(self, epoch, logs=None):
        # Not at the end of an epoch, where the progress bar has not ended its line yet.
        if self.first_step is not None:
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
        self.checkpoints.save(self.model, self.rows)
        write_csv(self.directory / "history.csv", COLUMNS, self.rows)
        if row is best_of(self.rows):
            self._copy_checkpoint(row, "best.keras")
        self._log(row)

    def on_train_end(self, logs=None):
        self.tensorboard.close()
        self._copy_checkpoint(self.rows[-1], "final.keras")
        plot_curves(self.directory / "curves.png", {self.label: self.rows})

    def _copy_checkpoint(self, row, name):
        source = self.checkpoints.path(row["epoch"])
        replace_file(self.directory / name, lambda temporary: shutil.copy(source, temporary))

    def _log(self, row):
        """Adds a row to the TensorBoard logs, at once: SummaryWriter's thread hides errors."""
        # Not keras.callbacks.TensorBoard: that imports TensorFlow, on every backend.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import scalar

        if self.tensorboard is None:
            folder = self.directory / "tensorboard"
            folder.mkdir(exist_ok=True)
            self.tensorboard = EventsWriter(str(folder / "events"))
        for column, tag in zip(
            COLUMNS[1:],
            ("learning_rate", "loss/train", "accuracy/train", "loss/test", "accuracy/test"),
            strict=True,
        ):
            write_event(self.tensorboard, row["epoch"], scalar(tag, row[column]))
        self.tensorboard.flush()


def inputs_of_activations(network):
    """A model from the input of a ResNet to those of its activations, a dictionary by layer."""
    activations = [layer for layer in network.layers if "_act" in layer.name]
    return keras.Model(network.input, {layer.name: layer.input for layer in activations})


class GradientHistograms(keras.callbacks.Callback):
    """Adds histograms of each activation's gradient to the TensorBoard logs, after every epoch.

    That is φ_new′, by which it multiplies the gradient on its way back, at the inputs that it gets.

    Args:
        directory: `pathlib.Path` of the run, which exists.
        images: uint8 (n, height, width, channels), those to look at.
    """

    def __init__(self, directory, images):
        super().__init__()
        self.folder, self.images = directory / "tensorboard" / "gradients", images

    def on_train_begin(self, logs=None):
        self.look = inputs_of_activations(self.model.layers[-1])

    def on_epoch_end(self, epoch, logs=None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import histogram

        normalization, network = self.model.layers
        self.folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(self.folder / f"epoch{epoch + 1:04}"))
        for name, inputs in self.look(normalization(self.images)).items():
            gradient = gaaf.gradient(network.get_layer(name).activation, inputs)
            values = keras.ops.convert_to_numpy(keras.ops.cast(gradient, "float32"))
            write_event(writer, epoch + 1, histogram(f"gradient/{name}", values, "auto", 64))
        writer.close()


class NotFinite(Exception):
    """The loss has become NaN or infinite."""


class StopOnNotFinite(keras.callbacks.Callback):
    """Raises `NotFinite` after a step whose loss is not a finite number."""

    async_safe = True  # Keras looks at the loss in another thread, and trains on meanwhile

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            where = f"epoch {self.epoch}, step {batch + 1}"
            raise NotFinite(f"the loss became {logs['loss']:g} in {where}")


class Interrupted(Exception):
    """The user, or the system, has asked the training to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopOnSignal(keras.callbacks.Callback):
    """Raises `Interrupted` before the next step after Ctrl-C or SIGTERM; the second one kills.

    It is a context manager too, within which it listens.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        super().__init__()
        self.received = None

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no signals
            self.before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        self.received = number
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def on_train_batch_begin(self, batch, logs=None):
        if self.received:
            raise Interrupted(self.received)

    on_test_batch_begin = on_train_batch_begin
