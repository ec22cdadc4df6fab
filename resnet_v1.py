"""ResNet v1 for CIFAR-10, activation after the addition; and the parts that it shares with v2."""

import numbers
from typing import Literal

import keras
from keras import layers

import gaaf

Block = Literal["basic", "bottleneck"]

CONVOLUTIONS = {"basic": 2, "bottleneck": 3}  # in one residual block of that kind
BLOCKS = {1: ("basic", "bottleneck"), 2: ("bottleneck",)}  # of each version, the preferred first


def resnet_v1(
    input_shape: tuple[int, int, int],
    depth: int,
    num_classes: int = 10,
    activation: gaaf.Activation = "relu",
    block: Block | None = None,
    weight_decay: float = 1e-4,
) -> keras.Model:
    """Builds a ResNet v1, y = activation(x + F(x)), as a plain Keras functional model.

    Three stages of n blocks each; F is two 3×3 convolutions with 16, 32, 64 filters (basic), or
    1×1, 3×3 and 1×1 ones whose last has four times as many (bottleneck). Each has a bias, an L2
    penalty and he_normal initialisation and is followed by batch normalisation; linear 1×1
    projections without it stand where the shape changes. Global average pooling and softmax end
    the network.

    Args:
        input_shape: (height, width, channels); height and width are multiples of 4, at least 32.
        depth: Number of layers, 6n+2 for basic and 9n+2 for bottleneck blocks.
        num_classes: Number of classes, at least 2. Default 10.
        activation: Anything `gaaf.get` takes: "relu" (default), "GAAF_relu", a `gaaf.GAAF`, …
        block: "basic" or "bottleneck". Default: basic if the depth is 6n+2, else bottleneck.
        weight_decay: Factor of the L2 penalty on the convolutions' kernels. Default 1e-4; 0: none.

    Returns:
        `keras.Model` from images, float (batch, height, width, channels), to class probabilities,
        (batch, num_classes) of dtype `keras.config.floatx()`.

    Raises:
        ValueError: if an argument is none of these.

    Reference:
        [Deep Residual Learning](https://arxiv.org/abs/1512.03385), He et al. 2015, section 4.2.
        The bottleneck form is the ResNet-1001 of [Identity Mappings](
        https://arxiv.org/abs/1603.05027), He et al. 2016, with the activation after the addition.
    """
    block, n = block_and_count(depth, block, version=1)
    activation = gaaf.get(activation)

    def conv_bn(x, filters, kernel_size, name, strides=1):
        x = conv(x, filters, kernel_size, name, strides, weight_decay)
        return layers.BatchNormalization(name=name.replace("conv", "bn"))(x)

    inputs = image_input(input_shape)
    x = conv_bn(inputs, 16, 3, "stem_conv")
    x = layers.Activation(activation, name="stem_act")(x)
    for stage, filters in enumerate((16, 32, 64), 1):
        convolutions = [(filters, 3), (filters, 3)]
        if block == "bottleneck":
            convolutions = [(filters, 1), (filters, 3), (4 * filters, 1)]
        for index in range(1, n + 1):
            name = f"stage{stage}_block{index}"
            strides = 2 if stage > 1 and index == 1 else 1
            y = x
            for i, (width, kernel_size) in enumerate(convolutions, 1):
                if i > 1:
                    y = layers.Activation(activation, name=f"{name}_act{i - 1}")(y)
                y = conv_bn(y, width, kernel_size, f"{name}_conv{i}", strides if i == 1 else 1)
            if x.shape != y.shape:
                x = conv(x, y.shape[-1], 1, f"{name}_projection", strides, weight_decay)
            x = layers.Add(name=f"{name}_add")([x, y])
            x = layers.Activation(activation, name=f"{name}_act{i}")(x)
    return classifier(inputs, x, num_classes, f"resnet{depth}_v1")


def block_and_count(depth: int, block: str | None, version: int) -> tuple[str, int]:
    """Returns the kind of block and how many of them a stage has, depth = 3·n·convolutions + 2.

    Of the kinds of a version, the first that fits the depth is taken where `block` is None.
    """
    if block not in (None, *CONVOLUTIONS):
        raise ValueError(f"block: allowed is 'basic', 'bottleneck' or None; received {block!r}")
    periods = {3 * CONVOLUTIONS[kind]: kind for kind in ([block] if block else BLOCKS[version])}

    def period_of(depth):
        return next((p for p in periods if depth > p and depth % p == 2), None)

    allowed = f"depth: allowed is an integer {' or '.join(f'{p}n+2' for p in periods)}"
    if not isinstance(depth, numbers.Integral):
        raise ValueError(f"{allowed}; received {depth!r}")
    if period := period_of(depth):
        return periods[period], depth // period
    nearest = [next(filter(period_of, range(depth, 0, -1)), None)]
    nearest.append(next(filter(period_of, range(max(depth, 0), max(depth, 0) + 20))))
    nearest = " and ".join(str(d) for d in nearest if d)
    raise ValueError(f"{allowed}, nearest {nearest}; received {depth}")


def image_input(shape):
    """Input layer for images of the given (height, width, channels)."""
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    valid = len(sizes) == 3 and all(
        isinstance(size, numbers.Integral) and size >= least and size % divisor == 0
        for size, least, divisor in zip(sizes, (32, 32, 1), (4, 4, 1), strict=True)
    )
    if not valid:
        raise ValueError(
            "input_shape: allowed is (height, width, channels) with height and width at least 32 "
            f"and divisible by 4; received {shape!r}"
        )
    return keras.Input(sizes, name="image")


def conv(x, filters, kernel_size, name, strides, weight_decay):
    """The convolution that all ResNets here are made of."""
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        data_format="channels_last",  # whatever keras.json says
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(weight_decay) if weight_decay else None,
        name=name,
    )(x)


def classifier(inputs, x, num_classes, name):
    """Ends the network with pooling and softmax, and makes it a model."""
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise ValueError(f"num_classes: allowed is an integer from 2; received {num_classes!r}")
    x = layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
    # Under mixed precision the probabilities, and so the loss, stay in full precision.
    outputs = layers.Dense(
        int(num_classes),  # Keras takes none of NumPy
        activation="softmax",
        kernel_initializer="he_normal",
        dtype=keras.config.floatx(),
        name="classifier",
    )(x)
    return keras.Model(inputs, outputs, name=name)
