"""Trains a CIFAR-10 ResNet with gradient-accelerated activation functions (GAAF).

Edit the settings below and run `python main.py`, or give any of them as a flag.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from data import require_source
from depths import BLOCKS, block_and_count

# Keras, and with it TensorFlow, is imported where it is needed: --help and a wrong flag get their
# answer without that wait.
if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True)
class Settings:
    # The network. Each comment is also the help text of the flag of that name.
    version: int = 1  # ResNet version, 1 or 2
    depth: int = 20  # layers; version 1: 20, 32, 44, 56, 110, 164, 1001; 2: 20, 56, 110, 164, 1001
    activation: str = "GAAF_relu"  # GAAF_relu, GAAF_tanh, relu, or any other Keras activation

    # The parameters of GAAF_relu and GAAF_tanh.
    shift: float = -1.0  # the sigmoid of GAAF_relu has its centre at x = -shift
    slope: float = 1.0  # steepness of that sigmoid
    frequency: float = 10_000.0  # K, sawtooth periods per unit of x
    wave: str = "floor"  # floor, round (slope alternates), or none (K → ∞, only gradients change)
    shape: str = "auto"  # sigmoid, gaussian, none (1 everywhere), or auto: that of the paper
    fade: float = 0.0  # the acceleration fades to zero over this share of the epochs; 0: it stays
    fade_steps: int = 10  # in so many steps; 1: it is switched off at the end of that share

    # The data.
    data: str = "cifar10"  # cifar10 (downloads), digits, or path of an .npz or official .tar.gz
    data_augmentation: bool = False  # random flips, and shifts of up to 10 %
    subtract_pixel_mean: bool = True  # subtract the mean training image

    # The training.
    batch_size: int = 128  # images per step
    epochs: int = 200  # passes over the training images; the learning rate's steps scale with it
    learning_rate: float = 1e-3  # Adam's, until it falls at 40, 60, 80 and 90 % of the epochs
    precision: str = "float32"  # float32, mixed_bfloat16 or mixed_float16
    seed: int = 0  # of initial weights, order and augmentation
    gradient_histograms: bool = False  # of each activation, into the TensorBoard logs
    output_dir: str = "auto"  # where the results go; auto: runs/<name from the settings>
    overwrite: bool = False  # replace the run in that directory, instead of going on with it


def train(settings: Settings = Settings()) -> "keras.callbacks.History":
    """Trains as the settings say, and writes the results to the output directory.

    A run with these settings that has been stopped goes on after its last whole epoch.

    Args:
        settings: `Settings`; `Settings(depth=56, activation="relu")` changes what it names.

    Returns:
        `keras.callbacks.History`, of the epochs trained now.

    Raises:
        ValueError: if a setting or the data is wrong, or another process trains in the directory;
            nothing has been written then.
        runs.NotFinite: if the loss becomes NaN or infinite.
        runs.Interrupted: after Ctrl-C or SIGTERM.
        OSError: if a file cannot be written.
    """
    return fit(settings, *prepare(settings))


def prepare(settings):
    """Does all in which a mistake of the user can come to light; returns the model and the data."""
    check(settings)
    start_keras()
    import keras

    import devices
    from data import load

    devices.join()
    devices.require_divisible(settings.batch_size)
    keras.utils.set_random_seed(settings.seed)
    print(f"Building ResNet-{settings.depth} v{settings.version} …", flush=True)
    with devices.parallel():
        network = build_network(settings)
    data = load(settings.data)
    if len(data.x_train) < settings.batch_size:
        raise ValueError(
            f"data: allowed is at least one batch of {settings.batch_size} training images; "
            f"received {len(data.x_train)}"
        )
    several = devices.process()[1] > 1
    if several and settings.gradient_histograms:
        raise ValueError(
            "gradient_histograms: allowed for several processes is False; received True"
        )
    if several and len(data.x_test) % devices.count():
        raise ValueError(
            f"data: allowed for several processes is a number of test images that {devices.count()}"
            f" devices can share evenly; received {len(data.x_test)}"
        )
    with devices.parallel():
        model = build_model(settings, network, data)
    try:
        directory_of(settings).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir: the directory cannot be made: {error}") from error
    return model, data


def start_keras():
    """Imports Keras. On a terminal, what TensorFlow has to say meanwhile is held back.

    Unless TF_CPP_MIN_LOG_LEVEL is in the environment: with 0, all is shown.
    """
    talks = "TF_CPP_MIN_LOG_LEVEL" in os.environ or not sys.stderr.isatty()
    prepare_environment()
    with contextlib.nullcontext() if talks else held_back():
        import keras

        if keras.backend.backend() == "tensorflow":  # which looks for devices now, and says so
            keras.distribution.list_devices()


def prepare_environment():
    """Sets what TensorFlow reads from the environment when it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's notes, not its errors
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        # A quarter off the time of the activations on an AVX-512 CPU.
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")


@contextlib.contextmanager
def held_back():
    """Holds back what is written to stderr, by libraries too, and shows it after an exception."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def check(settings):
    """Raises ValueError for a setting that is wrong whatever the network and the data."""
    choices = {
        "version": (1, 2),
        "wave": ("floor", "round", "none"),
        "shape": ("auto", "sigmoid", "gaussian", "none"),
        "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    }
    limits = {
        "depth": (1, 2000),
        "shift": (-1e30, 1e30),
        "slope": (-1e30, 1e30),
        "frequency": (1e-30, 1e30),
        "fade": (0, 1),
        "fade_steps": (1, 1000),
        "batch_size": (1, 10**6),
        "epochs": (1, 10**6),
        "learning_rate": (1e-30, 1e30),
        "seed": (0, 2**32 - 1),
    }
    for field in dataclasses.fields(Settings):
        value, allowed = getattr(settings, field.name), field.type.__name__
        ok = type(value) is field.type or (field.type is float and type(value) is int)
        if field.name in choices:
            allowed = f"one of {', '.join(map(str, choices[field.name]))}"
            ok = ok and value in choices[field.name]
        elif field.name in limits:
            least, most = limits[field.name]
            allowed += f" from {least} to {most}"
            ok = ok and least <= value <= most  # not so for NaN
        if not ok:
            raise ValueError(f"{field.name}: allowed is {allowed}; received {value!r}")
    if settings.fade and settings.activation not in ("GAAF_relu", "GAAF_tanh"):
        raise ValueError(
            f"fade: allowed with {settings.activation} is 0, as it has no acceleration; "
            f"received {settings.fade}"
        )
    block_and_count(settings.depth, None, BLOCKS[settings.version])
    require_source(settings.data)
    if not settings.output_dir:
        raise ValueError("output_dir: allowed is 'auto' or a path; received ''")
    require_same_run(settings)


def require_same_run(settings):
    """Raises ValueError if the directory holds a run that these settings do not go on with."""
    config = directory_of(settings) / "config.json"
    if settings.overwrite or not config.exists():
        return
    try:
        before = json.loads(config.read_text(encoding="utf-8"))["settings"]
        before = dataclasses.asdict(Settings()) | before  # it may be older than some setting
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"output_dir: {config} cannot be read ({error}); choose another directory, or replace "
            "what is in it with --overwrite"
        ) from error
    free = {"output_dir", "overwrite"}
    if settings.epochs > before["epochs"]:
        free.add("epochs")  # the run goes on for longer
    differing = ", ".join(
        f"{name} {before[name]!r}, not {value!r}"
        for name, value in dataclasses.asdict(settings).items()
        if name not in free and before[name] != value
    )
    if differing:
        raise ValueError(
            f"output_dir: '{config.parent}' holds a run with {differing}; choose another "
            "directory, or replace that run with --overwrite"
        )


def directory_of(settings):
    """The directory of the run; two runs have the same one if all their settings are the same."""
    if settings.output_dir != "auto":
        return Path(settings.output_dir)
    data = Path(settings.data).name.split(".")[0]
    same = dataclasses.replace(settings, overwrite=False)
    digest = hashlib.sha256(repr(same).encode()).hexdigest()[:6]
    network = f"resnet{settings.depth}_v{settings.version}-{settings.activation}"
    return Path("runs") / f"{data}-{network}-{settings.epochs}epochs-{digest}"


def build_network(settings):
    """Returns the ResNet of the settings, from normalised images to class probabilities."""
    import gaaf
    from data import IMAGE_SHAPE, NUM_CLASSES
    from resnet_v1 import resnet_v1
    from resnet_v2 import resnet_v2

    activation = gaaf.get(settings.activation)
    if activation in (gaaf.GAAF_relu, gaaf.GAAF_tanh):
        activation = gaaf.GAAF(
            activation=settings.activation.removeprefix("GAAF_"),
            shift=settings.shift,
            slope=settings.slope,
            frequency=settings.frequency,
            wave=None if settings.wave == "none" else settings.wave,
            shape=None if settings.shape == "none" else settings.shape,
        )
    resnet = {1: resnet_v1, 2: resnet_v2}[settings.version]
    with dtype_policy(settings.precision):
        return resnet(IMAGE_SHAPE, settings.depth, NUM_CLASSES, activation)


@contextlib.contextmanager
def dtype_policy(name):
    """Sets Keras' dtype policy for a while."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_model(settings, network, data):
    """Returns the model to train and to save: it takes raw images, and normalises them itself."""
    import keras

    import fast

    mean = data.x_train.mean(axis=0, dtype="float64") if settings.subtract_pixel_mean else 0.0
    with dtype_policy(settings.precision):  # which tells Keras to scale the loss of float16
        model = keras.Sequential(
            [
                keras.Input(data.x_train.shape[1:], dtype="uint8", name="raw_image"),
                keras.layers.Rescaling(1 / 255, -mean / 255, dtype="float32", name="normalization"),
                network,
            ],
            name=f"{network.name}_of_raw_images",
        )
    model.compile(
        optimizer=keras.optimizers.Adam(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=fast.way().jit_compile,
    )
    model.optimizer.build(model.trainable_variables)  # a checkpoint's state has where to go
    fast.accelerate(model, network)
    return model


def learning_rate_at(epoch, settings):
    """The learning rate of an epoch, counted from 0; it falls after 80, 120, 160, 180 of 200."""
    for mark, factor in ((180, 5e-4), (160, 1e-3), (120, 1e-2), (80, 1e-1)):
        if epoch * 200 >= mark * settings.epochs:
            return settings.learning_rate * factor
    return settings.learning_rate


def strength_at(epoch, settings):
    """The strength of GAAF in an epoch, counted from 0; from 1 down to 0 where it is to fade."""
    if not settings.fade:
        return 1.0
    end = round(settings.fade * settings.epochs, 9)  # in floats, 0.07 · 100 is more than 7
    if epoch >= end:
        return 0.0
    return 1 - math.floor(epoch * settings.fade_steps / end) / settings.fade_steps


def fit(settings, model, data):
    """Trains a compiled model, from its last checkpoint on, keeps the run's files, and reports."""
    import devices
    import runs

    if devices.process()[0] > 0:
        return fit_with_the_first_process(settings, model, data)
    directory = directory_of(settings)
    with runs.locked(directory), runs.StopOnSignal() as signals, devices.parallel():
        if settings.overwrite:
            runs.remove_run(directory)
        config = describe(settings, model, data)
        announce(config, directory)
        rows = runs.Checkpoints(directory).restore(model)
        if rows:
            print(f"Going on after epoch {len(rows)} of {settings.epochs}", flush=True)
        runs.write_config(directory, config)
        history = model.fit(
            **what_to_fit(settings, data, epoch=len(rows)),
            callbacks=[
                *schedules(settings),
                signals,
                runs.StopOnNotFinite(),
                runs.RunFiles(directory, settings.activation, rows),
                *histograms(settings, data),
            ],
            verbose=1 if sys.stdout.isatty() else 2,  # in a file, the bar would be a line per step
        )
    last, best = rows[-1], runs.best_of(rows)
    print(
        f"Test accuracy: {last['val_accuracy']:.4f} in the last epoch, {last['epoch']}; "
        f"{best['val_accuracy']:.4f} in the best, {best['epoch']}\n"
        f"Written to {directory}: {', '.join(runs.written(directory))}"
    )
    return history


def fit_with_the_first_process(settings, model, data):
    """Trains along, in a process other than the first one, which alone writes files and reports."""
    import devices
    import runs

    with devices.parallel():
        directory = directory_of(settings)
        rows = [] if settings.overwrite else runs.Checkpoints(directory).restore(model)
        given = what_to_fit(settings, data, epoch=len(rows))
        return model.fit(**given, callbacks=schedules(settings), verbose=0)


def what_to_fit(settings, data, epoch):
    """What `fit` is to train on from an epoch on, counted from 0, and to test on."""
    import devices
    from batches import share

    ours = share(len(data.x_test), devices.process())
    # A batch that the devices cannot share is given to all of them; so must all others be then.
    uneven = len(data.x_test) % devices.count() > 0
    return {
        **training_batches(settings, data, epoch),
        "initial_epoch": epoch,
        "epochs": settings.epochs,
        "validation_data": (data.x_test[ours], data.y_test[ours]),
        "validation_batch_size": settings.batch_size // devices.process()[1] - uneven,
    }


def schedules(settings):
    """The callbacks that change what is trained from epoch to epoch."""
    import keras

    rate = keras.callbacks.LearningRateScheduler(lambda epoch: learning_rate_at(epoch, settings))
    return [rate, fader(settings)] if settings.fade else [rate]


def histograms(settings, data):
    """The callback that writes histograms of the activations' gradients, if they are asked for."""
    import runs

    if not settings.gradient_histograms:
        return []
    return [runs.GradientHistograms(directory_of(settings), data.x_train[:16])]


def fader(settings):
    """The callback that weakens the activation of the network as the settings say.

    Adam begins anew each time, as gradients may be 1e5 times smaller afterwards: with what it
    remembers of their squares, it would hardly move for many epochs.
    """
    import keras

    import fast

    def weaken(epoch, logs=None):
        model = callback.model
        activation = model.layers[-1].get_layer("stem_act").activation  # all layers share it
        strength = strength_at(epoch, settings)
        if activation.strength != strength:
            activation.strength = strength
            fast.retrace(model)
        if epoch and strength != strength_at(epoch - 1, settings):
            adam = fast.inner_optimizer(model)
            for variable in (adam.iterations, *adam._momentums, *adam._velocities):
                variable.assign(keras.ops.zeros(variable.shape, variable.dtype))

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=weaken)
    return callback


def training_batches(settings, data, first_epoch=0):
    """Returns what `fit` is to train on; the images lie on the device where that is faster."""
    import keras

    import devices
    import fast
    from batches import batches, images_of_an_epoch

    images, n = data.x_train, devices.count()
    used = images_of_an_epoch(len(images), settings.batch_size, n)
    if fast.way().images_on_device:
        images = keras.ops.convert_to_tensor(images)
    drawn = functools.partial(
        batches,
        images,
        data.y_train,
        settings.batch_size,
        settings.data_augmentation,
        settings.seed,
        first_epoch,
        n,
        devices.process(),
    )
    return {
        "x": devices.dataset(drawn, images, data.y_train),
        "steps_per_epoch": -(-used // settings.batch_size),
        "shuffle": False,  # that is done
    }


def describe(settings, model, data):
    """Returns all that config.json says of a run."""
    import keras

    import devices
    import fast

    network = model.layers[-1]
    activation = network.get_layer("stem_act").activation
    parameters = activation.get_config() if hasattr(activation, "get_config") else {}
    parameters.pop("name", None)
    backend = keras.backend.backend()
    return {
        "settings": dataclasses.asdict(settings),
        "network": {"name": network.name, "parameters": network.count_params()},
        "activation": {"name": settings.activation} | parameters,
        "images": {"training": len(data.x_train), "test": len(data.x_test)},
        "device": devices.kind(),
        "devices": devices.count(),
        "way": fast.way().words,
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            backend: sys.modules[backend].__version__,
            "numpy": sys.modules["numpy"].__version__,
        },
    }


def announce(config, directory):
    """Prints what is about to happen."""
    import fast

    settings, activation = config["settings"], config["activation"]
    parameters = {k: v for k, v in activation.items() if k not in ("name", "activation")}
    advice = ""
    if config["device"] == "CPU" and "tensorflow" in config["versions"]:
        advice = "; on a machine with an NVIDIA GPU: pip install 'tensorflow[and-cuda]'"
    device = config["device"]
    if config["devices"] > 1:
        device = f"{config['devices']} × {device}, which share each batch"
    faster = fast.bfloat16_wins() and settings["precision"] == "float32"
    rows = {
        "network": "{name}, {parameters:,} parameters".format(**config["network"]),
        "activation": ", ".join([activation["name"], *(f"{k} {v}" for k, v in parameters.items())]),
        "data": "{data}, {training:,} training and {test:,} test images".format(
            **settings, **config["images"]
        ),
        "augmentation": "flips and shifts" if settings["data_augmentation"] else "none",
        "training": "{epochs} epochs, batch size {batch_size}, Adam from {learning_rate:g}, "
        "{precision}, seed {seed}".format(**settings)
        + "; this CPU is faster with --precision mixed_bfloat16" * faster,
        "device": device + advice,
        "way": config["way"],
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        "results": str(directory),
    }
    print("\n".join(f"{name:<13} {text}" for name, text in rows.items()), flush=True)


def parse(arguments=None):
    """Returns what the command line asks for; ends the program on a mistake in it.

    That is the settings, and the path and the data, or None, of what is to be evaluated, or None.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message):  # without the long usage that argparse puts before it
            self.exit(2, f"{self.prog}: error: {message}\n")

    parser = Parser(
        prog="main.py",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(Settings):
        kind = (
            {"action": argparse.BooleanOptionalAction}
            if field.type is bool
            else {"type": field.type, "metavar": field.type.__name__.upper()}
        )
        flag = "--" + field.name.replace("_", "-")
        help_text = comments()[field.name].replace("%", "%%")
        parser.add_argument(flag, default=field.default, help=help_text, **kind)
    parser.add_argument(
        "--evaluate",
        metavar="PATH",
        help="train nothing; test the model of this run, or .keras file, on its data or on --data",
    )
    given = vars(parser.parse_args(arguments, argparse.Namespace(data=None)))
    path, data = given.pop("evaluate"), given.pop("data")
    if data is not None:
        given["data"] = data
    return Settings(**given), (path, data) if path is not None else None


def comments():
    """The comment beside each setting."""
    return dict(re.findall(r"^    (\w+): .* = .*?  # (.+)$", inspect.getsource(Settings), re.M))


def main(arguments=None):
    settings, evaluated = parse(arguments)
    try:
        if evaluated:
            start_keras()
            from evaluate import evaluate

            evaluate(*evaluated)
            return
        prepared = prepare(settings)
    except (ValueError, TypeError) as error:
        stop(2, f"error: {error}")
    except KeyboardInterrupt:
        stop(130, "stopped before the training began")
    import runs

    ending = None  # told when the error is forgotten, and with it what TensorFlow still holds
    try:
        fit(settings, *prepared)
    except runs.InUse as error:
        ending = 2, f"error: {error}"
    except runs.NotFinite as error:
        ending = 3, f"error: {error}; {cause(settings)}; {saved(settings)}"
    except runs.Interrupted as interrupted:
        code = 128 + interrupted.number
        ending = code, f"stopped by {interrupted}; {saved(settings)}; {again(settings)}"
    except OSError as error:
        reason = f"cannot write {error.filename}: {error.strerror or error}"
        ending = 1, f"error: {reason}; {saved(settings)}; {again(settings)}"
    if ending:
        stop(*ending)


def cause(settings):
    """Says what most likely made the loss NaN or infinite."""
    rate = f"most likely the learning rate, {settings.learning_rate:g}, is too high"
    if not settings.activation.startswith("GAAF_"):
        return rate
    return f"{rate}, or the network too deep for GAAF, which doubles gradients at each activation"


def saved(settings):
    """Says what a run that has ended early has left."""
    from runs import Checkpoints

    directory = directory_of(settings)
    epoch = Checkpoints(directory).latest_epoch()
    return f"the state after epoch {epoch} is in {directory}" if epoch else "no epoch was completed"


def again(settings):
    """Says how to go on."""
    return "to go on, run the same command again" + ", without --overwrite" * settings.overwrite


def stop(code, message):
    """Ends the program with one line."""
    print(f"main.py: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        # At once: TensorFlow may take five seconds to end its threads. All files are whole.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
