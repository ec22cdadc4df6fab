"""What happens while `fit` trains: one callback, one job."""

import math
import shutil
import signal
import sys
import threading
import time

import keras

from training import Mistake, console
from training.checkpoints import best_of
from training.console import Interrupted, NotFinite, say
from training.files import in_six_digits, plot_curves, replace_file, write_csv, writing
from training.tensorboard import GradientHistograms, TensorBoard


def callbacks_of(run, steps, states):
    """The callbacks of a run: those that come before the user's own, and those that come after.

    Args:
        run: `training.run.Run`, to whose rows the epochs are added.
        steps: Steps of an epoch.
        states: `CallbackStates` of the user's own.

    Returns:
        Two lists. In processes other than the first they only hold what trains along.
    """
    settings, folder = run.settings, run.directory / "tensorboard"
    whole_epochs = WholeEpochs(steps)
    before_users, after_users = [run.learning_rate, StopOnNotFinite(), whole_epochs], []
    if keras.backend.backend() == "torch":
        before_users.append(SeedOfTorch(settings.seed))
    if run.leads:
        before_users.append(Progress(settings.epochs))
        # What the user's own change after an epoch, such as the learning rate, is saved with it.
        tensorboard = TensorBoard(folder, run.rows)
        run.callback(tensorboard.close)  # however the run ends
        after_users += [RunFiles(run, states, whole_epochs), tensorboard]
    if settings.gradient_histograms:
        images = run.data.x_train[:16]
        after_users.append(GradientHistograms(folder / "gradients", images, whole_epochs))
    return before_users, after_users


class Progress(keras.callbacks.Callback):
    """Prints how long compiling takes, and how much time is left for all epochs."""

    async_safe = True  # Keras may tell of a step later, in another thread and out of order

    def __init__(self, epochs):
        super().__init__()
        self.epochs, self.started = epochs, None
        self.compiling_since, self.compiled = None, False

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
        if batch == 0 and not self.compiled:
            self.compiled = True
            print(f"{time.monotonic() - self.compiling_since:.0f} s", flush=True)


class SeedOfTorch(keras.callbacks.Callback):
    """Seeds PyTorch's own random generator anew in each epoch. Keras' Dropout draws from it."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:  # Keras' data loader has drawn by now
            import torch

            torch.manual_seed(self.seed * 10**6 + self.epoch)  # an epoch is below 10**6


class WholeEpochs(keras.callbacks.Callback):
    """Tells whether an epoch had all of its steps; ends the training if it had not.

    A callback may end the training within an epoch, and KERAS_MAX_STEPS_PER_EPOCH cuts it short.
    """

    def __init__(self, steps):
        super().__init__()
        self.steps, self.is_whole = steps, True

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.begun = epoch + 1, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.begun = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        self.is_whole = self.begun == self.steps
        if not self.is_whole:
            self.model.stop_training = True


class RunFiles(keras.callbacks.Callback):
    """Writes a run's files as it goes, all of which follow from its checkpoints.

    After every whole epoch it adds a row to the history, and writes a checkpoint and history.csv;
    after the best so far best.keras; at the end final.keras and curves.png.
    """

    def __init__(self, run, states, whole):
        super().__init__()
        self.run, self.states, self.whole = run, states, whole
        self.directory, self.rows, self.checkpoints = run.directory, run.rows, run.checkpoints

    def on_train_begin(self, logs=None):
        if self.rows:  # the run may have been stopped between its files
            write_csv(self.directory / "history.csv", self.rows)
            best = best_of(self.rows)
            if self.checkpoints.read(best["epoch"]):
                self._copy_checkpoint(best, "best.keras")

    def on_epoch_begin(self, epoch, logs=None):
        for name in ("final.keras", "curves.png"):  # of a run that had ended, and goes on
            with writing(self.directory / name):
                (self.directory / name).unlink(missing_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        if not self.whole.is_whole:
            return
        first = ("learning_rate", "loss", "accuracy", "val_loss", "val_accuracy")
        names = sorted(logs, key=lambda name: first.index(name) if name in first else len(first))
        names = [name for name in names if name != "epoch"]  # which a callback may have added
        row = {"epoch": epoch + 1} | {name: in_six_digits(logs[name]) for name in names}
        for name in [name for name in names if isinstance(row[name], str)]:
            del logs[name]  # Keras' progress bar, which comes next, fails on text
        self.rows.append(row)
        self.run.keep_config()
        self.checkpoints.save(self.model, self.rows, self.states.as_bytes())
        write_csv(self.directory / "history.csv", self.rows)
        if row is best_of(self.rows):
            self._copy_checkpoint(row, "best.keras")

    def on_train_end(self, logs=None):
        if not self.whole.is_whole:
            where = f"epoch {self.whole.epoch} after step {self.whole.begun} of {self.whole.steps}"
            say(f"Stopped in {where}. This epoch is not kept; the same command trains it again")
        ended = len(self.rows) == self.run.settings.epochs or self.model.stop_training
        if ended and self.rows:
            self._copy_checkpoint(self.rows[-1], "final.keras")
            plot_curves(self.directory / "curves.png", self.run.settings, self.rows)

    def _copy_checkpoint(self, row, name):
        source = self.checkpoints.path(row["epoch"])
        replace_file(self.directory / name, lambda temporary: shutil.copy(source, temporary))


class StopOnNotFinite(keras.callbacks.Callback):
    """Raises `NotFinite` after a step, or an epoch's test, whose loss is not a finite number.

    Keras on JAX looks at the losses in other threads, while it trains on, and out of order. So
    this callback notes them, and asks in the main thread for the first one that is not finite.
    """

    async_safe = True

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1
        self.losses, self.finite = {}, 0  # by step; steps known to be finite

    def on_train_batch_begin(self, batch, logs=None):
        self._require_finite()

    def _require_finite(self):
        while self.finite in self.losses:
            loss = self.losses[self.finite]
            if not math.isfinite(loss):
                where = f"epoch {self.epoch}, step {self.finite + 1}"
                raise NotFinite(f"the loss became {loss:g} in {where}")
            self.finite += 1

    def on_train_batch_end(self, batch, logs=None):
        self.losses[batch] = logs["loss"]

    def on_epoch_end(self, epoch, logs=None):
        self._require_finite()  # Keras has told of all steps now
        if not math.isfinite(logs["val_loss"]):  # of weights that the last step broke
            raise NotFinite(f"the test loss became {logs['val_loss']:g} after epoch {self.epoch}")


class StopOnSignal(keras.callbacks.Callback):
    """Raises `Interrupted` before the next step after Ctrl-C or SIGTERM.

    It is a context manager too, within which it listens. If no step follows, the end of the
    context raises it.
    A second signal ends main.py at once. In a script or notebook it does what it did before, which
    for Ctrl-C is to raise KeyboardInterrupt.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        super().__init__()
        self.received = None
        self.writes = False  # whether the run has begun to write into its directory

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no signals
            self.before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, failed, *_):
        self._give_back()
        if failed and not issubclass(failed, Mistake) and console.is_terminal(sys.stdout):
            print(flush=True)  # the progress bar has not ended its line
        if not failed:  # else a loop around the training would go on
            self.require_none()

    def _receive(self, number, frame):
        self.received = number
        self._give_back()
        if console.is_program():
            for each in self.SIGNALS:
                signal.signal(each, signal.SIG_DFL)

    def _give_back(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def require_none(self):
        if self.received:
            raise Interrupted(self.received, self.writes)

    def on_train_batch_begin(self, batch, logs=None):
        self.require_none()

    on_test_batch_begin = on_train_batch_begin
