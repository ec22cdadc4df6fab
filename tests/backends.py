"""What the tests need of the backend that Keras runs on: derivatives, and compiled functions."""

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
# Marks what takes long and is not about the backend: fast tests run it on TensorFlow alone.
once = pytest.mark.slow if BACKEND != "tensorflow" else pytest.mark.once


def to_numpy(x):
    """Any tensor as a NumPy array; bfloat16, which NumPy lacks, as float32."""
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        x = keras.ops.cast(x, "float32")
    return keras.ops.convert_to_numpy(x)


def derivatives(function, x, dtype="float64"):
    """Returns the first and second derivative of an elementwise function at the values x."""
    x = keras.ops.convert_to_tensor(np.asarray(x), dtype)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = function(x)
            first = inner.gradient(y, x)
        second = outer.gradient(first, x)
    elif BACKEND == "jax":
        import jax

        gradient = jax.grad(lambda x: function(x).sum())
        first = gradient(x)
        second = jax.grad(lambda x: gradient(x).sum())(x)
    else:
        import torch

        x.requires_grad_(True)
        (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        first = first.detach()
    return to_numpy(first), to_numpy(second)


def ways_to_call(function):
    """Yields the function eager, and compiled in each way that the backend has."""
    yield "eager", function
    if BACKEND == "tensorflow":
        import tensorflow as tf

        yield "tf.function", tf.function(function)
        yield "XLA", tf.function(function, jit_compile=True)
    elif BACKEND == "jax":
        import jax

        yield "XLA", jax.jit(function)
