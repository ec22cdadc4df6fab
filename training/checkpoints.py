"""Saves and restores the state after an epoch, in one file that is whole or not there."""

import json
import zipfile

import keras

from training import Mistake, devices, reason
from training.callback_states import MEMBER as CALLBACKS
from training.console import say
from training.files import own_files, replace_file, writing

# Inside a checkpoint.
HISTORY = "history.json"
SEEDS = "seeds.json"


def best_of(rows):
    """The row of the first epoch with the highest validation accuracy, or else the lowest loss."""
    return max(rows, key=lambda row: row.get("val_accuracy", -row["val_loss"]))


def seeds_of(model):
    """The states of a model's random generators, as Dropout has one. Keras does not save them."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


class Checkpoints:
    """The states of a run, kept after every epoch.

    A checkpoint is an archive. It holds the saved model with the optimizer's state, the states of
    random generators, the history so far, and what callbacks remember. Two epochs stay, the last
    ones, and for each of them the best epoch up to it.
    """

    def __init__(self, directory):
        self.folder = directory / "checkpoints"

    def path(self, epoch):
        """The file of an epoch, counted from 1."""
        return self.folder / f"{epoch:04}.keras"

    def save(self, model, rows, callbacks=None):
        """Saves the state after the last epoch of the history.

        Args:
            model: The compiled model.
            rows: The history.
            callbacks: What `CallbackStates.as_bytes` returns. Default: nothing is kept of them.
        """
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)

        def write(temporary):
            with devices.without_distribution():  # the first of several processes saves
                model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(HISTORY, json.dumps(rows))
                seeds = [keras.ops.convert_to_numpy(x).tolist() for x in seeds_of(model)]
                archive.writestr(SEEDS, json.dumps(seeds))
                if callbacks is not None:
                    archive.writestr(CALLBACKS, callbacks)

        epoch = rows[-1]["epoch"]
        replace_file(self.path(epoch), write)
        needed = set()
        for history in filter(None, (rows, rows[:-1])):
            needed |= {self.path(history[-1]["epoch"]), self.path(best_of(history)["epoch"])}
        for path in set(self._files().values()) - needed:
            with writing(path):
                path.unlink()

    def _files(self):
        """{epoch: its file}; files of somebody else are left out."""
        files = own_files(self.folder, "checkpoints")
        return {int(path.stem): path for path in files}

    def history(self):
        """The history in the latest checkpoint that is whole, or []."""
        for epoch in sorted(self._files(), reverse=True):
            if rows := self.read(epoch):
                return rows
        return []

    def read(self, epoch):
        """The history in the checkpoint of an epoch; None, with a warning, if it is not whole."""
        path = self.path(epoch)
        try:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # compares the checksums
                    raise zipfile.BadZipFile(f"{damaged} is damaged")
                return json.loads(archive.read(HISTORY))
        except Exception as error:  # a flipped bit makes zipfile raise any kind
            say(f"Warning: {path} is damaged or gone, and is not used: {reason(error)}")
            return None

    def callbacks(self, epoch):
        """What `CallbackStates.as_bytes` returned after an epoch; None if nothing was kept."""
        return self._member(epoch, CALLBACKS) if epoch else None

    def _member(self, epoch, name):
        """What a checkpoint holds by a name; None if it holds no such thing, as an older one."""
        with zipfile.ZipFile(self.path(epoch)) as archive:
            return archive.read(name) if name in archive.namelist() else None

    def restore(self, model, epoch):
        """Loads the weights after an epoch and, if the model is compiled, the optimizer's state.

        Random generators go on where they were, unless the checkpoint is of another number of them.

        Raises:
            Mistake: if it is that of another network.
        """
        path = self.path(epoch)
        try:
            model.load_weights(path)
        except ValueError as error:
            raise Mistake(
                f"output_dir: allowed is a run of the same network; received '{path}': "
                f"{reason(error)}"
            ) from error
        variables, values = seeds_of(model), json.loads(self._member(epoch, SEEDS) or "[]")
        if len(variables) == len(values):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
