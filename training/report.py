"""What a run prints before and after the training, and what config.json says."""

import os
import platform
import sys
import time

import keras

import gaaf
from training import devices
from training.checkpoints import Checkpoints, best_of
from training.console import say
from training.files import FILES, FOLDERS
from training.identity import config_in, sources_of
from training.model import activation_of

# Environment variables that change the numbers.
ENVIRONMENT = ("XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS")


def describe(settings, model, data, test=None):
    """What config.json says of a run for its reader, beside what tells the run from others."""
    images = {"training": len(data.x_train), "test": len(data.x_test)}
    if test:
        images |= {"validation": len(data.x_test), "test": len(test[0])}
    return {
        "network": {"name": model.name, "parameters": model.count_params()},
        "activation": {"name": settings.activation} | parameters_of(activation_of(settings)),
        "images": images,
    }


def stretches(config, settings, epochs):
    """What has trained a run, and what trains it now: an entry for each part, from start to stop.

    Args:
        config: The config.json of the run so far, or None.
        settings: Those of main.py.
        epochs: How many epochs are done.
    """
    before = config["stretches"] if config else []
    trained = [stretch for stretch in before if stretch["first_epoch"] <= epochs]
    now = {
        "first_epoch": epochs + 1,
        "device": devices.name(),
        "devices": devices.count(),
        "compiler": devices.compiler_in_words(),
        "versions": versions(),
        "environment": {name: os.environ.get(name, "") for name in ENVIRONMENT},
        "sources": sources_of(type(settings)),
    }
    if trained and trained[-1] | {"first_epoch": epochs + 1} == now:
        return trained
    return [*trained, now]


def versions():
    """{name: version} of what computes."""
    backend = keras.backend.backend()
    return {
        "python": platform.python_version(),
        "keras": keras.__version__,
        backend: sys.modules[backend].__version__,
        "numpy": sys.modules["numpy"].__version__,
    }


def parameters_of(activation):
    """The parameters of a GAAF that have an effect, without φ; none for another activation."""
    if not isinstance(activation, gaaf.GAAF):
        return {}
    ignored = {"name", "activation"}
    if activation.shape != "sigmoid":
        ignored |= {"shift", "slope"}
    if activation.wave is None:
        ignored |= {"frequency"}
    return {k: v for k, v in activation.get_config().items() if k not in ignored}


def announce(config, directory):
    """Says what is about to happen."""
    settings, activation = config["settings"], config["activation"]
    parameters = (f"{k} {v}" for k, v in activation.items() if k != "name")
    now = config["stretches"][-1]
    device = now["device"]
    if now["devices"] > 1:
        device = f"{now['devices']} × {device}, which share each batch"
    hint = ""
    if devices.bfloat16_wins() and settings["precision"] == "float32":
        hint = "; this CPU is faster with --precision mixed_bfloat16"
    by = optimizer_in_words(config["optimizer"], settings["schedule"])
    images = ", ".join(f"{n:,} {what} images" for what, n in config["images"].items())
    lines = {
        "network": "{name}, {parameters:,} parameters".format(**config["network"]),
        "activation": ", ".join([activation["name"], *parameters]),
        "data": f"{settings['data']}, {images}",
        "augmentation": "flips and shifts" if settings["data_augmentation"] else "none",
        "training": f"{settings['epochs']} epochs, batch size {settings['batch_size']}, "
        f"{by}, {settings['precision']}, seed {settings['seed']}{hint}",
        "device": device,
        "compiler": now["compiler"],
        "versions": ", ".join(f"{name} {version}" for name, version in now["versions"].items()),
        "results": str(directory),
    }
    if line := devices.unused_gpu():
        say(f"This machine has an NVIDIA GPU, but trains on its CPU; to use the GPU: {line}")
    for name, text in lines.items():
        say(f"{name:<13} {text}", indent=14)


def optimizer_in_words(optimizer, schedule):
    """The name, first learning rate and schedule of an optimizer, whose config is given."""
    name, rate = optimizer["name"], optimizer.get("learning_rate")
    if isinstance(rate, float):
        return f"{name} from {rate:g}, schedule {schedule}"
    if rate:  # a LearningRateSchedule or a function, of which Keras gives the class
        schedule = rate["class_name"]
    return f"{name}, schedule {schedule}"


def summarise(settings, directory, rows, trained):
    """Says what came out of how many epochs trained now, and where it lies."""
    if not rows:
        return
    last, best = rows[-1], best_of(rows)
    if not trained and len(rows) >= settings.epochs:
        ended = Checkpoints(directory).path(last["epoch"]).stat().st_mtime
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(ended))
        say(f"Nothing to train: this run ended on {day}; its result:")
    elif len(rows) < settings.epochs:
        say(f"Stopped after epoch {len(rows)} of {settings.epochs}")
    if "val_accuracy" in last:
        say(
            f"{'Validation' if settings.validation else 'Test'} accuracy: "
            f"{last['val_accuracy']:.4f} in the last epoch, {last['epoch']}; "
            f"{best['val_accuracy']:.4f} in the best, {best['epoch']}"
        )
    else:
        say(f"No metric has the name accuracy: epoch {best['epoch']} is the best, by val_loss")
    if tested := (config_in(directory) or {}).get("test_accuracy"):
        found = (f"{accuracy:.4f} of {name}" for name, accuracy in tested.items())
        say(f"Test accuracy: {', '.join(found)}")
    written = sorted(name for name in FILES + FOLDERS if (directory / name).exists())
    say(f"Written to {directory}: {', '.join(written)}")
