"""How a run ends early, the exit code of each ending, and what is said then. No Keras."""

import signal

from training import Mistake
from training.files import CannotWrite
from training.identity import directory_of


class NotFinite(Exception):
    """The loss has become NaN or infinite."""


class Interrupted(Exception):
    """The user, or the system, has asked the training to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


def ending_of(error, settings):
    """The exit code of an exception and the line that tells it, or None if it is not for a user.

    The line is None where there is nobody to read it.
    """
    if isinstance(error, BrokenPipeError):
        return 141, None  # 128 + SIGPIPE, which Windows lacks
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped; nothing was written"
    if isinstance(error, Mistake):
        return 2, f"error: {error}"
    if isinstance(error, NotFinite):
        return 3, f"error: {error}; {cause(settings)}; {saved(settings)}"
    if isinstance(error, Interrupted):
        return 128 + error.number, f"stopped by {error}; {saved(settings)}; {again(settings)}"
    if isinstance(error, CannotWrite):
        reason = f"cannot write {error.filename}: {error.strerror}"
        return 1, f"error: {reason}; {saved(settings)}; {again(settings)}"
    return None


def cause(settings):
    """What most likely made the loss NaN or infinite, first the likelier, and the ways out."""
    from training.model import learning_rate, steepest

    causes, plain = [], settings.activation.removeprefix("GAAF_")
    if plain != settings.activation and (slope := steepest(settings)) > 1.1:
        causes.append(
            f"the slope of GAAF, up to {slope:.1f} with gain {settings.gain:g}, enlarges "
            "gradients at each activation: take --gain peak, a smaller --depth or "
            f"--activation {plain}"
        )
    causes.append(f"the learning rate, {learning_rate(settings):g}, is too high")
    return f"most likely {', or '.join(causes)}"


def saved(settings):
    """What a run that has ended early has left."""
    from training.checkpoints import Checkpoints

    directory = directory_of(settings)
    epoch = len(Checkpoints(directory).history())
    return f"the state after epoch {epoch} is in {directory}" if epoch else "no epoch was completed"


def again(settings):
    """How to go on."""
    return "to go on, run the same command again" + ", without --overwrite" * settings.overwrite
