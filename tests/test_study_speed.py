"""What is timed, and what is kept of it."""

import os

import pytest

from study import speed


def test_a_ratio_is_the_median_over_the_rounds_of_a_row_to_its_base():
    seconds = {"relu": [1.0, 2.0, 4.0], "GAAF_relu": [2.0, 2.2, 4.0]}
    found = dict(speed.ratios("step", list(seconds), seconds, images=256))
    assert found == {"step, relu": "128 images/s", "step, GAAF_relu / relu": "1.100"}


def test_only_what_is_measured_anew_is_replaced():
    def row(figure, value, precision="float32", device="CPU"):
        return {"figure": figure, "value": value, "precision": precision, "device": device}

    before = [row("a", 1), row("b", 2), row("a", 3, device="GPU"), row("a", 4, "mixed_bfloat16")]
    after = speed.with_new(before, [row("a", 9), row("c", 8)])
    assert after == [row("a", 9), *before[1:], row("c", 8)]


def test_on_a_gpu_many_steps_are_timed_as_fit_takes_them(monkeypatch):
    monkeypatch.setattr(speed.devices, "kind", lambda: "GPU")
    for name, value in {"BATCH": 2, "LARGE_BATCH": 4, "ROUNDS": 1, "STEPS_OF_A_FIT": 3}.items():
        monkeypatch.setattr(speed, name, value)
    steps = []

    class Network:
        def fit(self, batches, steps_per_epoch, shuffle, verbose):
            steps.append(len(next(iter(batches))[0]) * steps_per_epoch)

        def predict_on_batch(self, x):
            pass

    monkeypatch.setattr(speed, "network_of", lambda *_: Network())
    found = [figure for figure, _ in speed.figures(["relu"], "float32")]
    assert found == [
        "training step, relu",
        "inference, relu",
        "training step at batch 4, relu",
        "inference at batch 4, relu",
    ]
    assert steps == [6, 6, 12, 12]  # the first of each is not counted


@pytest.mark.parametrize(
    "name, device", [("GPU: Card A", "Card A"), ("CPU: EPYC", f"{os.cpu_count()} cores of EPYC")]
)
def test_figures_name_the_device(monkeypatch, name, device):
    monkeypatch.setattr(speed.devices, "name", lambda: name)
    assert speed.where()["device"] == device
