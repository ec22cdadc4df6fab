"""Trains a CIFAR-10 ResNet with gradient-accelerated activation functions (GAAF).

Edit the settings below and run `python main.py`, or give any of them as a flag.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from training import console
from training.identity import require_same_run
from training.settings import check, parse

# Keras, and with it TensorFlow, is imported where it is needed: --help and a wrong flag get their
# answer without that wait.
if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True)
class Settings:
    # The network. Each comment is also the help text of the flag of that name.
    version: int = 1  # ResNet version, 1 or 2
    depth: int = 20  # layers: 6n+2 or 9n+2 (version 2: 9n+2), such as 20, 56, 110, 164, 1001
    activation: str = "GAAF_relu"  # any Keras activation, with GAAF_ before it or not

    # The parameters of GAAF.
    shift: float = -1.0  # the centre of GAAF_relu's sigmoid is x = -shift
    slope: float = 1.0  # steepness of that sigmoid
    frequency: float = 10_000.0  # K, periods of the sawtooth per unit of x
    wave: str = "floor"  # floor; round: slope alternates; none: values of φ, only gradients change
    shape: str = "auto"  # sigmoid, gaussian, none (s=1), bsilu, nelu, leaky; auto: by activation
    gain: float | str = "peak"  # factor of gradients, 1 in the paper; peak: the largest slope is 1

    # The data.
    data: str = "cifar10"  # cifar10, cifar100, digits, or the path of an .npz or official .tar.gz
    data_augmentation: bool = False  # random flips, and shifts of up to 10 %
    subtract_pixel_mean: bool = True  # subtract the mean training image
    validation: float = 0.0  # share of the training images to test on during the training

    # The training.
    batch_size: int = 128  # images per step
    epochs: int = 200  # passes over the training images; the schedule scales with them
    optimizer: str = "adam"  # adam, adamw, or sgd (Nesterov momentum 0.9)
    learning_rate: float | str = "auto"  # first learning rate; auto: 0.1 for sgd, else 1e-3
    schedule: str = "step"  # step (down at 40, 60, 80 and 90 % of the epochs), cosine, constant
    weight_decay: float = 1e-4  # L2 penalty in the loss; adamw: decoupled, 0.2·this/learning_rate
    precision: str = "float32"  # float32, mixed_bfloat16 or mixed_float16
    seed: int = 0  # for initial weights, order and augmentation
    gradient_histograms: bool = False  # write each activation's gradient into the TensorBoard logs
    output_dir: str = "auto"  # where the results go; auto: a folder in runs/, by the settings
    overwrite: bool = False  # replace the run in that directory instead of going on with it
    ignore_changes: bool = False  # go on even if code, optimizer or data have changed


def train(
    settings: Settings = Settings(), callbacks: Sequence["keras.callbacks.Callback"] = ()
) -> "keras.callbacks.History":
    """Trains as the settings say, and writes the results to the output directory.

    A run with these settings that has been stopped goes on after its last whole epoch.

    Args:
        settings: `Settings`; in `Settings(depth=56, activation="relu")` the others are defaults.
        callbacks: `keras.callbacks.Callback`s, called before an epoch is saved. Default: none.

    Returns:
        `keras.callbacks.History`, of the epochs trained now.

    Raises:
        training.Mistake: a ValueError; if a setting or the data is wrong, or another process trains
            in the directory. Then nothing has been written.
        training.console.NotFinite: if the loss becomes NaN or infinite.
        training.console.Interrupted: after Ctrl-C or SIGTERM.
        training.files.CannotWrite: an OSError; if a file cannot be written.
    """
    settings, callbacks = check(settings), list(callbacks or ())
    require_same_run(settings)
    console.start_keras()
    import keras

    from training import devices
    from training.callback_states import require_compatible
    from training.data import hold_out, load
    from training.model import build, optimizer, require_buildable
    from training.run import Run

    devices.join()
    require_buildable(settings)
    require_compatible(settings, callbacks)
    data, test = hold_out(load(settings.data), settings.validation, settings.seed)
    devices.require_shareable(settings, data)
    keras.utils.set_random_seed(settings.seed)
    with devices.parallel(), Run(settings, data, test, callbacks) as run:
        model = build(settings, data)
        model.compile(
            optimizer=optimizer(settings, model),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=devices.jit_compile(),
        )
        run.begin(model)
        history = model.fit(epochs=settings.epochs, **run.fit_arguments())
        run.report()
    return history


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line says; ends the program with an exit code after a mistake."""
    console.own_process()
    settings, evaluated = parse(Settings, __doc__, arguments)
    try:
        if evaluated:
            console.start_keras()
            from training.evaluate import evaluate

            evaluate(*evaluated)
        else:
            settings = check(settings)  # so that an error message can name the directory
            train(settings)
        return
    except (Exception, KeyboardInterrupt) as error:
        ending = console.ending_of(error, None if evaluated else settings)
        if ending is None:
            raise
    console.stop(*ending)


if __name__ == "__main__":
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    console.leave(code)
