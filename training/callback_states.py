"""The user's callbacks: which are allowed, and what they remember, kept with an epoch.

That is patience, best value, counters, best weights.
"""

import inspect
import io
import json
from pathlib import Path

import keras
import numpy as np

from training import Mistake
from training.console import say
from training.learning_rate import optimizers_of

MEMBER = "callbacks.npz"  # inside a checkpoint
# What Keras itself puts into every callback.
OF_KERAS = {"_model", "params"}


def require_compatible(settings, callbacks):
    """Raises `Mistake` for an object that is no callback, and for some of Keras' callbacks.

    It refuses BackupAndRestore. It refuses ReduceLROnPlateau and LearningRateScheduler if the
    schedule sets the learning rate as well.
    """
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise Mistake(
                f"callbacks: allowed are objects of keras.callbacks.Callback; received {callback!r}"
            )
    if any(isinstance(x, keras.callbacks.BackupAndRestore) for x in callbacks):
        raise Mistake(
            "callbacks: allowed are all but BackupAndRestore, as a run goes on by itself; "
            "received BackupAndRestore"
        )
    of_rate = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)
    setting = [type(x).__name__ for x in callbacks if isinstance(x, of_rate)]
    if setting and settings.schedule != "constant":
        raise Mistake(
            f"schedule: allowed with {setting[0]} is 'constant', as others set the rate in "
            f"every epoch; received {settings.schedule!r}"
        )


def require_averages(callbacks, optimizer):
    """Raises `Mistake` for `SwapEMAWeights` with an optimizer that averages no weights."""
    swaps = any(isinstance(x, keras.callbacks.SwapEMAWeights) for x in callbacks)
    optimizers = optimizers_of(optimizer)
    if swaps and not any(each.use_ema for each in optimizers):
        received = ", ".join(type(each).__name__ for each in optimizers)
        raise Mistake(
            "callbacks: allowed with SwapEMAWeights is an optimizer with use_ema=True, in the line "
            f"optimizer=… of main.py; received {received} without it"
        )


class CannotKeep(TypeError):
    """A value has none of the types that `_plain` knows."""


class CallbackStates(keras.callbacks.Callback):
    """Gives callbacks back what they remembered after the epoch that a run goes on from.

    The state of a callback is the attributes that differ from one of two snapshots: that of the
    start, or that after its own `on_train_begin`. What was once given back is kept again. All other
    attributes stay as the user gives them now: so a run may go on with another patience. This
    callback comes after the user's, as many of them forget everything in `on_train_begin`.

    Args:
        callbacks: Those of the user. A state belongs to a place in the list, and to a class's name.
        saved: What `as_bytes` returned after that epoch; None if there is nothing to give back.
        speaks: Whether to say what cannot be kept. Of several processes one does.
    """

    def __init__(self, callbacks, saved=None, speaks=True):
        super().__init__()
        self.states = [_CallbackState(callback) for callback in callbacks]
        self.saved, self.speaks = saved, speaks
        for state in self.states:
            if saved and isinstance(state.callback, keras.callbacks.CSVLogger):
                state.callback.append = True  # else it would empty its file

    def on_train_begin(self, logs=None):
        for state in self.states:
            state.snapshots.append(self._attributes_now(state))
        if self.saved:
            self._give_back()

    def _attributes_now(self, state):
        """The attributes of a callback that can be kept. Names the others, each of them once."""
        attributes = _attributes_of(state.callback)
        lost = _names_without_copy(state.callback, attributes)
        names = [name for name in lost if name not in state.told]
        state.told.update(names)
        if names:
            self._say(
                f"Callback {state.kind}: a run that goes on cannot give back what is in "
                f"{', '.join(names)}; allowed are numbers, text, None, paths, arrays, tensors, and "
                "lists, tuples and dictionaries of these"
            )
        return attributes

    def _give_back(self):
        with np.load(io.BytesIO(self.saved)) as archive:
            saved = json.loads(str(archive["states"]))
            arrays = {name: archive[name] for name in archive.files}
        for number, state in enumerate(self.states):
            kind, attributes = saved[number] if number < len(saved) else ("none", {})
            if kind == state.kind:
                state.give_back(attributes, arrays)
            else:
                self._say(f"Callback {state.kind} begins anew: in its place there was {kind}")
        for kind, attributes in saved[len(self.states) :]:
            if attributes:
                self._say(f"Callback {kind} is not given any more: what it remembered is lost")

    def _say(self, text):
        if self.speaks:
            say(text)

    def as_bytes(self):
        """The states of all callbacks now, as an .npz file."""
        arrays = {}
        states = []
        for state in self.states:
            now = self._attributes_now(state)  # what cannot be kept may have become more
            states.append((state.kind, state.to_keep(now, arrays)))
        file = io.BytesIO()
        np.savez(file, states=np.array(json.dumps(states)), **arrays)
        return file.getvalue()


class _CallbackState:
    """What one callback remembers."""

    def __init__(self, callback):
        self.callback, self.kind = callback, type(callback).__name__
        # Two snapshots of the attributes. The first shows what `on_train_begin` sets. The second
        # comes after it, and shows what was reset there and came back to its old value.
        self.snapshots = [_attributes_of(callback)]
        # The names of what was given back. In an object that trains twice, both snapshots have it.
        self.given_back = set()
        self.told = set()  # the names of what cannot be kept, once the user has been told

    def to_keep(self, now, arrays):
        """{name: value as JSON holds it} of the state; arrays go into the dictionary `arrays`."""
        names = [k for k, v in now.items() if any(each.get(k) != v for each in self.snapshots)]
        names += [k for k in self.given_back if k in now and k not in names]
        return {name: _plain(getattr(self.callback, name), arrays) for name in names}

    def give_back(self, attributes, arrays):
        if isinstance(self.callback, keras.callbacks.CSVLogger):
            attributes.pop("append_header", None)  # Keras has looked whether its file has a header
        vars(self.callback).update({k: _restored(v, arrays) for k, v in attributes.items()})
        self.given_back |= attributes.keys()


def _attributes_of(callback):
    """{name: a comparable copy} of the attributes of a callback that can be kept."""
    found = {}
    for name, value in vars(callback).items():
        try:
            arrays = {}
            plain = _plain(value, arrays)
            found[name] = plain, {k: (x.dtype.str, x.shape, x.tobytes()) for k, x in arrays.items()}
        except (CannotKeep, RecursionError):
            continue
    return {name: value for name, value in found.items() if name not in OF_KERAS}


def _names_without_copy(callback, kept):
    """The attributes of a user's own callback that hold a state which cannot be kept."""
    if type(callback).__module__.partition(".")[0] == "keras":  # tested, each of them
        return []
    return [
        name
        for name, value in vars(callback).items()
        if name not in kept
        and name not in OF_KERAS
        and not (inspect.isroutine(value) or isinstance(value, type))
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
    if isinstance(value, Path):
        return {"path": str(value)}
    name = getattr(value, "__name__", "")
    if callable(value) and getattr(keras.ops, name, None) is value:  # such as a `monitor_op`
        return {"ops": name}
    if kind is np.ndarray or isinstance(value, np.generic):
        return {"array" if kind is np.ndarray else "scalar": _name_of_array(value, arrays)}
    if keras.ops.is_tensor(value) and not hasattr(value, "assign"):  # a variable is not its value
        return {"tensor": _name_of_array(value, arrays)}
    raise CannotKeep(kind.__name__)


def _name_of_array(value, arrays):
    """The name under which an array, or a tensor, is put among the arrays."""
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
    except Exception as error:  # a key of random numbers, for example
        raise CannotKeep(type(value).__name__) from error
    if array.dtype.kind not in "biufcSU":
        raise CannotKeep(str(array.dtype))
    name = f"array{len(arrays)}"
    arrays[name] = array
    return name


def _restored(plain, arrays):
    """The value that `_plain` was given."""
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
            return Path(value)
        case "scalar":
            return arrays[value][()]
        case "tensor":
            return keras.ops.convert_to_tensor(arrays[value])
    return arrays[value]
