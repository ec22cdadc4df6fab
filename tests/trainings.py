"""Trainings on small data through the command line, and what they leave."""

import keras
import numpy as np
import pytest

import main


def flags(npz, directory, **settings):
    settings = {"depth": 8, "data": npz, "batch_size": 32, "epochs": 3} | settings
    return [
        *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()),
        f"--output-dir={directory}",
    ]


def state(directory):
    """Weights and optimizer of final.keras, and the bytes of history.csv."""
    model = keras.models.load_model(directory / "final.keras")
    arrays = [v.numpy() for v in (*model.weights, *model.optimizer.variables)]
    return arrays, (directory / "history.csv").read_bytes()


def assert_same_run(a, b):
    (arrays_a, history_a), (arrays_b, history_b) = state(a), state(b)
    assert history_a == history_b
    for x, y in zip(arrays_a, arrays_b, strict=True):
        np.testing.assert_array_equal(x, y)


def stops_with(code, arguments, capsys):
    """Runs main.py, which must end with the code; returns the one line that it says why."""
    with pytest.raises(SystemExit) as end:
        main.main(arguments)
    assert end.value.code == code
    message = capsys.readouterr().err
    assert message.startswith("main.py: ") and message.count("\n") == 1, message
    return message


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
