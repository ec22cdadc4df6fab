"""Trains a CIFAR-10 ResNet with gradient-accelerated activation functions (GAAF).

Edit the settings below and run `python main.py`, or give any of them as a flag.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import inspect
import os
import platform
import re
import sys
from pathlib import Path

from data import require_source
from depths import BLOCKS, block_and_count

# Keras, and with it TensorFlow, is imported where it is needed: --help and a wrong flag get their
# answer without that wait.


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
    output_dir: str = "auto"  # where the results go; auto: runs/<name from the settings>


def train(settings=Settings()):
    """Trains as the settings say, and writes the results to the output directory.

    Args:
        settings: `Settings`; `Settings(depth=56, activation="relu")` changes what it names.

    Returns:
        `keras.callbacks.History`.

    Raises:
        ValueError: if a setting or the data is wrong; nothing has been written then.
    """
    return fit(settings, *prepare(settings))


def prepare(settings):
    """Does all in which a mistake of the user can come to light; returns the model and the data."""
    check(settings)
    prepare_environment()
    import keras

    from data import load

    keras.utils.set_random_seed(settings.seed)
    print(f"Building ResNet-{settings.depth} v{settings.version} …", flush=True)
    network = build_network(settings)
    data = load(settings.data)
    model = build_model(settings, network, data)
    try:
        directory_of(settings).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir: the directory cannot be made: {error}") from error
    return model, data


def prepare_environment():
    """Sets what TensorFlow reads from the environment when it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's notes, not its errors
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        # A quarter off the time of the activations on an AVX-512 CPU.
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")


def check(settings):
    """Raises ValueError for a setting that is wrong whatever the network and the data."""
    choices = {
        "version": (1, 2),
        "wave": ("floor", "round", "none"),
        "shape": ("auto", "sigmoid", "gaussian", "none"),
        "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    }
    limits = {
        "depth": (1, 10**6),
        "shift": (-1e30, 1e30),
        "slope": (-1e30, 1e30),
        "frequency": (1e-30, 1e30),
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
    block_and_count(settings.depth, None, BLOCKS[settings.version])
    require_source(settings.data)
    if (directory_of(settings) / "config.json").exists():
        raise ValueError(
            "output_dir: allowed is a directory without a run in it; received "
            f"'{directory_of(settings)}', remove it or choose another with --output-dir"
        )


def directory_of(settings):
    """The directory of the run; two runs have the same one if all their settings are the same."""
    if settings.output_dir != "auto":
        return Path(settings.output_dir)
    data = Path(settings.data).name.split(".")[0]
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:6]
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
    fast.accelerate(model, network)
    return model


def learning_rate_at(epoch, settings):
    """The learning rate of an epoch, counted from 0; it falls after 80, 120, 160, 180 of 200."""
    for mark, factor in ((180, 5e-4), (160, 1e-3), (120, 1e-2), (80, 1e-1)):
        if epoch * 200 >= mark * settings.epochs:
            return settings.learning_rate * factor
    return settings.learning_rate


def fit(settings, model, data):
    """Trains a compiled model, keeps the run's files, and reports."""
    import keras

    from runs import RunFiles, write_config

    directory = directory_of(settings)
    config = describe(settings, model, data)
    write_config(directory, config)
    announce(config, directory)
    files = RunFiles(directory, label=settings.activation)
    history = model.fit(
        **training_batches(settings, data),
        epochs=settings.epochs,
        validation_data=(data.x_test, data.y_test),
        validation_batch_size=settings.batch_size,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda e: learning_rate_at(e, settings)),
            files,
        ],
        verbose=1 if sys.stdout.isatty() else 2,  # in a file, the bar would be a line per step
    )
    last, best = files.rows[-1], files.best
    print(
        f"Test accuracy: {last['val_accuracy']:.4f} in the last epoch, {last['epoch']}; "
        f"{best['val_accuracy']:.4f} in the best, {best['epoch']}\n"
        f"Written to {directory}: {', '.join(sorted(path.name for path in directory.iterdir()))}"
    )
    return history


def training_batches(settings, data):
    """Returns what `fit` is to train on; the images lie on the device where that is faster."""
    import keras

    import fast
    from batches import batches

    images = data.x_train
    if fast.way().images_on_device:
        images = keras.ops.convert_to_tensor(images)
    return {
        "x": batches(
            images, data.y_train, settings.batch_size, settings.data_augmentation, settings.seed
        ),
        "steps_per_epoch": -(-len(images) // settings.batch_size),
        "shuffle": False,  # that is done
    }


def describe(settings, model, data):
    """Returns all that config.json says of a run."""
    import keras

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
        "device": fast.device(),
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
        "device": config["device"] + advice,
        "way": config["way"],
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        "results": str(directory),
    }
    print("\n".join(f"{name:<13} {text}" for name, text in rows.items()), flush=True)


def parse(arguments=None):
    """Returns the settings that the command line asks for; ends the program on a mistake in it."""

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
    return Settings(**vars(parser.parse_args(arguments)))


def comments():
    """The comment beside each setting."""
    return dict(re.findall(r"^    (\w+): .* = .*?  # (.+)$", inspect.getsource(Settings), re.M))


def main(arguments=None):
    settings = parse(arguments)
    try:
        prepared = prepare(settings)
    except (ValueError, TypeError) as error:
        print(f"main.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    fit(settings, *prepared)


if __name__ == "__main__":
    main()
