"""A run in its directory: what it goes on from, what it keeps, and what it says."""

import contextlib
import json
import sys

from training import devices, report, tensorflow_cpu
from training.callbacks import StopOnSignal, callbacks_of
from training.checkpoints import Checkpoints
from training.files import locked, remove_run, write_text
from training.identity import directory_of, require_same_run
from training.model import make_variables


class Run(contextlib.ExitStack):
    """A run, as a context within which nobody else trains in its directory.

    Of several processes the first alone writes and prints; the others train along. Raises `Mistake`
    if the directory holds another run, or another process trains in it.
    """

    def __init__(self, settings, data):
        super().__init__()
        require_same_run(settings, data=data)
        self.settings, self.data = settings, data
        self.directory = directory_of(settings)
        self.checkpoints = Checkpoints(self.directory)
        self.leads = devices.process()[0] == 0

    def __enter__(self):
        if self.leads:
            self.enter_context(locked(self.directory))
        self.signals = self.enter_context(StopOnSignal())
        self.rows = [] if self.settings.overwrite else self.checkpoints.history()
        self.done = len(self.rows)  # epochs
        self.callbacks = callbacks_of(
            self.settings, self.data, self.directory, self.rows, self.leads
        )
        return self

    def begin(self, model):
        """Puts the state that the run goes on from into a compiled model, and says so."""
        make_variables(model)
        tensorflow_cpu.shrink_graph(model)
        optimizer = model.optimizer
        changed = require_same_run(self.settings, data=self.data, optimizer=optimizer)
        config = report.describe(self.settings, model, self.data)  # as the optimizer begins
        if self.done:
            initial = [v.numpy() for v in optimizer.variables]
            self.checkpoints.restore(model, self.done)
            if "the optimizer" in changed:
                for variable, value in zip(optimizer.variables, initial, strict=True):
                    variable.assign(value)
        if self.leads:
            if self.settings.overwrite:
                self.signals.require_none()  # the last moment to save what is there
                remove_run(self.directory)
            report.announce(config, self.directory)
            write_text(self.directory / "config.json", json.dumps(config, indent=2) + "\n")
            if self.done and self.done < self.settings.epochs:
                print(f"Going on after epoch {self.done} of {self.settings.epochs}", flush=True)

    def fit(self, callbacks=()):
        """What else `fit` takes in this run, with callbacks of the user's own."""
        first, last = self.callbacks
        shown = 1 if sys.stdout.isatty() else 2  # in a file, the bar would be a line per step
        return {
            **devices.feed(self.settings, self.data, self.done),
            "callbacks": [self.signals, *first, *callbacks, *last],
            "verbose": shown if self.leads else 0,
        }

    def report(self):
        """Says what came out."""
        if self.leads:
            report.summarise(self.settings, self.directory, self.rows, len(self.rows) - self.done)
