"""What a run says of itself before and after the training, and what config.json says of it."""

import platform
import sys
import time

import keras

import gaaf
from training import devices
from training.checkpoints import Checkpoints, best_of
from training.console import say
from training.files import FILES, FOLDERS
from training.identity import identity_of
from training.model import activations_of


def describe(settings, model, data):
    """Returns all that config.json says of a run: what decides it, and what it ran on."""
    network = model.layers[-1]
    activation = activations_of(network)[0].activation
    return {
        **identity_of(settings, data, model.optimizer),
        "network": {"name": network.name, "parameters": network.count_params()},
        "activation": {"name": settings.activation} | parameters_of(activation),
        "images": {"training": len(data.x_train), "test": len(data.x_test)},
        "device": devices.kind(),
        "devices": devices.count(),
        "compiler": devices.in_words(),
        "versions": versions(),
    }


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
    """The parameters of a GAAF that count, but for φ; none of another one."""
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
    device = config["device"]
    if config["devices"] > 1:
        device = f"{config['devices']} × {device}, which share each batch"
    faster = devices.bfloat16_wins() and settings["precision"] == "float32"
    by, rate = config["optimizer"]["name"], config["optimizer"].get("learning_rate")
    rate = f"{rate:g}" if isinstance(rate, float) else "a schedule of its own"
    rows = {
        "network": "{name}, {parameters:,} parameters".format(**config["network"]),
        "activation": ", ".join([activation["name"], *parameters]),
        "data": "{data}, {training:,} training and {test:,} test images".format(
            **settings, **config["images"]
        ),
        "augmentation": "flips and shifts" if settings["data_augmentation"] else "none",
        "training": "{epochs} epochs, batch size {batch_size}, {by} from {rate}, schedule "
        "{schedule}, {precision}, seed {seed}".format(**settings, by=by, rate=rate)
        + "; this CPU is faster with --precision mixed_bfloat16" * faster,
        "device": device,
        "compiler": config["compiler"],
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        "results": str(directory),
    }
    if line := devices.unused_gpu():
        say(f"This machine has an NVIDIA GPU, but trains on its CPU; to use the GPU: {line}")
    for name, text in rows.items():
        say(f"{name:<13} {text}", indent=14)


def summarise(settings, directory, rows, trained):
    """Says what came out of how many epochs trained now, and where it lies."""
    last, best = rows[-1], best_of(rows)
    if not trained:
        ended = Checkpoints(directory).path(last["epoch"]).stat().st_mtime
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(ended))
        say(f"Nothing to train: this run ended on {day}; its result:")
    elif len(rows) < settings.epochs:
        say(f"Stopped by a callback after epoch {len(rows)} of {settings.epochs}")
    if "val_accuracy" in last:
        say(
            f"Test accuracy: {last['val_accuracy']:.4f} in the last epoch, {last['epoch']}; "
            f"{best['val_accuracy']:.4f} in the best, {best['epoch']}"
        )
    written = sorted(name for name in FILES + FOLDERS if (directory / name).exists())
    say(f"Written to {directory}: {', '.join(written)}")
