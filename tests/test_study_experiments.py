"""The study: each run is trained once, by main.py, and lands in the results."""

import json

import keras
import numpy as np
import pytest
from backends import once

import main
from docs import make
from study import analysis, experiments
from training.files import read_csv, read_history
from training.settings import check, parse


def test_every_row_has_settings_that_main_takes(tmp_path):
    for row in experiments.ROWS:
        run = experiments.Run(row, 0, 20, "digits", tmp_path)
        settings, _ = parse(main.Settings, "", run.flags())
        check(settings)
        assert experiments.plain_row(row) in experiments.ROWS
    assert set(make.EARLIER) < set(experiments.ROWS)


def test_the_plain_row_is_of_the_same_network():
    assert experiments.plain_row("shift -1") == "relu"
    assert experiments.plain_row("fading, paper, to 80 %") == "relu"
    assert experiments.plain_row("v2, paper") == "v2, relu"
    assert experiments.plain_row("AdamW, paper") == "AdamW, relu"
    assert experiments.plain_row("GAAF_tanh") == "tanh"


@once
def test_runs_are_trained_once_and_collected(npz, tmp_path, monkeypatch, capsys):
    small = {"depth": 8, "batch_size": 64}
    rows = {"relu": {"activation": "relu", **small}, "paper": {"slope": 5, **small}}
    monkeypatch.setattr(experiments, "ROWS", rows)
    results = tmp_path / "results.csv"
    runs = [experiments.Run(row, 0, 1, str(npz), tmp_path / "runs") for row in rows]
    experiments.train(runs, at_once=2, results=results)
    lines = read_csv(results)
    assert {line["row"] for line in lines} == set(rows)
    for line in lines:
        (run,) = (run for run in runs if run.row == line["row"])
        history = read_history(run.directory / "history.csv")
        assert float(line["test_accuracy"]) == history[-1]["val_accuracy"]
        assert float(line["train_loss"]) == history[-1]["loss"] and line["epochs"] == "1"
        assert json.loads(line["settings"]) == rows[line["row"]]
        assert line["data"] == "small" and "keras" in line["versions"] and int(line["seconds"]) > 0

    monkeypatch.setattr(experiments.Run, "train", None)  # nothing is left to train
    experiments.train(runs, at_once=2, results=results)
    assert "2 of 2 runs are done" in capsys.readouterr().out
    assert read_csv(results) == lines

    assert {line.pop("penalty") for line in lines} == {""}
    experiments.add_penalties(runs, results)
    after = read_csv(results)
    directories = {run.key: run.directory for run in runs}
    for line in after:
        model = keras.models.load_model(directories[experiments.key_of(line)] / "final.keras")
        kernels = [w.numpy() for w in model.trainable_weights if len(w.shape) == 4]
        penalty = 1e-4 * sum((kernel**2).sum() for kernel in kernels)
        assert float(line.pop("penalty")) == pytest.approx(penalty, rel=1e-4)
    assert after == lines


def test_a_run_that_fails_is_told(tmp_path):
    run = experiments.Run("relu", 0, 1, "missing.npz", tmp_path)
    with pytest.raises(RuntimeError, match=r"relu: see .*log\.txt"):
        experiments.train([run], at_once=1, results=tmp_path / "results.csv")
    assert "missing.npz" in (run.directory / "log.txt").read_text()


def test_trainings_share_the_memory_of_a_gpu(tmp_path, monkeypatch):
    def popen(command, env, **others):
        started.append(env)
        raise KeyboardInterrupt

    started = []
    monkeypatch.setattr(experiments.subprocess, "Popen", popen)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "false")  # what the user says goes
    with pytest.raises(KeyboardInterrupt):
        experiments.Run("relu", 0, 1, "digits", tmp_path).train([])
    assert started[0]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert started[0]["TF_FORCE_GPU_ALLOW_GROWTH"] == "false"


def test_differences_are_paired_by_seed():
    def runs(*accuracies):
        return {str(i): {"test_accuracy": a} for i, a in enumerate(accuracies)}

    def words(*arguments, **others):
        return analysis.in_words(*analysis.difference(*arguments, analysis.accuracy), **others)

    three, plain = runs(0.81, 0.82, 0.83), runs(0.80, 0.80, 0.80)
    assert words(three, plain) == "+0.0200 ± 0.0248"
    assert words(three, plain, digits=3) == "+0.020 ± 0.025"
    assert words(runs(0.81), runs(0.80, 0.9)) == "+0.0100 (one run)"
    assert words(runs(0.81), {}) == ""


def test_cross_entropy_is_the_loss_without_the_penalty():
    assert analysis.cross_entropy({"train_loss": "0.5", "penalty": "0.125"}) == 0.375
    assert np.isnan(analysis.cross_entropy({"train_loss": "0.5", "penalty": ""}))  # not added yet
