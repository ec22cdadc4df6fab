"""Why GAAF helps or does not: what reaches the layers, and what reaches the activations.

    python -m study.why --data PATH [--epochs 12]

Trains ResNet-20 v1 with each of the networks below. After every epoch it measures the mean absolute
gradient of each convolution's kernel, and at the end the inputs of the activations, on the same 512
training images; and once, the gradient of the first convolution of untrained networks of several
depths. It writes study/results/why.json, from which docs/make.py draws.
"""

import argparse
import json
from pathlib import Path

from training import console

console.prepare_environment()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import main  # noqa: E402
from study.rows import PAPER, PEAK, RELU  # noqa: E402
from training import Mistake, batches, devices, model  # noqa: E402
from training.data import load  # noqa: E402
from training.files import write_text  # noqa: E402
from training.learning_rate import LearningRate  # noqa: E402
from training.tensorboard import inputs_of_activations  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "why.json"
BY_DEPTH = {
    "relu": RELU,
    "GAAF_relu": {"gain": 1.0},
    "GAAF_relu, peak": {"gain": "peak"},
    "paper": PAPER,
    "paper, peak": PEAK,
    "bsilu": {"shape": "bsilu", "wave": "none", "gain": 1.0},
    "tanh": {"activation": "tanh"},
    "GAAF_tanh": {"activation": "GAAF_tanh", "gain": 1.0},
    "GAAF_tanh, peak": {"activation": "GAAF_tanh", "gain": "peak"},
}
NETWORKS = {
    "relu": RELU,
    "relu, dropout 0.2": RELU,
    "paper": PAPER,
    "paper, peak": PEAK,
}
DEPTHS = (20, 56, 110, 164)  # both versions have them
IMAGES = 512
EDGES = np.linspace(-6, 6, 121)  # of the histogram; what lies beyond counts in its end bins


def compiled(settings, data, dropout=0.0):
    """The model of main.py, compiled; with dropout after each activation if asked for."""
    keras.utils.set_random_seed(settings.seed)
    built = model.build(settings, data)
    if dropout:
        normalization, network = built.layers

        def call(layer, *arguments, **others):
            outputs = layer(*arguments, **others)
            return keras.layers.Dropout(dropout)(outputs) if "_act" in layer.name else outputs

        copy = keras.models.clone_model(network, call_function=call)
        images = keras.Input(data.image_shape, dtype="uint8")
        built = keras.Sequential([images, normalization, copy])
    built.compile(
        optimizer=model.optimizer(settings, built),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=devices.jit_compile(),
    )
    return built


def kernel_gradients(network, x, y):
    """{layer: mean absolute gradient} of the first convolution and of those in blocks, in order."""
    twin = keras.models.clone_model(network)
    twin.set_weights(network.get_weights())
    # After its first step at a rate of 1, SGD's momentum is the gradient with the other sign.
    sgd = keras.optimizers.SGD(1.0, momentum=0.5)
    twin.compile(sgd, "sparse_categorical_crossentropy", run_eagerly=True)
    twin.train_on_batch(x, y)
    momentums = [v for v in sgd.variables if v.path.endswith("momentum")]
    return {
        variable.path.split("/")[-2]: float(keras.ops.mean(keras.ops.abs(momentum)))
        for variable, momentum in zip(twin.trainable_variables, momentums, strict=True)
        if "_conv" in variable.path and variable.path.endswith("kernel")
    }


def stem_gradients(data, depths=DEPTHS):
    """{network: {depth: mean absolute gradient of the first convolution}}, before training."""
    found = {}
    for version in (1, 2):
        for name, given in BY_DEPTH.items():
            by_depth = found[f"{name}, v{version}"] = {}
            for depth in depths:
                network = compiled(main.Settings(version=version, depth=depth, **given), data)
                gradients = kernel_gradients(network, data.x_train[:32], data.y_train[:32])
                by_depth[depth] = next(iter(gradients.values()))
                keras.utils.clear_session()  # gives the memory back
    return found


def input_histogram(network, x):
    """The share of the inputs of all activations that falls between each two of `EDGES`."""
    look = inputs_of_activations(network.layers[-1])
    counts = np.zeros(len(EDGES) - 1)
    for inputs in look.predict(network.layers[0](x), batch_size=128, verbose=0).values():
        counts += np.histogram(np.clip(inputs, EDGES[0], EDGES[-1]), EDGES)[0]
    return (counts / counts.sum()).tolist()


def train(name, data, source, epochs):
    """Trains one network; returns what was measured."""
    settings = main.Settings(data=source, epochs=epochs, **NETWORKS[name])
    network = compiled(settings, data, dropout=0.2 if "dropout" in name else 0.0)
    x, y = data.x_train[:IMAGES], data.y_train[:IMAGES]
    gradients = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            gradients.append(kernel_gradients(self.model, x, y))

    callbacks = [LearningRate(settings, network.optimizer), Look()]
    given = batches.feed(settings, data)
    history = network.fit(**given, epochs=epochs, callbacks=callbacks, verbose=2).history
    return {
        "settings": NETWORKS[name],
        "gradients": gradients,
        "loss": history["loss"],
        "accuracy": history["accuracy"],
        "test_accuracy": history["val_accuracy"][-1],
        "penalty": float(sum(network.losses)),
        "inputs": input_histogram(network, x),
    }


def study(source, epochs, results=RESULTS):
    """Trains the networks that results does not hold yet, and puts them there.

    Raises:
        Mistake: if they hold those of other data or epochs, or there is no such data.
    """
    found = {"data": Path(source).stem, "epochs": epochs, "edges": EDGES.tolist(), "networks": {}}
    if results.exists():
        before = json.loads(results.read_text(encoding="utf-8"))
        if (before["data"], before["epochs"]) != (found["data"], epochs):
            raise Mistake(
                f"data, epochs: allowed while {results} is there are its {before['data']} and "
                f"{before['epochs']}; received {found['data']} and {epochs}"
            )
        found = before
    data = load(source)
    if "stem" not in found:
        print("Gradients by depth", flush=True)
        found["stem"] = stem_gradients(data)
        write_text(results, json.dumps(found, indent=1))
    for name in NETWORKS:
        if name not in found["networks"]:
            print(name, flush=True)
            found["networks"][name] = train(name, data, source, epochs)
            write_text(results, json.dumps(found, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as of main.py; default cifar10")
    parser.add_argument("--epochs", type=int, default=12, help="default 12")
    given = parser.parse_args()
    try:
        study(given.data, given.epochs)
    except Mistake as mistake:
        parser.error(str(mistake))
