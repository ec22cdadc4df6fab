"""A run in its directory: what it goes on from, what it keeps, and what it says."""

import contextlib
import json
import sys

from training import Mistake, batches, devices, report, tensorflow_cpu
from training.callback_states import CallbackStates, require_averages
from training.callbacks import StopOnSignal, callbacks_of
from training.checkpoints import Checkpoints
from training.console import is_terminal, say
from training.files import locked, remove_run, write_text
from training.identity import (
    config_in,
    digest_of_data,
    directory_of,
    identity_of,
    require_same_run,
)
from training.learning_rate import LearningRate
from training.model import (
    make_variables,
    require_each_step,
    require_fitting,
    require_savable,
)
from training.tensorboard import require_activations


class Run(contextlib.ExitStack):
    """A run, as a context within which nobody else trains in its directory.

    Of several processes only the first writes and prints. The others train along.

    Args:
        settings: Those of main.py.
        data: `Data`. `fit` trains on its training images, and tests on its test images after each
            epoch. With validation, these are the images held out.
        test: With validation, the (images, labels) to test on at the end; else None.
        callbacks: The user's own.

    Raises:
        Mistake: if the directory holds another run, or another process trains in it.
    """

    def __init__(self, settings, data, test=None, callbacks=()):
        super().__init__()
        self.settings, self.data, self.test, self.callbacks = settings, data, test, callbacks
        self.data_digest = digest_of_data(data, test)
        require_same_run(settings, data_digest=self.data_digest)
        self.directory = directory_of(settings)
        self.checkpoints = Checkpoints(self.directory)
        self.leads = devices.process()[0] == 0

    def __enter__(self):
        if self.leads:
            self.enter_context(locked(self.directory))
        self.signals = self.enter_context(StopOnSignal())
        self.rows = [] if self.settings.overwrite else self.checkpoints.history()
        self.epochs_done = len(self.rows)
        return self

    def begin(self, model):
        """Puts the state that the run goes on from into a compiled model, and says so.

        Raises:
            Mistake: if the directory holds another run, or one without a checkpoint; if the model
                does not fit the data or the histograms, takes several steps at once, or cannot be
                saved; or if a callback needs another optimizer.
        """
        self._require_checkpoint()
        require_averages(self.callbacks, model.optimizer)
        require_fitting(model, self.data, "model", model.name)
        require_each_step(model)
        require_savable(model)
        if self.settings.gradient_histograms:
            require_activations(model)
        make_variables(model, self.data, self.settings.batch_size)
        tensorflow_cpu.shrink_graph(model)
        known = {"data_digest": self.data_digest, "optimizer": model.optimizer}
        changed = require_same_run(self.settings, **known)
        before = None if self.settings.overwrite else config_in(self.directory)
        self.config = {
            **identity_of(self.settings, **known),
            **report.describe(self.settings, model, self.data, self.test),
            "stretches": report.stretches(before, self.settings, self.epochs_done),
        }
        self.learning_rate = LearningRate(self.settings, model.optimizer)
        if self.epochs_done:
            self._restore(model, keep_optimizer="the optimizer" not in changed)
        if self.leads:
            if self.settings.overwrite:
                self.signals.require_none()  # the last moment to save what is there
                remove_run(self.directory)
            report.announce(self.config, self.directory)
            if not self.epochs_done:  # the directory is this run's from now on
                self._write_config(stretches=[])
            elif self.epochs_done < self.settings.epochs:
                print(
                    f"Going on after epoch {self.epochs_done} of {self.settings.epochs}", flush=True
                )
        self.signals.writes = True

    def _require_checkpoint(self):
        is_run = (self.directory / "history.csv").exists() and not self.settings.overwrite
        if is_run and not self.rows:
            raise Mistake(
                f"output_dir: '{self.directory}' holds a run without a checkpoint that can be "
                "read; choose another directory, or begin anew with --overwrite"
            )

    def _restore(self, model, keep_optimizer):
        """Loads the last epoch; of a changed optimizer the state begins anew."""
        optimizer = model.optimizer
        initial = [variable.numpy() for variable in optimizer.variables]
        self.checkpoints.restore(model, self.epochs_done)
        if not keep_optimizer:
            for variable, value in zip(optimizer.variables, initial, strict=True):
                variable.assign(value)

    def _write_config(self, **changes):
        text = json.dumps(self.config | changes, indent=2) + "\n"
        write_text(self.directory / "config.json", text)

    def fit_arguments(self):
        """The arguments of `fit` in this run, but for the epochs."""
        fed = batches.feed(self.settings, self.data, self.epochs_done)
        saved = self.checkpoints.callbacks(self.epochs_done)
        states = CallbackStates(self.callbacks, saved, self.leads)
        first, last = callbacks_of(self, fed["steps_per_epoch"], states)
        shown = 1 if is_terminal(sys.stdout) else 2  # in a file, the bar would be a line per step
        return {
            **fed,
            "callbacks": [self.signals, *first, *self.callbacks, states, *last],
            "verbose": shown if self.leads else 0,
        }

    def keep_config(self):
        """Writes what trains, as soon as an epoch has been trained."""
        if len(self.rows) == self.epochs_done + 1:
            self._write_config()

    def report(self):
        """Says what came out. Tests the models, if the test images were kept back until now."""
        if not self.leads:
            return
        if self.test and (self.directory / "final.keras").exists():
            self._test_models()
        report.summarise(
            self.settings, self.directory, self.rows, len(self.rows) - self.epochs_done
        )

    def _test_models(self):
        from training.evaluate import accuracy_of, load_model

        before = config_in(self.directory)
        if "test_accuracy" in before and len(self.rows) == self.epochs_done:
            return
        try:
            with devices.without_distribution():
                found = {
                    name: accuracy_of(load_model(self.directory / name), *self.test)
                    for name in ("final.keras", "best.keras")
                }
        except Mistake as mistake:  # a network of the user's own may have a Lambda layer
            _, _, problem = str(mistake).partition(": ")
            say(f"Warning: the models of this run are not tested: {problem}")
            return
        self.config = before
        self._write_config(test_accuracy=found)
