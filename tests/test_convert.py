"""GAAF in other people's models: put in by to_gaaf, taken out by to_plain."""

import dataclasses
import shutil
import warnings

import keras
import numpy as np
import pytest
from backends import BACKEND, derivatives, once, to_numpy
from keras import layers, ops
from processes import python

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
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # all is replaced, and compared
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
    [
        pytest.param(name, marks=once if name == "VGG16" else pytest.mark.slow)
        for name in APPLICATIONS
    ],
)
def test_keras_applications(name):
    size, count = APPLICATIONS[name]
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(size, size, 3), classes=10)
    rng = np.random.default_rng(0)
    for x in model.weights:
        if x.path.endswith(("moving_mean", "moving_variance")):
            x.assign(rng.uniform(0.5, 2, x.shape))
    for x in model.layers:
        if isinstance(x, layers.Normalization):
            x.adapt(rng.normal(2, 3, (8, size, size, 3)))
    require_back_and_forth(model, count)


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
    keras.utils.set_random_seed(0)
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
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")  # but the model computes in float32
    try:
        copy, _ = gaaf.to_gaaf(model)
    finally:
        keras.config.set_dtype_policy(before)
    large = np.full((1, 50), -1e6, "float32")
    np.testing.assert_allclose(to_numpy(copy(large)), to_numpy(model(large)), rtol=1e-6)
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
    assert [x.activation.__name__ for x in plain.layers[1:]] == ["tanh", "tanh", "elu"]


@pytest.mark.parametrize("phi", ["silu", "hard_silu", "mish", "linear"])
def test_a_phi_that_is_no_operation_of_keras_comes_out_of_a_graph(phi):
    inputs = keras.Input((4,))
    y = gaaf.GAAF(phi, shape="gaussian", name="gaaf")(layers.Dense(4)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(y))
    plain, replaced = gaaf.to_plain(model)
    assert replaced == 1 and "gaaf>" not in plain.to_json()
    require_same_names_and_weights(model, plain)
    require_close([model, plain], atol=1e-3)


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


def converted(function, model, **arguments):
    """The copy, the number of activations replaced, and what the warning says."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        copy, replaced = function(model, **arguments)
    said = [
        str(x.message)
        for x in said
        if "left as" in str(x.message) or "not compared" in str(x.message)
    ]
    assert len(said) <= 1
    return copy, replaced, "".join(said)


def test_a_layer_of_ones_own_with_the_activation_in_its_config():
    model = keras.Sequential([keras.Input((4,)), Named(name="mine")])
    copy, replaced, said = converted(gaaf.to_gaaf, model)
    assert replaced == 1 and "mine (Named)" in said  # there may be more in its code
    plain, replaced, said = converted(gaaf.to_plain, copy)
    assert replaced == 1 and "mine (Named)" in said and "gaaf>" not in plain.to_json()
    require_close([model, plain], atol=0)
    require_close([model, copy], atol=1e-3)


def relu(x):
    return 2 * ops.maximum(x, 0)


def my_relu(x):
    return ops.relu(x)


class InCall(keras.Model):
    def call(self, x):
        return ops.relu(x)


class LayerOfItsOwn(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(2, activation="relu", name="hidden")

    def call(self, x):
        return self.inner(x)


class ThroughGaaf(keras.layers.Layer):
    def call(self, x):
        return gaaf.GAAF_relu(x)


@pytest.mark.parametrize(
    "layer, named",
    [
        (InCall, "mine (InCall)"),
        (LayerOfItsOwn, "mine (LayerOfItsOwn)"),
        (ThroughGaaf, "mine (ThroughGaaf)"),
        (lambda name: layers.Lambda(lambda x: ops.relu(x), name=name), "mine (<lambda>)"),
        (lambda name: layers.Lambda(my_relu, name=name), "mine (my_relu)"),
        (lambda name: layers.Dense(2, activation=my_relu, name=name), "mine (my_relu)"),
        (lambda name: layers.Dense(2, activation=relu, name=name), "mine (relu)"),
        (lambda name: layers.Dense(2, activation=lambda x: x * x, name=name), "mine (<lambda>)"),
        (lambda name: layers.LSTM(2, activation=relu, name=name), "mine (relu)"),
    ],
)
def test_what_is_not_of_keras_is_left_and_named(layer, named):
    layer = layer(name="mine")
    recurrent = isinstance(layer, layers.LSTM)
    inputs = keras.Input((3, 2) if recurrent else (2,))
    model = keras.Sequential([inputs, layers.Dense(2, "relu"), layer])
    copy, replaced, said = converted(gaaf.to_gaaf, model)
    assert replaced == 1 and named in said and "\n" not in said
    plain, replaced, said = converted(gaaf.to_plain, copy)
    assert replaced == 1 and named in said
    require_close([model, plain], atol=0)
    for name in ("activation", "function"):
        assert getattr(plain.layers[-1], name, None) is getattr(layer, name, None)


def test_what_gaaf_does_not_take_stays_as_it_was_and_is_named():
    """Shape "bsilu" is for relu alone."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, activation="tanh", name="first"),
            layers.ReLU(6, name="second"),
            layers.Dense(4, activation="relu", name="third"),
        ]
    )
    with pytest.warns(UserWarning, match=r"1 activations .* are: first \(tanh\), second \(ReLU\)$"):
        copy, replaced = gaaf.to_gaaf(model, shape="bsilu", wave=None)
    assert replaced == 1 and isinstance(copy.get_layer("third").activation, gaaf.GAAF)
    assert copy.get_layer("first").activation is keras.activations.tanh
    assert isinstance(copy.get_layer("second"), layers.ReLU)
    x = np.linspace(-9, 9, 40).reshape(10, 4)
    np.testing.assert_allclose(copy.predict(x, verbose=0), model.predict(x, verbose=0))


def test_what_is_computed_of_integers_stays_as_it_was_and_is_named():
    x = keras.Input((4,), dtype="int32")
    first, second = layers.ReLU(name="first")(x), layers.Activation("relu", name="second")(x)
    y = layers.Dense(3, activation="relu")(ops.cast(ops.relu(x), "float32"))
    copy, replaced, said = converted(gaaf.to_gaaf, keras.Model(x, [first, second, y]))
    assert replaced == 1 and isinstance(copy.layers[-1].activation, gaaf.GAAF)
    left = set(said.partition("left as they are: ")[2].split(", "))
    assert {"first (ReLU)", "second (relu)"} < left and len(left) == 3
    assert isinstance(copy.get_layer("first"), layers.ReLU)
    assert copy.get_layer("second").activation is keras.activations.relu


def test_functions_of_keras_count_wherever_they_come_from():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation=ops.relu)])
    model.add(layers.Activation(ops.tanh))
    model.add(layers.Lambda(ops.relu6))
    require_back_and_forth(model, 3)


def test_a_tanh_inside_a_layer_of_keras_is_named():
    inputs = keras.Input((3, 2))
    for layer in (layers.AdditiveAttention(), layers.Attention(score_mode="concat")):
        model = keras.Model(inputs, layer([inputs, inputs]))
        _, replaced, said = converted(gaaf.to_gaaf, model)
        assert replaced == 0 and f"{layer.name} ({type(layer).__name__})" in said
    require_back_and_forth(keras.Model(inputs, layers.Attention()([inputs, inputs])), 0)
    require_back_and_forth(keras.Model(inputs, layers.MultiHeadAttention(2, 2)(inputs, inputs)), 0)


def test_adapted_state_comes_along():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(50, 20, (100, 4)).astype("float32"))
    model = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(4, "relu")])
    require_back_and_forth(model, 1)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="strings are TensorFlow's")
def test_vocabularies_come_along():
    vectorize, lookup = layers.TextVectorization(), layers.StringLookup()
    vectorize.adapt(["a few words", "and more words"])
    lookup.adapt(["x", "y"])
    text, kind = keras.Input((1,), dtype="string"), keras.Input((3,), dtype="string")
    x = layers.Embedding(20, 4)(vectorize(text)) + layers.Embedding(5, 4)(lookup(kind))
    model = keras.Model([text, kind], layers.Dense(3, "relu")(x))
    copy, replaced, said = converted(gaaf.to_gaaf, model)
    assert replaced == 1 and "not compared" in said
    plain, _, _ = converted(gaaf.to_plain, copy)
    inputs = [
        ops.convert_to_tensor([["more words here"]]),
        ops.convert_to_tensor([["y", "x", "z"]]),
    ]
    np.testing.assert_array_equal(plain(inputs), model(inputs))


def test_preprocessing_keeps_its_seeds():
    x = keras.Input((8, 8, 3))
    y = layers.Dropout(0.5, seed=3)(layers.RandomFlip(seed=7)(layers.Rescaling(1 / 9, 2)(x)))
    model = keras.Model(x, layers.ReLU()(y))
    plain = gaaf.to_plain(gaaf.to_gaaf(model)[0])[0]
    data = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    expected = to_numpy(model(data, training=True))
    np.testing.assert_array_equal(to_numpy(plain(data, training=True)), expected)


@once
@pytest.mark.parametrize("rnn", [layers.LSTM, layers.GRU])
def test_masks_are_passed_on_as_before(rnn):
    x = keras.Input((6,), dtype="int32")
    embedded = layers.Embedding(10, 4, mask_zero=True)(x)
    for y in (ops.tanh(embedded), layers.Activation("tanh")(embedded), layers.ReLU()(embedded)):
        model = keras.Model(x, rnn(3, stateful=False)(y))
        copy = require_back_and_forth(model, 2)
        tokens = np.array([[1, 2, 0, 3, 0, 0], [4, 0, 0, 0, 0, 5]])
        np.testing.assert_allclose(to_numpy(copy(tokens)), to_numpy(model(tokens)), atol=1e-3)


def test_states_are_as_before_the_comparison():
    model = keras.Sequential([keras.Input((3, 2), batch_size=2), layers.LSTM(3, stateful=True)])
    gaaf.to_gaaf(model)
    for x in model.layers[0].states:
        assert not to_numpy(x).any()


def test_a_layer_used_more_than_once():
    twice, dense = layers.Activation("relu"), layers.Dense(4, "tanh")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), twice, layers.Dense(4), twice])
    copy = require_back_and_forth(model, 1)
    assert len(copy.layers) == 4 and copy.layers[1] is copy.layers[3]
    inner = [keras.Sequential([keras.Input((4,)), dense]) for _ in range(2)]
    copy = require_back_and_forth(keras.Sequential([keras.Input((4,)), *inner, model]), 2)
    assert copy.layers[0].layers[0] is copy.layers[1].layers[0]
    x = keras.Input((4,))
    require_back_and_forth(keras.Model(x, twice(dense(twice(dense(x))))), 2)


@pytest.mark.parametrize("kind", [layers.ReLU, layers.Dropout])
@pytest.mark.parametrize("inner", ["once", "twice", "Sequential"])
def test_a_layer_without_weights_that_two_models_have(kind, inner):
    """Keras loads it as two layers. It cannot load three."""
    shared = kind() if kind is layers.ReLU else kind(0.5)
    if inner == "Sequential":
        first = keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh"), shared])
    else:
        x = keras.Input((4,))
        y = shared(x) if inner == "twice" else x
        first = keras.Model(x, shared(layers.Dense(4, "tanh")(y)))
    x = keras.Input((4,))
    model = keras.Model(x, shared(first(x)))
    with_gaaf, replaced = gaaf.to_gaaf(model)
    plain, taken_out = gaaf.to_plain(with_gaaf)
    assert (replaced, taken_out) == ((2, 3) if kind is layers.ReLU else (1, 1))
    require_close([model, plain], atol=0)
    require_close([model, with_gaaf], atol=1e-3)


class Sampling(layers.Layer):
    """The layer of Keras' own example of a variational autoencoder."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise


def test_what_draws_random_numbers_is_compared_with_the_same_ones():
    x = keras.Input((4,))
    y = layers.Dense(4, "relu")(x)
    y = Sampling()([layers.Dense(2)(y), layers.Dense(2)(y)])
    model = keras.Model(x, layers.Dense(1)(y))
    model.predict(np.ones((2, 4)), verbose=0)  # the state of the generator moves on
    with pytest.warns(UserWarning, match=r"1 .* batch differ by .*: sampling.*\(Sampling\)"):
        _, replaced = gaaf.to_gaaf(model)
    assert replaced == 1


def test_the_layer_that_differs_is_named_after_one_that_keras_has_renamed(monkeypatch):
    def changed(converter, model):
        copy = copy_of(converter, model)
        copy.trainable_variables[-2].assign_add(1 + copy.trainable_variables[-2])
        return copy

    copy_of = gaaf._Converter.copy_of
    monkeypatch.setattr(gaaf._Converter, "copy_of", changed)
    x = keras.Input((4,))
    y = Sampling()([layers.Dense(4, "relu")(x), layers.Dense(4)(x)])
    with pytest.raises(ValueError, match="the first layer whose output differs is 'last'"):
        gaaf.to_gaaf(keras.Model(x, layers.Dense(3, name="last")(y)))


def test_dictionaries_lists_and_models_in_models():
    a, b = keras.Input((4,), name="a"), keras.Input((None, 4), name="b")
    inner = keras.Model(a, [ops.relu(a), layers.Dense(2, "tanh")(a)], name="inner")
    first, second = inner(a)
    x = layers.Bidirectional(layers.GRU(2))(b)
    model = keras.Model({"a": a, "b": b}, {"y": [first, second], "x": ops.tanh(x)})
    copy, replaced = gaaf.to_gaaf(model)
    assert replaced == 5
    inputs = {"a": np.ones((2, 4), "float32"), "b": np.ones((2, 5, 4), "float32")}
    plain, _ = gaaf.to_plain(copy)
    for x, y in zip(*(keras.tree.flatten(m(inputs)) for m in (model, plain)), strict=True):
        np.testing.assert_array_equal(to_numpy(x), to_numpy(y))
    sequence = keras.Sequential([keras.Input((3, 4)), layers.TimeDistributed(inner_of_one())])
    require_back_and_forth(sequence, 2)


def inner_of_one():
    x = keras.Input((4,))
    return keras.Model(x, ops.relu(layers.Dense(3, "relu")(x)))


def quantised(mode):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu"), layers.Dense(8, "tanh")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.quantize(mode)
    return model


def test_a_float8_policy_is_refused():
    message = r"^model: allowed .* received 'seq[^\n]* copy has other weights, or in another order$"
    with pytest.raises(ValueError, match=message):
        gaaf.to_gaaf(quantised("float8"))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantised_layers(mode):
    keras.utils.set_random_seed(0)
    model = quantised(mode)
    copy = require_back_and_forth(model, 2, atol=0.05)  # 0.5/K may turn a rounding
    assert [x.dtype_policy.name for x in copy.layers] == [x.dtype_policy.name for x in model.layers]


def test_lora():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu"), layers.Dense(8, "tanh")])
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 8)))
    copy, replaced, said = converted(gaaf.to_gaaf, model)
    assert (replaced, said) == (2, "")
    require_close([model, copy], atol=1e-3)
    assert [x.trainable for x in copy.weights] == [x.trainable for x in model.weights]


def test_what_is_trainable():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, "relu"), layers.Dense(4, "relu")])
    model.add(layers.BatchNormalization(trainable=False))
    model.layers[0].bias.trainable = False
    model.layers[1].trainable = False
    copy = require_back_and_forth(model, 2)
    assert [x.trainable for x in copy.layers] == [True, False, False]
    assert [x.name for x in copy.trainable_weights] == ["kernel"]


def test_a_copy_that_computes_something_else_is_refused(monkeypatch):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.ReLU(name="bad")])
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), inner, layers.Dense(2)])
    right = gaaf._replaceable_phi
    monkeypatch.setattr(gaaf, "_replaceable_phi", lambda x: right(x) and keras.activations.tanh)
    message = r"^model: allowed is .* the first layer whose output differs is 'bad'$"
    with pytest.raises(ValueError, match=message):
        gaaf.to_gaaf(model)
    assert gaaf.to_gaaf(model, check=False)[1] == 1


def test_so_is_a_plain_copy(monkeypatch):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, gaaf.GAAF_relu)])
    monkeypatch.setattr(gaaf, "relu", keras.activations.tanh)  # for which GAAF_relu is then taken
    with pytest.raises(ValueError, match=r"^model: allowed is .* output differs is 'dense"):
        gaaf.to_plain(model)
    assert gaaf.to_plain(model, check=False)[1] == 1


def test_compiled_with_functions_that_cannot_be_saved():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, "relu")])
    model.compile("adam", loss=lambda a, b: ops.mean(a - b), metrics=["mae"])
    model.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)
    copy = require_back_and_forth(model, 1)
    assert not copy.compiled


def test_what_keras_cannot_rebuild_is_refused():
    class NoConfig(keras.layers.Layer):
        def __init__(self, array):
            super().__init__()

        def call(self, x):
            return x

    unknown = keras.Sequential([keras.Input((2,)), NoConfig(object())], name="unknown")
    x, dense = keras.Input((2,)), layers.Dense(2, activation="relu")
    a, b = keras.Input((2,)), keras.Input((2,))
    y = keras.Model(a, dense(a))(keras.Model(b, dense(b))(x))
    for model in (unknown, keras.Model(x, y, name="sharing")):
        for function in (gaaf.to_gaaf, gaaf.to_plain):
            message = rf"^model: allowed is .* saved and loaded .* received '{model.name}' \("
            with pytest.raises(ValueError, match=message) as error:
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


def test_what_was_compared_is_logged(caplog):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu", name="hidden")])
    with caplog.at_level("INFO", logger="gaaf"):
        gaaf.to_gaaf(model)
        gaaf.to_gaaf(model, check=False)
    compared, not_compared = (record.getMessage() for record in caplog.records)
    assert (
        "1 activations replaced, with φ for GAAF, outputs of a random batch differ by 0e+00"
        in compared
    )
    assert not_compared.endswith("1 activations replaced, not compared")


@keras.saving.register_keras_serializable("test")
@dataclasses.dataclass  # whose objects have no hash
class Bell:
    width: float = 3.0

    def __call__(self, x):
        return ops.exp(-ops.square(x) / self.width)

    def get_config(self):
        return {"width": self.width}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_activations_without_a_hash_stay_and_lose_their_gaaf():
    own = gaaf.GAAF(Bell(), shape="gaussian")
    activations = [layers.Activation(x) for x in (Bell(2.0), "relu", own)]
    model = keras.Sequential([keras.Input((3,)), *activations])
    copy, replaced, said = converted(gaaf.to_gaaf, model)
    assert replaced == 1 and isinstance(copy.layers[1].activation, gaaf.GAAF)
    assert all(f"{layer.name} (Bell)" in said for layer in (activations[0], own))
    plain, replaced, said = converted(gaaf.to_plain, copy)
    assert replaced == 2 and f"{activations[0].name} (Bell)" in said
    assert [x.activation for x in plain.layers] == [Bell(2.0), keras.activations.relu, Bell()]


def test_weights_that_keras_has_numbered():
    """As of layers in Keras' own guide, which give their weights no names."""

    class Linear(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 3))
            self.b = self.add_weight(shape=(3,))

        def call(self, x):
            return x @ self.w + self.b

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, "relu")(Linear()(inputs)))
    with pytest.warns(UserWarning, match=r"left as they are: linear \(Linear\)"):
        copy, replaced = gaaf.to_gaaf(model)
    assert replaced == 1
    require_close([model, copy], atol=1e-3)


def test_a_regularizer_of_the_activity_stays():
    model = keras.Sequential([keras.Input((4,)), layers.ReLU(activity_regularizer="l2")])
    copy = require_back_and_forth(model, 1)
    for each in (model, copy):
        each(np.ones((2, 4), "float32"))
    np.testing.assert_allclose(float(copy.losses[0]), float(model.losses[0]), rtol=1e-3)


def test_the_dtype_of_a_phi_that_comes_back_as_a_layer():
    inputs = keras.Input((4,), dtype="float16")
    model = keras.Model(inputs, gaaf.GAAF("mish", shape="gaussian")(inputs))
    plain, _ = gaaf.to_plain(model)
    assert plain.output.dtype == model.output.dtype == "float16"


@keras.saving.register_keras_serializable("tests")
class Scaled:
    """An activation that is an object, and has one of somebody's own in it."""

    def __init__(self, activation):
        self.activation = activation

    def __call__(self, x):
        return 2 * self.activation(x)

    def get_config(self):
        return {"activation": keras.saving.serialize_keras_object(self.activation)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["activation"]))


@keras.saving.register_keras_serializable("tests")
def halved(x):
    return x / 2


def test_what_is_in_an_object_without_a_name_is_named_by_its_kind():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation=Scaled(halved))])
    with pytest.warns(UserWarning, match=r": dense.* \(Scaled\), Scaled \(halved"):
        copy, replaced = gaaf.to_gaaf(model)
    assert replaced == 0
    require_close([model, copy], atol=0)


def test_a_copy_of_the_module_in_somebodys_package(tmp_path):
    (tmp_path / "package").mkdir()
    shutil.copy(gaaf.__file__, tmp_path / "package")
    code = """if True:
        import keras
        from package import gaaf

        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu")])
        for function in (gaaf.to_gaaf, gaaf.to_plain):
            model, replaced = function(model)
            assert replaced == 1
    """
    done = python("-W", "error::UserWarning", "-c", code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(BACKEND != "jax", reason="of functions that JAX compiles")
def test_what_a_layer_compiles_itself_is_compared_uncompiled():
    """Else it would go on as it was compared: without GAAF."""
    import jax

    class Compiling(Named):
        def __init__(self, **others):
            super().__init__(**others)
            self.compiled = jax.jit(lambda x: self.activation(x))

        def call(self, x):
            return self.compiled(x)

        def get_config(self):
            activation = keras.activations.serialize(self.activation)
            return super().get_config() | {"activation": activation}

    model = keras.Sequential([keras.Input(batch_shape=(2, 4)), Compiling(name="compiling")])
    with pytest.warns(UserWarning, match="compiling"):
        copy, replaced = gaaf.to_gaaf(model, frequency=10, shape=None)
    assert replaced == 1
    x = np.array([[-1, -0.3, 0.5, 2]] * 2, "float32")
    np.testing.assert_array_equal(gaaf.gradient(copy, x), [[1, 1, 2, 2]] * 2)
    np.testing.assert_array_equal(gaaf.gradient(model, x), [[0, 0, 1, 1]] * 2)
