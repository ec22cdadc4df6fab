"""What callbacks remember, kept with an epoch: patience, best value, counters, best weights."""

import io
import json
from pathlib import PurePath

import keras
import numpy as np

from training.console import say

MEMBER = "callbacks.npz"  # inside a checkpoint
# What Keras itself puts into every callback.
OF_KERAS = {"_model", "params", "validation_data"}


class CannotKeep(TypeError):
    """A value is not a number, text, None, an array, or a list, tuple or dictionary of these."""


class CallbackStates(keras.callbacks.Callback):
    """Gives callbacks back what they remembered after the epoch that a run goes on from.

    The state of a callback is the attributes that have changed since the training began. The
    others keep the values that they have now: so a run may go on with another patience. This
    callback comes after the user's, as many of them forget everything in `on_train_begin`.

    Args:
        callbacks: Those of the user.
        saved: What `as_bytes` returned after that epoch; None if the run begins now.
        speaks: Whether to say what cannot be kept. Of several processes one does.
    """

    def __init__(self, callbacks, saved=None, speaks=True):
        super().__init__()
        self.callbacks, self.saved, self.speaks = list(callbacks), saved, speaks
        if saved:
            for callback in self.callbacks:
                if isinstance(callback, keras.callbacks.CSVLogger):
                    callback.append = True  # else it would empty its file

    def on_train_begin(self, logs=None):
        self.at_first = [_attributes_of(callback) for callback in self.callbacks]
        for callback in self.callbacks:
            if names := _names_without_copy(callback):
                self._say(
                    f"Callback {type(callback).__name__}: a run that goes on cannot give back what "
                    f"is in {', '.join(names)}; allowed are numbers, text, lists, arrays and None"
                )
        if self.saved:
            self._give_back()

    def _give_back(self):
        with np.load(io.BytesIO(self.saved)) as archive:
            states = json.loads(str(archive["states"]))
            arrays = {name: archive[name] for name in archive.files}
        for number, callback in enumerate(self.callbacks):
            kind, state = states[number] if number < len(states) else ("none", {})
            if kind == type(callback).__name__:
                vars(callback).update({k: _restored(v, arrays) for k, v in state.items()})
            else:
                self._say(
                    f"Callback {type(callback).__name__} begins anew: in its place there was {kind}"
                )

    def _say(self, text):
        if self.speaks:
            say(text)

    def as_bytes(self):
        """The states of all callbacks now, as an .npz file."""
        states, arrays = [], {}
        for callback, at_first in zip(self.callbacks, self.at_first, strict=True):
            now = _attributes_of(callback)
            changed = {k: v for k, v in now.items() if k not in at_first or at_first[k] != v}
            state = {name: _plain(getattr(callback, name), arrays) for name in changed}
            states.append((type(callback).__name__, state))
        file = io.BytesIO()
        np.savez(file, states=np.array(json.dumps(states)), **arrays)
        return file.getvalue()


def _attributes_of(callback):
    """{name: a comparable copy} of the attributes of a callback that can be kept."""
    found = {}
    for name, value in vars(callback).items():
        try:
            arrays = {}
            plain = _plain(value, arrays)
            found[name] = plain, {k: (x.dtype.str, x.tobytes()) for k, x in arrays.items()}
        except CannotKeep:
            continue
    return {name: value for name, value in found.items() if name not in OF_KERAS}


def _names_without_copy(callback):
    """The attributes of a user's own callback that hold a state which cannot be kept."""
    if type(callback).__module__.partition(".")[0] == "keras":  # tested, each of them
        return []
    kept = _attributes_of(callback)
    return [
        name
        for name, value in vars(callback).items()
        if name not in kept and name not in OF_KERAS and not callable(value)
    ]


def _plain(value, arrays):
    """A value as JSON holds it; arrays go into a dictionary, by their number."""
    kind = type(value)  # an object of a subclass, such as a defaultdict, would come back as another
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return {kind.__name__: [_plain(x, arrays) for x in value]}
    if kind is dict:
        return {"dict": [[_plain(k, arrays), _plain(v, arrays)] for k, v in value.items()]}
    if isinstance(value, PurePath):
        return {"path": str(value)}
    name = getattr(value, "__name__", "")
    if callable(value) and getattr(keras.ops, name, None) is value:  # such as a `monitor_op`
        return {"ops": name}
    if isinstance(value, np.ndarray | np.generic) or keras.ops.is_tensor(value):
        array = keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else value
        if np.asarray(array).dtype.kind in "biufcSU":
            name = f"array{len(arrays)}"
            arrays[name] = np.asarray(array)
            return {"scalar" if isinstance(value, np.generic) else "array": name}
    raise CannotKeep(type(value).__name__)


def _restored(plain, arrays):
    """The value that `_plain` was given; a tensor comes back as a NumPy array."""
    if not isinstance(plain, dict):
        return plain
    ((kind, value),) = plain.items()
    match kind:
        case "list":
            return [_restored(x, arrays) for x in value]
        case "tuple":
            return tuple(_restored(x, arrays) for x in value)
        case "dict":
            return {_restored(k, arrays): _restored(v, arrays) for k, v in value}
        case "ops":
            return getattr(keras.ops, value)
        case "path":
            return type(PurePath())(value)
        case "scalar":
            return arrays[value][()]
    return arrays[value]
