"""main.py with B-SiLU for its activation, whose slope the shape "bsilu" gives to ReLU.

    python -m study.b_silu --data PATH

The study asks what GAAF would gain by taking over its values as well (SUGAR, arXiv 2505.22074).
"""

import sys

from training import console

console.prepare_environment()

import keras  # noqa: E402

import main  # noqa: E402
from training import model  # noqa: E402

ALPHA = 1.67


@keras.saving.register_keras_serializable("study")
def b_silu(x):
    """B-SiLU, (x + α)·sigmoid(x) − α/2 with α = 1.67, of a tensor of any shape and float dtype."""
    return (x + ALPHA) * keras.ops.sigmoid(x) - ALPHA / 2


if __name__ == "__main__":
    model.activation_of = lambda settings, strength=1.0: b_silu
    main.main([*sys.argv[1:], "--activation=b_silu"])
