"""The learning rate of each epoch: the first rate of the optimizer, and the schedule."""

import contextlib
import math

import keras
import numpy as np


class LearningRate(keras.callbacks.Callback):
    """Sets the learning rate of each epoch, and adds it to the history.

    That is the optimizer's first rate, times the factor of the schedule. Each optimizer within a
    MultiOptimizer has its own first rate.

    Args:
        settings: Those of main.py.
        optimizer: The optimizer of the compiled model, which has not trained yet.
    """

    def __init__(self, settings, optimizer):
        super().__init__()
        self.settings = settings
        self.first_rates = [first_rate(each) for each in optimizers_of(optimizer)]

    def on_epoch_begin(self, epoch, logs=None):
        if self.settings.schedule == "constant":  # then the user's callbacks may change the rate
            return
        optimizers = optimizers_of(self.model.optimizer)
        for optimizer, rate in zip(optimizers, self.first_rates, strict=True):
            if rate is not None:
                # Keras refuses a number once a callback has set a LearningRateSchedule.
                with contextlib.suppress(TypeError):
                    optimizer.learning_rate = rate * factor_at(epoch, self.settings)

    def on_epoch_end(self, epoch, logs=None):
        optimizers = optimizers_of(self.model.optimizer)
        for optimizer in optimizers:
            name = f"learning_rate_{optimizer.name}" if len(optimizers) > 1 else "learning_rate"
            logs[name] = float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def factor_at(epoch, settings):
    """What the schedule multiplies the first learning rate by in an epoch, counted from 0."""
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
    if settings.schedule == "step":
        for mark, factor in ((180, 5e-4), (160, 1e-3), (120, 1e-2), (80, 1e-1)):
            if epoch * 200 >= mark * settings.epochs:
                return factor
    return 1.0


def optimizers_of(optimizer):
    """The optimizers within a LossScaleOptimizer or MultiOptimizer; of any other, only itself."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return getattr(optimizer, "optimizers", [optimizer])


def first_rate(optimizer):
    """The learning rate of a new optimizer; None if that is a schedule or a function."""
    rate = optimizer.get_config().get("learning_rate")
    if not isinstance(rate, float):
        return None
    return float(str(np.float32(rate)))  # 0.001, where the config has 0.0010000000474974513
