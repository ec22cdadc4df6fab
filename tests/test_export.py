"""Models leave Keras: SavedModel, ONNX and LiteRT, read back by what will run them there."""

import keras
import numpy as np
import pytest
from backends import BACKEND, once, to_numpy
from keras import layers

import gaaf
import main
from resnet_v1 import resnet_v1
from training.data import Data
from training.model import build

FORMATS = {
    "tensorflow": ["tf_saved_model", "onnx", "litert"],
    "jax": ["tf_saved_model", "onnx"],
    "torch": ["onnx"],
}
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype="uint8")


def served(path, form, x):
    """The predictions of an exported model."""
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return session.run(None, {session.get_inputs()[0].name: x})[0]
    if form == "litert":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(path)
        entry = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(entry, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry, x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    import tensorflow as tf

    model = tf.saved_model.load(path)
    return model.serve(x).numpy()


def resnet20():
    network = resnet_v1((32, 32, 3), 20, activation=gaaf.GAAF("relu", shift=0.5, slope=5))
    return of_raw_images(network)


def each_wave_and_shape():
    """With a wave that can be told from none."""
    activations = [gaaf.GAAF("relu", frequency=10), gaaf.GAAF("tanh", frequency=10)]
    activations += [gaaf.GAAF("elu", frequency=10, shape=None, gain="peak")]
    activations += [gaaf.GAAF("relu", frequency=10, wave="round", shape=keras.ops.cos)]
    activations += [gaaf.GAAF("elu", wave=None, shape=None), gaaf.GAAF_relu, gaaf.GAAF_tanh]
    hidden = [layers.Dense(8, activation=activation) for activation in activations]
    network = keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten(), *hidden])
    return of_raw_images(network)


def of_raw_images(network):
    images = keras.Input((32, 32, 3), dtype="uint8")
    return keras.Sequential([images, layers.Rescaling(1 / 255, dtype="float32"), network])


def as_main_trains_it():
    """With the normalisation that is the fastest here, after a step."""
    labels = np.arange(4)
    data = Data(IMAGES, labels, IMAGES, labels)
    model = build(main.Settings(depth=8), data)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.train_on_batch(IMAGES, labels)
    return model


@pytest.mark.parametrize("form", FORMATS[BACKEND])
@pytest.mark.parametrize(
    "made",
    [
        pytest.param(resnet20, marks=pytest.mark.slow),
        pytest.param(as_main_trains_it, marks=once),
        each_wave_and_shape,
    ],
)
def test_what_is_exported_predicts_the_same(made, form, tmp_path):
    if (BACKEND, form) == ("jax", "onnx"):
        pytest.importorskip("jax2onnx")
    model = made()
    given = {}
    if BACKEND == "torch":  # its exporter takes no open batch size
        given["input_signature"] = [keras.InputSpec(shape=IMAGES.shape, dtype="uint8")]
    predictions = []
    for kind, exported in (("gaaf", model), ("plain", gaaf.to_plain(model)[0])):
        path = str(tmp_path / (kind + {"litert": ".tflite", "onnx": ".onnx"}.get(form, "")))
        expected = to_numpy(exported(IMAGES))
        exported.export(path, format=form, verbose=False, **given)
        predictions.append(served(path, form, IMAGES))
        np.testing.assert_allclose(predictions[-1], expected, rtol=0, atol=3e-4)
    if made is each_wave_and_shape:
        assert np.abs(np.subtract(*predictions)).max() > 0.01
