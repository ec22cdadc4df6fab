"""ResNet v2 for CIFAR-10, batch normalisation and activation before each convolution."""

import keras
from keras import layers

import gaaf
from resnet_v1 import Block, block_and_count, classifier, conv, image_input

# Filters of each stage: within a block, and of its output. He et al. have 16, 32 and 64 within
# bottlenecks; these are the wider ones of the Keras CIFAR-10 example.
FILTERS = {
    "basic": ((16, 16), (32, 32), (64, 64)),
    "bottleneck": ((16, 64), (64, 128), (128, 256)),
}


def resnet_v2(
    input_shape: tuple[int, int, int],
    depth: int,
    num_classes: int = 10,
    activation: gaaf.Activation = "relu",
    block: Block | None = None,
    weight_decay: float = 1e-4,
) -> keras.Model:
    """Builds a ResNet v2, y = x + F(x), as a plain Keras functional model.

    Three stages of n blocks each; F is 1×1, 3×3 and 1×1 convolutions (bottleneck) or two 3×3 ones
    (basic), each with batch normalisation and the activation before it, save the network's first,
    whose input the stem has just normalised. Convolutions, projections and head are those of v1;
    a last normalisation and activation stand before the head.

    Args:
        input_shape: (height, width, channels); height and width are multiples of 4, at least 32.
        depth: Number of layers, 9n+2 for bottleneck and 6n+2 for basic blocks.
        num_classes: Number of classes, at least 2. Default 10.
        activation: Anything `gaaf.get` takes: "relu" (default), "GAAF_relu", a `gaaf.GAAF`, …
        block: "bottleneck" (default) or "basic".
        weight_decay: Factor of the L2 penalty on the convolutions' kernels. Default 1e-4; 0: none.

    Returns:
        `keras.Model` from images, float (batch, height, width, channels), to class probabilities,
        (batch, num_classes) of dtype `keras.config.floatx()`.

    Raises:
        ValueError: if an argument is none of these.

    Reference:
        [Identity Mappings in Deep Residual Networks](https://arxiv.org/abs/1603.05027), He et al.
        2016, figure 1b; filters as in the Keras CIFAR-10 ResNet example.
    """
    block, n = block_and_count(depth, block, version=2)
    activation = gaaf.get(activation)

    def bn_act(x, name):
        x = layers.BatchNormalization(name=name.replace("act", "bn"))(x)
        return layers.Activation(activation, name=name)(x)

    inputs = image_input(input_shape)
    x = bn_act(conv(inputs, 16, 3, "stem_conv", 1, weight_decay), "stem_act")
    for stage, (inner, outer) in enumerate(FILTERS[block], 1):
        convolutions = [(inner, 3), (outer, 3)]
        if block == "bottleneck":
            convolutions = [(inner, 1), (inner, 3), (outer, 1)]
        for index in range(1, n + 1):
            name = f"stage{stage}_block{index}"
            strides = 2 if stage > 1 and index == 1 else 1
            y = x
            for i, (width, kernel_size) in enumerate(convolutions, 1):
                if (stage, index, i) != (1, 1, 1):
                    y = bn_act(y, f"{name}_act{i}")
                first = strides if i == 1 else 1
                y = conv(y, width, kernel_size, f"{name}_conv{i}", first, weight_decay)
            if x.shape != y.shape:
                x = conv(x, outer, 1, f"{name}_projection", strides, weight_decay)
            x = layers.Add(name=f"{name}_add")([x, y])
    return classifier(inputs, bn_act(x, "final_act"), num_classes, f"resnet{depth}_v2")
