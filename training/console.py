"""The terminal that main.py talks to; how a run ends early, and what is said then.

No Keras at import.
"""

import contextlib
import os
import shutil
import signal
import sys
import textwrap

from training import Mistake, reason
from training.files import CannotWrite
from training.identity import directory_of

_is_program = False  # whether this process is main.py's own, and not somebody's notebook


class NotFinite(Exception):
    """The loss has become NaN or infinite."""


class Interrupted(Exception):
    """The user, or the system, has asked the training to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


def own_process():
    """Makes this process main.py's own.

    Text that the terminal's encoding lacks is replaced, instead of ending the program; and Keras
    does without TensorFlow on other backends.
    """
    global _is_program
    _is_program = True
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def say(text, indent=0, file=None):
    """Prints text; on a terminal, broken between words where its lines end."""
    file = file or sys.stdout
    if file.isatty():
        width, indent = max(40, shutil.get_terminal_size().columns - 1), " " * indent
        whole = {"break_long_words": False, "break_on_hyphens": False}
        text = textwrap.fill(text, width, subsequent_indent=indent, **whole)
    print(text, file=file, flush=True)


def stop(code, message):
    """Ends the program, with one line if there is something to say."""
    if message:
        say(f"main.py: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def leave(code):
    """Ends the process at once: TensorFlow may take five seconds to end its threads.

    All files are whole. What cannot be written to a closed pipe is nobody's loss.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def start_keras():
    """Imports Keras."""
    prepare_environment()
    try:
        import keras
    except (ImportError, ValueError) as error:
        raise Mistake(
            "KERAS_BACKEND: allowed is tensorflow, jax or torch, if it is installed; received "
            f"{os.environ.get('KERAS_BACKEND', 'that of keras.json')!r}: {reason(error)}"
        ) from error
    backend = keras.backend.backend()
    if backend != "tensorflow" and _is_program and "tensorflow" not in sys.modules:
        # Keras would import it to seed and to save, which takes seconds. It looks once: now.
        sys.modules["tensorflow"] = None  # which Python takes for a module that is not there
        keras.utils.set_random_seed(0)
        del sys.modules["tensorflow"]


def prepare_environment():
    """Sets what TensorFlow reads from the environment when it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's notes, not its errors
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        # A quarter off the time of the activations on an AVX-512 CPU.
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")


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
        problem = f"cannot write {error.filename}: {error.strerror}"
        return 1, f"error: {problem}; {saved(settings)}; {again(settings)}"
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
