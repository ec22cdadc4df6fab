"""What happens while `fit` trains: one callback, one job."""

import contextlib
import math
import shutil
import signal
import sys
import threading
import time

import keras

from training import Mistake
from training.checkpoints import Checkpoints, best_of
from training.console import Interrupted, NotFinite
from training.files import plot_curves, replace_file, write_csv
from training.model import learning_rate_at
from training.tensorboard import GradientHistograms, TensorBoard


def callbacks_of(settings, data, directory, rows, first_process=True):
    """The callbacks of a run: those that come before the user's own, and those that come after.

    They add to `rows`. In processes other than the first they are those alone that train along.
    """
    first, last = [LearningRate(settings), StopOnNotFinite()], []
    if first_process:
        first.append(Progress(settings.epochs))
        # What the user's own change after an epoch, such as the learning rate, is saved with it.
        last += [RunFiles(settings, directory, rows), TensorBoard(directory / "tensorboard", rows)]
    if settings.gradient_histograms:
        last.append(GradientHistograms(directory / "tensorboard" / "gradients", data.x_train[:16]))
    return first, last


def require_compatible(settings, callbacks):
    """Raises `Mistake` for a callback that a run, or its schedule, would undo."""
    if any(isinstance(x, keras.callbacks.BackupAndRestore) for x in callbacks):
        raise Mistake(
            "callbacks: allowed are all but BackupAndRestore, as a run goes on by itself; "
            "received BackupAndRestore"
        )
    plateau = any(isinstance(x, keras.callbacks.ReduceLROnPlateau) for x in callbacks)
    if plateau and settings.schedule != "constant":
        raise Mistake(
            "schedule: allowed with ReduceLROnPlateau is 'constant', as others set the rate in "
            f"every epoch; received {settings.schedule!r}"
        )


class LearningRate(keras.callbacks.LearningRateScheduler):
    """Sets the learning rate of each epoch, unless it is constant or the optimizer's own affair."""

    def __init__(self, settings):
        constant = settings.schedule == "constant"
        super().__init__(lambda epoch, now: now if constant else learning_rate_at(epoch, settings))

    def on_epoch_begin(self, epoch, logs=None):
        with contextlib.suppress(TypeError):  # so Keras says that it has a LearningRateSchedule
            super().on_epoch_begin(epoch, logs)


class Progress(keras.callbacks.Callback):
    """Tells what takes time, and how much of it is left for all epochs."""

    async_safe = True  # what it does after a batch may be done later, in another thread

    def __init__(self, epochs):
        super().__init__()
        self.epochs, self.started = epochs, None
        self.compiling_since = None  # and 0 when it is done

    def on_epoch_begin(self, epoch, logs=None):
        # Not at the end of an epoch, where the progress bar has not ended its line yet.
        if self.started is not None:
            seconds = (self.epochs - epoch) * (time.monotonic() - self.started)
            minutes = round(seconds / 60)
            left = f"about {minutes // 60} h {minutes % 60} min" if minutes else "under a minute"
            print(f"Time left for the whole run: {left}", flush=True)
        self.started = time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        if self.compiling_since is None:
            print("Compiling the training step … ", end="", flush=True)
            self.compiling_since = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if self.compiling_since:
            print(f"{time.monotonic() - self.compiling_since:.0f} s", flush=True)
            self.compiling_since = 0


class RunFiles(keras.callbacks.Callback):
    """Writes a run's files as it goes, all of which follow from its checkpoints.

    After every epoch, whose row it adds to `rows`, a checkpoint and history.csv, after the best so
    far best.keras, at the end final.keras and curves.png.
    """

    def __init__(self, settings, directory, rows):
        super().__init__()
        self.settings, self.directory, self.rows = settings, directory, rows
        self.checkpoints = Checkpoints(directory)

    def on_train_begin(self, logs=None):
        if self.rows:  # the run may have been stopped between its files
            write_csv(self.directory / "history.csv", self.rows)
            self._copy_checkpoint(best_of(self.rows), "best.keras")

    def on_epoch_begin(self, epoch, logs=None):
        for name in ("final.keras", "curves.png"):  # of a run that had ended, and goes on
            (self.directory / name).unlink(missing_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        first = ("learning_rate", "loss", "accuracy", "val_loss", "val_accuracy")
        names = sorted(logs, key=lambda name: first.index(name) if name in first else len(first))
        row = {"epoch": epoch + 1} | {name: float(f"{logs[name]:.6g}") for name in names}
        self.rows.append(row)
        self.checkpoints.save(self.model, self.rows)
        write_csv(self.directory / "history.csv", self.rows)
        if row is best_of(self.rows):
            self._copy_checkpoint(row, "best.keras")

    def on_train_end(self, logs=None):
        if len(self.rows) == self.settings.epochs or self.model.stop_training:
            self._copy_checkpoint(self.rows[-1], "final.keras")
            plot_curves(self.directory / "curves.png", self.settings.activation, self.rows)

    def _copy_checkpoint(self, row, name):
        source = self.checkpoints.path(row["epoch"])
        replace_file(self.directory / name, lambda temporary: shutil.copy(source, temporary))


class StopOnNotFinite(keras.callbacks.Callback):
    """Raises `NotFinite` after a step, or an epoch's test, whose loss is not a finite number."""

    async_safe = True  # Keras looks at the loss in another thread, and trains on meanwhile

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            where = f"epoch {self.epoch}, step {batch + 1}"
            raise NotFinite(f"the loss became {logs['loss']:g} in {where}")

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["val_loss"]):  # of weights that the last step broke
            raise NotFinite(f"the test loss became {logs['val_loss']:g} after epoch {self.epoch}")


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

    def __exit__(self, failed, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if failed and not issubclass(failed, Mistake) and sys.stdout.isatty():
            print(flush=True)  # the progress bar has not ended its line

    def _receive(self, number, frame):
        self.received = number
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def require_none(self):
        if self.received:
            raise Interrupted(self.received)

    def on_train_batch_begin(self, batch, logs=None):
        self.require_none()

    on_test_batch_begin = on_train_batch_begin
