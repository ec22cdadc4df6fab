"""The terminal; how a run ends early, and what main.py says then. No Keras at import."""

import contextlib
import importlib.util
import io
import json
import os
import platform
import shutil
import signal
import sys
import textwrap
import threading
from pathlib import Path

from training import Mistake, reason
from training.files import CannotWrite
from training.identity import config_in, directory_of
from training.settings import as_flag

BACKENDS = ("tensorflow", "jax", "torch")
_is_program = False  # whether this process is main.py's own, and not somebody's notebook


class NotFinite(Exception):
    """The loss has become NaN or infinite."""


class Interrupted(Exception):
    """The user, or the system, has asked the training to end."""

    def __init__(self, number, wrote=True):
        super().__init__(signal.Signals(number).name)
        self.number, self.wrote = number, wrote


def own_process():
    """Makes this process main.py's own.

    Text that the terminal's encoding lacks is replaced, instead of ending the program; and Keras
    does without TensorFlow on other backends.
    """
    global _is_program
    _is_program = True
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell has closed it
            setattr(sys, name, io.StringIO())
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="replace")


def is_program():
    """Whether this process is main.py's own, and not that of a script or notebook."""
    return _is_program


def is_terminal(file):
    """Whether a file is a terminal. What somebody has put in the place of stdout may not know."""
    return hasattr(file, "isatty") and file.isatty()


def say(text, indent=0, file=None):
    """Prints text; on a terminal, broken between words where its lines end."""
    file = file or sys.stdout
    if is_terminal(file):
        width, indent = max(40, shutil.get_terminal_size().columns - 1), " " * indent
        options = {"break_long_words": False, "break_on_hyphens": False}
        text = textwrap.fill(text, width, subsequent_indent=indent, **options)
    print(text, file=file, flush=True)


def stop(code, message):
    """Ends the program, with one line if there is something to say."""
    if message:
        say(f"main.py: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def leave(code):
    """Ends the process at once: TensorFlow may take five seconds to end its threads.

    All files are whole by then, and nobody reads a closed pipe. Of several JAX processes, one that
    has finished waits for the others: they abort if the first one is gone.
    """
    if code == 0 and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.modules["jax"].distributed.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if code == 128 + signal.SIGINT and os.name == "posix":
        # A shell ends the loop that the program runs in only if the signal itself ends it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    os._exit(code)


def start_keras():
    """Imports Keras.

    Raises:
        Mistake: if Keras or its backend cannot be imported, or the backend cannot train.
        KeyboardInterrupt: after the import, for a Ctrl-C within it.
    """
    prepare_environment()
    with _late_ctrl_c():
        try:
            import keras
        except (ImportError, ValueError) as error:
            raise _import_mistake(error) from error
    backend = keras.backend.backend()
    if backend not in BACKENDS:
        raise Mistake(f"KERAS_BACKEND: allowed is {', '.join(BACKENDS)}; received {backend!r}")
    if backend != "tensorflow" and _is_program and "tensorflow" not in sys.modules:
        # Keras would import it to seed and to save, which takes seconds. It looks once: now.
        sys.modules["tensorflow"] = None  # which Python takes for a module that is not there
        keras.utils.set_random_seed(0)
        del sys.modules["tensorflow"]


@contextlib.contextmanager
def _late_ctrl_c():
    """Raises a first KeyboardInterrupt at the end: what is imported within may swallow it."""
    received = []

    def receive(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python has no signals there
        return
    before = signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


def _import_mistake(error):
    """What to tell of an error while Keras was imported."""
    backend = backend_named()
    if backend in BACKENDS and importlib.util.find_spec(backend):
        return Mistake(f"keras: it cannot be imported: {reason(error)}")
    return Mistake(
        f"KERAS_BACKEND: allowed is {', '.join(BACKENDS)}, if it is installed; received "
        f"{backend!r}: {reason(error)}"
    )


def backend_named():
    """The backend that Keras will take: that of the environment, or else of keras.json."""
    if named := os.environ.get("KERAS_BACKEND"):
        return named
    folder = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        config = json.loads(Path(folder, "keras.json").read_text(encoding="utf-8"))
        return config.get("backend", "tensorflow")
    return "tensorflow"


def prepare_environment():
    """Sets what TensorFlow reads from the environment when it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's notes, not its errors
    if backend_named() == "tensorflow":
        # A quarter off the time of the activations on an AVX-512 CPU.
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")
        if platform.machine() == "x86_64" and "tensorflow" not in sys.modules:
            # Some CPUs get oneDNN's convolutions only then, such as AMD's with AVX2. They take half
            # as long. TensorFlow reads it once, when it is imported.
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def ending_of(error, settings):
    """How the program ends after an exception.

    Args:
        error: The exception.
        settings: Those that trained; None if a model was tested.

    Returns:
        (exit code, line to print), where the line is None if there is nothing to print. Or None
        alone if the exception is a bug: then Python shows it.
    """
    if isinstance(error, BrokenPipeError):
        return 141, None  # 128 + SIGPIPE, which Windows lacks
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped; nothing was written"
    if isinstance(error, Mistake):
        return 2, f"error: {as_flag(str(error), settings)}"
    if isinstance(error, NotFinite):
        return 3, f"error: {error}; {likely_cause(settings)}; {saved_state(settings)}"
    if isinstance(error, Interrupted):
        left = f"{saved_state(settings)}; {resume_hint(settings)}"
        return (
            128 + error.number,
            f"stopped by {error}; {left if error.wrote else 'nothing was written'}",
        )
    if isinstance(error, CannotWrite):
        problem = f"cannot write {error.filename}: {error.strerror}"
        return 1, f"error: {problem}; {saved_state(settings)}; {resume_hint(settings)}"
    if is_out_of_memory(error) and settings is None:
        return 1, "error: the memory is not enough to test this model"
    if is_out_of_memory(error):
        way_out = "take a smaller --batch-size or --depth, or fewer images"
        return 1, f"error: the memory is not enough: {way_out}; {saved_state(settings)}"
    return None


def is_out_of_memory(error):
    """Whether the memory was not enough, that of a GPU included."""
    names = {"MemoryError", "ResourceExhaustedError", "OutOfMemoryError"}
    return type(error).__name__ in names or "RESOURCE_EXHAUSTED" in str(error)


def likely_cause(settings):
    """What most likely made the loss NaN or infinite, the likelier first, and the ways out."""
    from training.model import steepest

    causes, plain = [], settings.activation.removeprefix("GAAF_")
    if plain != settings.activation and (slope := steepest(settings)) > 1.1:
        causes.append(
            f"the slope of GAAF, up to {slope:.1f} with gain {settings.gain:g}, enlarges "
            "gradients at each activation: take --gain peak, a smaller --depth or "
            f"--activation {plain}"
        )
    config = config_in(directory_of(settings)) or {}
    rate = config.get("optimizer", {}).get("learning_rate")  # that of an edited line of main.py
    number = f", {rate:g}," if isinstance(rate, float) else ""
    causes.append(f"the learning rate{number} is too high")
    return f"most likely {', or '.join(causes)}"


def saved_state(settings):
    """What a run that has ended early has left."""
    from training.checkpoints import Checkpoints

    directory = directory_of(settings)
    epoch = len(Checkpoints(directory).history())
    return f"the state after epoch {epoch} is in {directory}" if epoch else "no epoch was completed"


def resume_hint(settings):
    """How to go on."""
    return "to go on, run the same command again" + ", without --overwrite" * settings.overwrite
