"""Why GAAF helps or does not: what reaches the layers, and what reaches the activations.

    python why.py --data PATH [--epochs 20]

Trains ResNet-20 v1 with relu, with relu and dropout 0.2, and with two shapes of GAAF. After every
epoch it measures the mean absolute gradient of each convolution's kernel, and at the end the inputs
of the activations, on the same 512 training images; and once, the gradient of the first convolution
of untrained networks of several depths. It writes results/why.json, from which docs/make.py draws.
"""

import argparse
import itertools
import json
from pathlib import Path

import main
import runs

main.prepare_environment()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from data import load  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "why.json"
NETWORKS = {
    "relu": {"activation": "relu"},
    "relu, dropout 0.2": {"activation": "relu"},
    "GAAF_relu, slope 1, shift 4": {"shift": 4.0},
    "GAAF_relu, slope 5, shift 0.5": {"slope": 5.0, "shift": 0.5},
}
DEPTHS = (20, 56, 110, 164)  # both versions have them
IMAGES = 512
EDGES = np.linspace(-6, 6, 121)  # of the histogram; what lies beyond counts in its end bins


def with_dropout(network, rate=0.2):
    """A copy of a network with dropout after each activation, but its weights drawn anew."""

    def call(layer, *arguments, **others):
        outputs = layer(*arguments, **others)
        return keras.layers.Dropout(rate)(outputs) if "_act" in layer.name else outputs

    return keras.models.clone_model(network, call_function=call)


def loss_gradients(model, x, y):
    """The gradient of the loss, penalties included, of each trainable variable."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        return tape.gradient(loss, model.trainable_variables)
    if keras.backend.backend() == "torch":
        import torch

        loss = model.compute_loss(x, y, model(x, training=True))
        return torch.autograd.grad(loss, [v.value for v in model.trainable_variables])
    import jax

    def loss_of(trainable):
        outputs, _, losses = model.stateless_call(
            trainable, constant, x, training=True, return_losses=True
        )
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, outputs)) + sum(
            losses
        )

    constant = [v.value for v in model.non_trainable_variables]
    return jax.grad(loss_of)([v.value for v in model.trainable_variables])


def kernel_gradients(model, x, y):
    """{layer: mean absolute gradient} of each 3×3 convolution, from the first to the last."""
    statistics = [v.numpy() for v in model.non_trainable_variables]
    gradients = loss_gradients(model, x, y)
    for variable, value in zip(model.non_trainable_variables, statistics, strict=True):
        variable.assign(value)  # the look must not train the normalisations
    return {
        variable.path.split("/")[-2]: float(keras.ops.mean(keras.ops.abs(gradient)))
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
        if "_conv" in variable.path and variable.path.endswith("kernel")
    }


def stem_gradients(data, depths=DEPTHS):
    """{network: {depth: mean absolute gradient of the first convolution}}, before training."""
    found = {}
    for version, activation in itertools.product((1, 2), ("relu", "GAAF_relu")):
        by_depth = found[f"{activation}, v{version}"] = {}
        for depth in depths:
            settings = main.Settings(version=version, depth=depth, activation=activation)
            keras.utils.set_random_seed(settings.seed)
            model = main.build_model(settings, main.build_network(settings), data)
            gradients = kernel_gradients(model, data.x_train[:32], data.y_train[:32])
            by_depth[depth] = next(iter(gradients.values()))
    return found


def input_histogram(model, x):
    """The share of the inputs of all activations that falls between each two of `EDGES`."""
    look = runs.inputs_of_activations(model.layers[-1])
    counts = np.zeros(len(EDGES) - 1)
    for inputs in look.predict(model.layers[0](x), batch_size=128, verbose=0).values():
        counts += np.histogram(np.clip(inputs, EDGES[0], EDGES[-1]), EDGES)[0]
    return (counts / counts.sum()).tolist()


def train(name, data, source, epochs):
    """Trains one network; returns what was measured."""
    settings = main.Settings(data=source, epochs=epochs, **NETWORKS[name])
    keras.utils.set_random_seed(settings.seed)
    network = main.build_network(settings)
    model = main.build_model(
        settings, with_dropout(network) if "dropout" in name else network, data
    )
    x, y = data.x_train[:IMAGES], data.y_train[:IMAGES]
    gradients = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            gradients.append(kernel_gradients(self.model, x, y))

    batches = main.training_batches(settings, data)
    callbacks = [*main.schedules(settings), Look()]
    history = model.fit(**batches, epochs=epochs, callbacks=callbacks, verbose=2).history
    return {
        "settings": NETWORKS[name],
        "gradients": gradients,
        "loss": history["loss"],
        "accuracy": history["accuracy"],
        "test_accuracy": model.evaluate(data.x_test, data.y_test, verbose=0)[1],
        "inputs": input_histogram(model, x),
    }


def study(source, epochs, results=RESULTS):
    """Trains the networks that results does not hold yet, and puts them there."""
    data = load(source)
    found = {"data": Path(source).stem, "epochs": epochs, "edges": EDGES.tolist(), "networks": {}}
    if results.exists():
        before = json.loads(results.read_text(encoding="utf-8"))
        if (before["data"], before["epochs"]) == (found["data"], epochs):
            found = before
    if "stem" not in found:
        print("Gradients by depth", flush=True)
        found["stem"] = stem_gradients(data)
        runs.write_text(results, json.dumps(found, indent=1))
    for name in NETWORKS:
        if name not in found["networks"]:
            print(name, flush=True)
            found["networks"][name] = train(name, data, source, epochs)
            runs.write_text(results, json.dumps(found, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as of main.py; default cifar10")
    parser.add_argument("--epochs", type=int, default=20, help="default 20")
    given = parser.parse_args()
    study(given.data, given.epochs)
