"""GAAF in other people's models: put in by to_gaaf, taken out by to_plain."""

import keras
import numpy as np
import pytest
from backends import derivatives, once, to_numpy
from keras import layers, ops

import gaaf

APPLICATIONS = {  # image size, and how many relu the architecture has
    "MobileNetV2": (32, 35),
    "VGG16": (32, 15),
    "EfficientNetB0": (32, 0),  # all of it is swish and sigmoid
    "ResNet50V2": (32, 49),
    "DenseNet121": (32, 121),
    "InceptionV3": (75, 94),
}


def inputs_of(model):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(3, *x.shape[1:])).astype(x.dtype) for x in model.inputs]


def outputs_of(model):
    inputs = inputs_of(model)
    return [to_numpy(y) for y in keras.tree.flatten(model(inputs if inputs[1:] else inputs[0]))]


def require_close(models, atol):
    for first, *others in zip(*map(outputs_of, models), strict=True):
        for other in others:
            np.testing.assert_allclose(other, first, rtol=0, atol=atol)


def require_same_names_and_weights(model, copy):
    assert [x.name for x in copy.weights] == [x.name for x in model.weights]
    for a, b in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for x, y in ((model, copy), (copy, model)):
        assert {x.name for x in x.layers} <= {y.name for y in getattr(y, "operations", y.layers)}


def require_back_and_forth(model, count, atol=1e-3):
    """Puts GAAF in and takes it out again, checks both copies, and returns the one with GAAF."""
    with_gaaf, replaced = gaaf.to_gaaf(model, shift=0.5, slope=5)
    plain, replaced_back = gaaf.to_plain(with_gaaf)
    assert replaced == replaced_back == count
    assert ("gaaf>" in with_gaaf.to_json()) == (count > 0)
    assert "gaaf>" not in plain.to_json()
    for copy in (with_gaaf, plain):
        require_same_names_and_weights(model, copy)
    require_close([model, plain], atol=0)
    require_close([model, with_gaaf], atol)
    return with_gaaf


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[once] * (name != "VGG16")) for name in APPLICATIONS],
)
def test_keras_applications(name):
    size, count = APPLICATIONS[name]
    build = getattr(keras.applications, name)
    require_back_and_forth(build(weights=None, input_shape=(size, size, 3), classes=10), count)


def gradient_where_negative(model):
    """The derivative of the model's outputs by its one input, at −0.3, where that of relu is 0."""
    return derivatives(lambda x: ops.sum(model(x)), np.full((1, 1), -0.3), "float32")[0].item()


def each_way_to_apply(phi):
    """Yields models of one input that apply relu, relu6 or tanh in each way there is."""
    functions = {"relu": ops.relu, "relu6": ops.relu6, "tanh": ops.tanh}
    inputs = keras.Input((1,))
    yield keras.Sequential([inputs, layers.Activation(phi)])
    yield keras.Sequential([inputs, layers.Dense(1, phi, kernel_initializer="ones")])
    yield keras.Model(inputs, functions[phi](inputs))
    yield keras.Model(inputs, getattr(keras.activations, phi)(inputs))
    inner = keras.Sequential([keras.Input((1,)), layers.Activation(phi)])
    yield keras.Sequential([inputs, inner])
    if phi == "relu":
        yield keras.Sequential([inputs, layers.ReLU()])
    if phi == "relu6":
        yield keras.Sequential([inputs, layers.ReLU(6)])


@pytest.mark.parametrize("phi", ["relu", "relu6", "tanh"])
def test_the_gradient_is_that_of_gaaf_however_the_activation_is_applied(phi):
    plain_slope = 1 - np.tanh(-0.3) ** 2 if phi == "tanh" else 0
    for model in each_way_to_apply(phi):
        copy, replaced = gaaf.to_gaaf(model, shape=None)
        assert replaced == 1
        np.testing.assert_allclose(gradient_where_negative(copy), plain_slope + 1, rtol=1e-5)
        back, _ = gaaf.to_plain(copy)
        np.testing.assert_allclose(gradient_where_negative(back), plain_slope, rtol=1e-5)


def test_shared_layers_several_inputs_and_outputs_and_operations():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = layers.Dense(4, activation="relu", name="shared")
    y = ops.relu(layers.Dense(4, name="linear")(shared(a)) + shared(b))
    first = layers.Dense(2, activation="softmax", name="first")(y)
    second = keras.activations.tanh(layers.Dense(2, activation="swish", name="second")(y))
    copy = require_back_and_forth(keras.Model([a, b], {"first": first, "second": second}), 3)
    assert len(copy.weights) == 8
    assert copy.get_layer("second").activation is keras.activations.swish


def test_a_sequential_model_that_is_built_later():
    model = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(2)])
    copy, replaced = gaaf.to_gaaf(model)
    assert replaced == 1
    assert copy(np.ones((1, 3), "float32")).shape == (1, 2)
    assert isinstance(copy.layers[0].activation, gaaf.GAAF)


def test_models_inside_models_and_wrappers():
    inner = keras.Sequential([keras.Input((6, 4)), layers.Dense(4, "tanh"), layers.ReLU()])
    wrapped = layers.TimeDistributed(layers.Dense(3, activation="relu"))
    model = keras.Sequential([keras.Input((6, 4)), inner, wrapped, layers.Dense(2)])
    require_back_and_forth(model, 3)


@pytest.mark.parametrize(
    "layer, count",
    [
        (lambda: layers.LSTM(3), 1),
        (lambda: layers.GRU(3, return_sequences=True), 1),
        (lambda: layers.Bidirectional(layers.LSTM(3)), 2),
        (lambda: layers.RNN([layers.GRUCell(3), layers.SimpleRNNCell(3)]), 2),
        (lambda: layers.LSTM(3, recurrent_activation="relu", activation="relu"), 2),
    ],
)
def test_recurrent_layers(layer, count):
    copy = require_back_and_forth(keras.Sequential([keras.Input((5, 2)), layer()]), count)
    copy.compile("sgd", "mse")
    before = copy.get_weights()
    inputs = inputs_of(copy)[0]
    copy.fit(inputs, np.ones((3, *copy.output_shape[1:])), verbose=0)
    assert any((a != b).any() for a, b in zip(copy.get_weights(), before, strict=True))


def test_kinds_of_relu_layers():
    inputs = keras.Input((50,))
    model = keras.Sequential([inputs, layers.ReLU(3.0, negative_slope=0.1, threshold=0.5)])
    require_back_and_forth(model, 1)
    copy, replaced = gaaf.to_gaaf(keras.Sequential([inputs, layers.LeakyReLU(), layers.PReLU()]))
    assert (replaced, "gaaf>" in copy.to_json()) == (0, False)


def test_what_is_not_trained_and_half_precision_stay():
    inputs = keras.Input((4,), dtype="float16")
    y = layers.Dense(4, "relu", trainable=False, dtype="mixed_float16")(inputs)
    model = keras.Model(inputs, ops.relu(y - 1))
    for copy in (gaaf.to_gaaf(model)[0], gaaf.to_plain(gaaf.to_gaaf(model)[0])[0]):
        assert copy.layers[1].compute_dtype == "float16" and not copy.layers[1].trainable
        assert outputs_of(copy)[0].dtype == "float16"
    require_back_and_forth(model, 2)


def test_the_copy_is_saved_trained_and_the_model_left_alone(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu"), layers.ReLU(6)])
    model.compile("sgd", "mse")
    before, config = model.get_weights(), model.to_json()
    copy, _ = gaaf.to_gaaf(model, shift=2)
    copy.compile("sgd", "mse")
    copy.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.to_json() == config
    copy.save(tmp_path / "copy.keras")
    loaded = keras.saving.load_model(tmp_path / "copy.keras")
    require_close([copy, loaded], atol=0)
    assert loaded.layers[0].activation.shift == loaded.layers[1].activation.shift == 2


def test_gaaf_that_is_there_stays_and_its_functions_are_taken_out_too():
    own = gaaf.GAAF("elu", shape="gaussian")
    inputs = keras.Input((4,))
    y = gaaf.GAAF_relu(layers.Dense(4, activation=gaaf.GAAF_tanh)(inputs), shift=3)
    y = layers.Dense(4, activation=gaaf.GAAF(gaaf.GAAF("tanh"), shape=None))(y)
    model = keras.Model(inputs, layers.Dense(4, activation=own)(y))
    copy, replaced = gaaf.to_gaaf(model)
    assert replaced == 0 and copy.layers[-1].activation.get_config()["activation"] == "elu"
    plain, replaced = gaaf.to_plain(model)
    assert replaced == 4
    require_close([model, plain], atol=1e-3)
    assert "gaaf>" not in plain.to_json()
    names = [x.activation.__name__ for x in plain.layers[1:]]
    assert names == ["tanh", "relu", "tanh", "elu"]


class Named(keras.layers.Layer):
    """A layer of somebody's own whose config names its activation."""

    def __init__(self, activation="relu", **others):
        super().__init__(**others)
        self.activation = keras.activations.get(activation)

    def call(self, x):
        return self.activation(x)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return super().get_config() | {"activation": activation}


def test_a_layer_of_ones_own_with_the_activation_in_its_config():
    require_back_and_forth(keras.Sequential([keras.Input((4,)), Named()]), 1)


def helper(x):
    return keras.tree.map_structure(lambda y: keras.activations.get("relu")(y), x)


class InCall(keras.Model):
    def call(self, x):
        return ops.relu(x)


class InHelper(keras.layers.Layer):
    def call(self, x):
        return helper(x)


class InMethod(keras.layers.Layer):
    def call(self, x):
        return self.activate(x)

    def activate(self, x):
        return keras.activations.tanh(x)


class LayerOfItsOwn(keras.layers.Layer):
    def __init__(self, **others):
        super().__init__(**others)
        self.inner = layers.Dense(2, activation="relu", name="hidden")

    def call(self, x):
        return self.inner(x)


class ReLUOfItsOwn(LayerOfItsOwn):
    def __init__(self, **others):
        super().__init__(**others)
        self.inner = layers.ReLU(name="hidden")


class FunctionInAList(keras.layers.Layer):
    def __init__(self, **others):
        super().__init__(**others)
        self.functions = [keras.activations.tanh]

    def call(self, x):
        return self.functions[0](x)


class ThroughGaaf(keras.layers.Layer):
    def call(self, x):
        return gaaf.GAAF_relu(x)


@pytest.mark.parametrize(
    "layer, named",
    [
        (InCall, "mine (InCall), relu in its code"),
        (InHelper, "mine (InHelper), relu in its code"),
        (InMethod, "mine (InMethod), tanh in its code"),
        (LayerOfItsOwn, "hidden (Dense), its activation"),
        (ReLUOfItsOwn, "hidden (ReLU)"),
        (FunctionInAList, "(FunctionInAList), its functions"),
        (lambda name: layers.Lambda(helper, name=name), "mine (Lambda), relu in its code"),
    ],
)
def test_what_cannot_be_replaced_is_named(layer, named):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, "relu"), layer(name="mine")])
    with pytest.raises(ValueError, match=r"^model: allowed is relu and tanh") as error:
        gaaf.to_gaaf(model)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_tanh_inside_a_layer_of_keras_is_named():
    inputs = keras.Input((3, 2))
    for layer in (layers.AdditiveAttention(), layers.Attention(score_mode="concat")):
        with pytest.raises(ValueError, match=r"Attention\), tanh in its code"):
            gaaf.to_gaaf(keras.Model(inputs, layer([inputs, inputs])))
    _, replaced = gaaf.to_gaaf(keras.Model(inputs, layers.Attention()([inputs, inputs])))
    assert replaced == 0


def test_gaaf_in_the_code_of_a_layer_cannot_be_taken_out():
    model = keras.Sequential([keras.Input((2,)), ThroughGaaf(name="mine")])
    with pytest.raises(ValueError, match=r"^model: .* mine \(ThroughGaaf\), GAAF_relu in its code"):
        gaaf.to_plain(model)


def test_what_keras_cannot_rebuild_is_refused():
    class NoConfig(keras.layers.Layer):
        def __init__(self, array):
            super().__init__()

        def call(self, x):
            return x

    unknown = keras.Sequential([keras.Input((2,)), NoConfig(object())])
    dense = layers.Dense(2, activation="relu")
    twice = [keras.Sequential([keras.Input((2,)), dense]) for _ in range(2)]
    for model in (unknown, keras.Sequential([keras.Input((2,)), *twice])):
        for function in (gaaf.to_gaaf, gaaf.to_plain):
            with pytest.raises(
                ValueError, match=r"^model: .* can rebuild .* received 'seq"
            ) as error:
                function(model)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("function", [gaaf.to_gaaf, gaaf.to_plain])
def test_only_models_are_taken(function):
    with pytest.raises(TypeError, match=r"^model: allowed is a keras.Model; received Dense"):
        function(layers.Dense(2))


def test_wrong_parameters_are_refused_even_with_nothing_to_replace():
    with pytest.raises(ValueError, match=r"^wave: allowed is"):
        gaaf.to_gaaf(keras.Sequential([keras.Input((2,))]), wave="square")
    with pytest.raises(TypeError, match="frequenzy"):
        gaaf.to_gaaf(keras.Sequential([keras.Input((2,))]), frequenzy=3)
