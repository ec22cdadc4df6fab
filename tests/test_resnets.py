"""The two ResNets: size, structure, names, and the errors for what cannot be built."""

import inspect

import keras
import numpy as np
import pytest
from backends import once

import gaaf
from docs import make
from resnet_v1 import resnet_v1
from resnet_v2 import resnet_v2

SHAPE = (32, 32, 3)
SUPPORTED = [
    pytest.param(resnet, depth, marks=[once] * (depth > 100) + [pytest.mark.slow] * (depth > 200))
    for resnet, depths in zip((resnet_v1, resnet_v2), make.DEPTHS.values(), strict=True)
    for depth in depths
]


@once
@pytest.mark.parametrize(
    "resnet, depth, parameters",
    [
        (resnet_v1, 20, 274_442),
        (resnet_v1, 110, 1_742_762),
        (resnet_v2, 20, 574_090),
        (resnet_v2, 110, 3_323_210),
    ],
)
def test_parameter_counts(resnet, depth, parameters):
    assert resnet(SHAPE, depth).count_params() == parameters


@pytest.mark.parametrize("resnet, depth", SUPPORTED)
def test_each_network_is_as_the_page_has_it_and_uses_the_activation_everywhere(resnet, depth):
    activation = gaaf.GAAF("relu", shift=2)
    network = resnet(SHAPE, depth, activation=activation)
    page = (make.DOCS / "networks.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(make.network_row(network))} |\n" in page
    users = [x for x in network.layers if getattr(x, "activation", None) is activation]
    # One after the stem and one for each convolution of the blocks, with v2 having its last one
    # in place of that of its first block's first convolution.
    assert len(users) == depth - 1
    assert "stem_act" in [x.name for x in users]
    assert [x for x in network.layers if x.name.endswith("_act") or "_act" in x.name] == users
    # Beside convolutions' and additions' (linear) and the classifier's, no activation is left.
    for other in set(network.layers) - set(users):
        expected = {"softmax"} if other.name == "classifier" else {"linear"}
        assert {getattr(other, "activation", keras.activations.linear).__name__} == expected


@pytest.mark.parametrize("resnet, depth", [(resnet_v1, 20), (resnet_v1, 11), (resnet_v2, 20)])
def test_convolutions(resnet, depth):
    network = resnet(SHAPE, depth)
    convolutions = [x for x in network.layers if isinstance(x, keras.layers.Conv2D)]
    projections = [x for x in convolutions if x.name.endswith("projection")]
    assert len(convolutions) - len(projections) == depth - 1  # the classifier is the last layer
    for layer in convolutions:
        assert layer.kernel_regularizer.l2 == pytest.approx(1e-4)
        assert isinstance(layer.kernel_initializer, keras.initializers.HeNormal)
    halving = {x.name for x in convolutions if x.strides != (1, 1)}
    firsts = ("conv1", "projection")
    assert halving == {f"stage{s}_block1_{first}" for s in (2, 3) for first in firsts}
    assert all(x.strides == (2, 2) for x in convolutions if x.name in halving)
    assert isinstance(network.get_layer("pool"), keras.layers.GlobalAveragePooling2D)
    for layer in projections:
        assert layer.kernel_size == (1, 1)
        assert all(x.name.endswith("_add") for x in followers(layer))


def followers(layer):
    return [node.operation for node in layer._outbound_nodes]


@pytest.mark.parametrize("resnet, depth", [(resnet_v1, 8), (resnet_v2, 11)])
def test_numbers_of_numpy_are_numbers(resnet, depth):
    assert resnet(SHAPE, depth, np.int64(3)).output_shape == (None, 3)


def test_v1_is_post_activation():
    network = resnet_v1(SHAPE, 20)
    for layer in network.layers:
        if layer.name.endswith("_add"):
            assert [x.name for x in followers(layer)] == [layer.name.replace("_add", "_act2")]
        if "_conv" in layer.name:
            assert [x.name for x in followers(layer)] == [layer.name.replace("conv", "bn")]


def test_v2_is_pre_activation():
    network = resnet_v2(SHAPE, 20)
    for layer in network.layers:
        if "_act" in layer.name and layer.name not in ("stem_act", "final_act"):
            assert [x.name for x in followers(layer)] == [layer.name.replace("act", "conv")]
        if "_bn" in layer.name:
            assert [x.name for x in followers(layer)] == [layer.name.replace("bn", "act")]
    assert [x.name for x in followers(network.get_layer("final_act"))] == ["pool"]


@once
def test_stages():
    v1, v2 = resnet_v1(SHAPE, 20), resnet_v2(SHAPE, 20)
    wide = resnet_v1(SHAPE, 29)
    for stage, size, filters in ((1, 32, 16), (2, 16, 32), (3, 8, 64)):
        assert v1.get_layer(f"stage{stage}_block3_add").output.shape[1:] == (size, size, filters)
        outer = wide.get_layer(f"stage{stage}_block3_add").output.shape[1:]
        assert outer == (size, size, 4 * filters)
    for stage, size, filters in ((1, 32, 64), (2, 16, 128), (3, 8, 256)):
        assert v2.get_layer(f"stage{stage}_block2_add").output.shape[1:] == (size, size, filters)


def test_block_can_be_chosen():
    assert resnet_v1(SHAPE, 20, block="basic").count_params() == 274_442
    bottleneck = resnet_v1(SHAPE, 20, block="bottleneck")
    assert bottleneck.get_layer("stage1_block2_conv3").kernel_size == (1, 1)
    assert resnet_v1(SHAPE, 11).get_layer("stage3_block1_conv3").filters == 256
    assert resnet_v2(SHAPE, 20, block="basic").get_layer("stage3_block3_conv2").filters == 64
    assert resnet_v2(SHAPE, 32, block="basic").count_params() > 0  # 6n+2, but not 9n+2


@pytest.mark.parametrize("resnet", [resnet_v1, resnet_v2])
@pytest.mark.parametrize("shape, num_classes", [((32, 32, 1), 2), ((64, 48, 5), 100)])
def test_other_images_and_numbers_of_classes(resnet, shape, num_classes):
    network = resnet(shape, 11, num_classes)
    probabilities = network.predict(np.zeros((3, *shape)), verbose=0)
    assert probabilities.shape == (3, num_classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_probabilities_keep_full_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = resnet_v1(SHAPE, 8, activation="GAAF_relu")
    finally:
        keras.config.set_dtype_policy("float32")
    assert network.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert network.output.dtype == "float32"
    assert np.isfinite(network.predict(np.ones((2, *SHAPE)), verbose=0)).all()


def test_same_signature():
    assert inspect.signature(resnet_v1) == inspect.signature(resnet_v2)


@pytest.mark.parametrize(
    "resnet, arguments, message",
    [
        (resnet_v1, (SHAPE, 21), "depth: .* 6n[+]2 or 9n[+]2, nearest 20 and 26; received 21"),
        (resnet_v1, (SHAPE, 7), "depth: .* nearest 8; received 7"),
        (resnet_v1, (SHAPE, -5), "depth: .* nearest 8; received -5"),
        (resnet_v2, (SHAPE, 32), "depth: .* 9n[+]2, nearest 29 and 38; received 32"),
        (resnet_v2, (SHAPE, 2), "depth: .* nearest 11; received 2"),
        (resnet_v2, (SHAPE, 20.0), "depth: .* received 20.0"),
        (resnet_v1, (SHAPE, 11, 10, "relu", "basic"), "depth: .* 6n[+]2, nearest 8 and 14; rec"),
        (resnet_v1, (SHAPE, 20, 10, "relu", "dense"), "block: .* received 'dense'"),
        (resnet_v1, (SHAPE, 20, 1), "num_classes: .* received 1"),
        (resnet_v1, (SHAPE, 20, 10, "rleu"), "activation: .* received 'rleu'"),
        (resnet_v2, ((28, 28, 1), 20), "input_shape: .* received [(]28, 28, 1[)]"),
        (resnet_v2, ((32, 34, 3), 20), "input_shape: "),
        (resnet_v2, ((32, 32), 20), "input_shape: "),
        (resnet_v2, ((32, None, 3), 20), "input_shape: "),
        (resnet_v2, (32, 20), "input_shape: .* received 32"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(resnet, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        resnet(*arguments)
    assert "\n" not in str(caught.value)
