"""The study: each run is trained once, by main.py, and lands in the results."""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import filelock
import keras
import numpy as np
import pytest
import scipy.special
from backends import once
from processes import python

import main
from docs import make
from study import analysis, experiments, rows
from study import runs as study_runs
from training.files import read_csv, read_history, write_csv
from training.settings import check, parse


@once
def test_every_row_has_settings_that_main_takes(tmp_path):
    for row in rows.ROWS:
        run = experiments.Run(row, 0, 20, "digits", folder=tmp_path)
        settings, _ = parse(main.Settings, "", run.command()[2:])
        check(settings)
        assert rows.plain_row(row) in rows.ROWS
    assert set(rows.REPORTED_IN_2018) < set(rows.ROWS)
    assert {row for pair in rows.PREDICTIONS for row in pair} < set(rows.ROWS)


def test_the_protocol_is_what_main_trains_by_default(monkeypatch, capsys):
    """Else a row would train something else, under the name that it has in the results."""
    free = {"data", "epochs", "seed", "precision", "gradient_histograms"}
    free |= {"output_dir", "overwrite", "ignore_changes"}
    defaults = dataclasses.asdict(main.Settings())
    assert {k: v for k, v in defaults.items() if k not in free} == rows.PROTOCOL

    edited = functools.partial(main.Settings, batch_size=64)
    monkeypatch.setattr(experiments, "Settings", edited)
    monkeypatch.setattr(sys, "argv", ["experiments", "--data", "digits", "relu"])
    with pytest.raises(SystemExit) as end:
        experiments.main()
    assert end.value.code == 2 and "received others of batch_size" in capsys.readouterr().err


def test_seeds_follow_the_first_one(monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(experiments, "train", lambda runs, at_once: trained.extend(runs))
    monkeypatch.setattr(experiments.signal, "signal", lambda *_: None)
    command = ["experiments", "--data", "digits", "--seeds", "2", "relu", "paper", "--first-seed"]
    monkeypatch.setattr(sys, "argv", [*command, "3"])
    experiments.main()
    expected = [("relu", 3), ("paper", 3), ("relu", 4), ("paper", 4)]
    assert [(run.row, run.seed) for run in trained] == expected
    monkeypatch.setattr(sys, "argv", [*command, "-1"])
    with pytest.raises(SystemExit) as end:
        experiments.main()
    assert end.value.code == 2 and "0 or more; received -1" in capsys.readouterr().err


def test_the_plain_row_is_of_the_same_network():
    assert rows.plain_row("shift -1") == "relu"
    assert rows.plain_row("v2, paper, peak") == "v2, relu"
    assert rows.plain_row("paper, peak") == "relu"
    assert rows.plain_row("augmented, paper, peak") == "augmented, relu"
    assert rows.plain_row("AdamW, paper") == "AdamW, relu"
    assert rows.plain_row("GAAF_tanh") == "tanh"


@once
def test_runs_are_trained_once_and_collected(npz, tmp_path, monkeypatch, capsys):
    small = {"depth": 8, "batch_size": 64}
    settings = {"paper": {"slope": 5, **small}, "AdamW, relu": {"activation": "relu", **small}}
    settings["AdamW, relu"] |= {"optimizer": "adamw", "precision": "mixed_bfloat16"}
    monkeypatch.setattr(study_runs, "ROWS", settings)
    results = tmp_path / "results.csv"
    runs = [experiments.Run(row, 0, 1, str(npz), folder=tmp_path / "runs") for row in settings]
    experiments.train(runs, at_once=2, results=results)
    lines = read_csv(results)
    assert {line["row"] for line in lines} == set(settings)
    for line in lines:
        (run,) = (run for run in runs if run.row == line["row"])
        history = read_history(run.directory / "history.csv")
        assert float(line["test_accuracy"]) == history[-1]["val_accuracy"]
        assert float(line["train_loss"]) == history[-1]["loss"] and line["epochs"] == "1"
        assert json.loads(line["settings"]) == {"precision": "float32"} | settings[line["row"]]
        assert line["data"] == "small" and "keras" in line["versions"] and int(line["seconds"]) > 0
        assert run.key == analysis.key_of(line)
        assert (line["device"], line["versions"]) == study_runs.setup()
        model = keras.models.load_model(run.directory / "final.keras", compile=False)
        kernels = [w.numpy() for w in model.trainable_weights if len(w.shape) == 4]
        squares = sum((kernel**2).sum() for kernel in kernels)
        assert float(line["squares"]) == pytest.approx(squares, rel=1e-4)
        penalty = 0 if "AdamW" in run.row else 1e-4 * squares
        assert float(line["penalty"]) == pytest.approx(penalty, rel=1e-4)

    # Another machine needs three small files of each run, to collect the same lines.
    for run, copy in itertools.product(runs, ("brought", "brought/again")):
        there = tmp_path / copy / run.directory.name
        there.mkdir(parents=True)
        for name in ("run.json", "config.json", "history.csv"):
            shutil.copy(run.directory / name, there / name)
    (tmp_path / "brought" / "broken").mkdir()
    (tmp_path / "brought" / "broken" / "run.json").write_text("{}")
    collected = tmp_path / "collected.csv"
    assert study_runs.collect(tmp_path / "brought", collected) == 2
    assert f"left out: {tmp_path / 'brought' / 'broken'}: " in capsys.readouterr().out
    assert study_runs.collect(tmp_path / "brought", collected) == 0  # they are there
    assert sorted(map(str, read_csv(collected))) == sorted(map(str, lines))

    monkeypatch.setattr(experiments.Run, "train", None)  # nothing is left to train
    experiments.train(runs, at_once=2, results=results)
    assert "2 of 2 runs are done" in capsys.readouterr().out
    assert read_csv(results) == lines
    with monkeypatch.context() as patch, pytest.raises(TypeError):  # by other code, all are
        patch.setattr(study_runs, "code", lambda: "other code")
        experiments.train(runs, at_once=2, results=results)


LINE = {"test_accuracy": 0.5, "data": "digits", "sources": ""}


def test_a_run_that_fails_is_told_and_keeps_nobody_else_from_training(tmp_path, monkeypatch):
    lines = {}
    monkeypatch.setattr(experiments, "result_of", lambda directory: LINE | lines[directory])
    monkeypatch.setattr(study_runs, "squares_of", lambda path: 1.0)
    failing = experiments.Run("relu", 0, 1, "missing.npz", folder=tmp_path)
    others = [failing._replace(seed=seed, data="digits") for seed in (1, 2)]
    monkeypatch.setattr(
        experiments.Run,
        "command",
        lambda run: (
            [sys.executable, study_runs.ROOT / "main.py", "--data", run.data]
            if run is failing
            else [sys.executable, "-c", ""]
        ),
    )
    lines |= {run.directory: run._asdict() for run in others}
    with pytest.raises(RuntimeError, match=r"^relu, seed 0: see .*log\.txt$"):
        experiments.train([failing, *others], at_once=1, results=tmp_path / "results.csv")
    assert "missing.npz" in (failing.directory / "log.txt").read_text()
    assert [line["seed"] for line in read_csv(tmp_path / "results.csv")] == ["1", "2"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has it")
@pytest.mark.parametrize("n", [1, 2, 5])
def test_trainings_side_by_side_have_cores_of_their_own(n):
    ready = threading.Barrier(n)  # so that each thread gets one of them
    code = "import os; print(*os.sched_getaffinity(0))"

    def cores(_):
        ready.wait()
        return {int(core) for core in python("-c", code).stdout.split()}

    with experiments.threads(n) as pool:
        found = list(pool.map(cores, range(n)))
    mine = os.sched_getaffinity(0)  # as before
    assert set.union(*found) == mine
    if n <= len(mine):
        assert sum(map(len, found)) == len(mine)


def test_trainings_share_the_memory_of_a_gpu(tmp_path, monkeypatch):
    def popen(command, env, **others):
        started.append(env)
        raise KeyboardInterrupt

    started = []
    monkeypatch.setattr(study_runs, "setup", lambda: ("GPU", "keras 3"))  # asks another process
    monkeypatch.setattr(study_runs.subprocess, "Popen", popen)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "false")  # what the user says goes
    with pytest.raises(KeyboardInterrupt):
        experiments.Run("relu", 0, 1, "digits", folder=tmp_path).train([])
    assert started[0]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert started[0]["TF_FORCE_GPU_ALLOW_GROWTH"] == "false"


def test_what_is_not_known_yet_is_left_out():
    plain = runs(0.5, 0.5, 0.5)
    lacking = runs("", "", "")
    some = runs(0.6, 0.7, "")
    rows = {
        "lacking": analysis.Comparison(lacking, plain),
        "some": analysis.Comparison(some, plain),
        "same": analysis.Comparison(plain, plain),
    }
    found = analysis.differences(rows, analysis.accuracy)
    assert set(found) == {"some", "same"}
    assert found["some"].mean == pytest.approx(0.15) and np.isfinite(found["some"].p)
    assert make.difference_in_words(found["same"]) == "+0.0000 ± 0.0000"
    assert found["same"].p is None  # there is no t-test of them


def test_runs_on_other_data_or_of_other_code_are_not_mixed_in(tmp_path, monkeypatch):
    columns = ("row", "seed", "epochs", "data", "test_accuracy", "sources")
    lines = [("relu", 0, 20, "a", 0.5, "f"), ("paper", 0, 20, "a", 0.6, "f")]
    lines += [("paper", 0, 200, "b", 0.9, "f"), ("paper", 1, 20, "a", 0.7, "other code")]
    lines += [("paper", 2, 20, "a", 0.8, "f"), ("relu", 1, 20, "a", 0.5, "f")]
    write_csv(tmp_path / "results.csv", [dict(zip(columns, x, strict=True)) for x in lines])
    monkeypatch.setattr(analysis, "RESULTS", tmp_path / "results.csv")
    found = analysis.study()
    assert made_in(found["relu"].runs) == {("f", "0"), ("f", "1")}
    assert made_in(found["paper"].runs) == {("f", "0"), ("f", "2")}  # "other code" has no relu
    assert analysis.differences(found, analysis.accuracy)["paper"][0] == pytest.approx(0.1)

    # What makes the same counts as the latest code; another code stays with its relu.
    lines += [("relu", 0, 20, "a", 0.9, "new"), ("shift 0", 0, 20, "a", 0.4, "f")]
    lines += [("shift 0", 0, 20, "a", 0.8, "new")]
    lines += [("shift 1", 0, 20, "a", 0.5, code) for code in ("new", "newer")]
    write_csv(tmp_path / "results.csv", [dict(zip(columns, x, strict=True)) for x in lines])
    found = analysis.study()
    assert made_in(found["shift 0"].runs) == {("f", "0"), ("newer", "0")}
    assert made_in(found["shift 0"].others) == {("f", "0"), ("f", "1"), ("newer", "0")}
    found = analysis.differences(found, analysis.accuracy)
    assert found["shift 0"].mean == pytest.approx(-0.1)  # 0.4 − 0.5, and 0.8 − 0.9


def made_in(runs):
    """{(sources, seed)} of runs."""
    return {(group[1], seed) for group, seed in runs}


def test_of_a_row_with_other_settings_only_the_latest_runs_count(tmp_path, monkeypatch):
    shared = {"epochs": 20, "data": "a", "sources": "f"}
    lines = [{"row": "relu", "seed": s, "test_accuracy": 0.5, "settings": "{}"} for s in (0, 1)]
    for seed, decay, accuracy in ((0, 3e-4, 0.9), (1, 3e-4, 0.9), (0, 2.4e-4, 0.6)):
        line = {"row": "weight decay matched", "seed": seed, "test_accuracy": accuracy}
        lines.append(line | {"settings": json.dumps({"weight_decay": decay})})
    write_csv(tmp_path / "results.csv", [line | shared for line in lines])
    monkeypatch.setattr(analysis, "RESULTS", tmp_path / "results.csv")
    found = analysis.study()["weight decay matched"]
    assert [line["test_accuracy"] for line in found.runs.values()] == ["0.6"]


def test_runs_of_other_devices_or_versions_are_not_compared(tmp_path, monkeypatch):
    columns = ("row", "seed", "epochs", "data", "test_accuracy", "sources", "device", "versions")
    lines = [("relu", seed, 20, "a", 0.5, "f", "GPU", "v 1") for seed in range(3)]
    lines += [("paper", seed, 20, "a", 0.6, "f", "GPU", "v 1") for seed in range(2)]
    lines += [("paper", 2, 20, "a", 0.9, "f", "GPU", "v 2")]
    lines += [(row, 2, 20, "a", 0.7, "f", "CPU", "v 1") for row in ("relu", "paper", "shift 0")]
    write_csv(tmp_path / "results.csv", [dict(zip(columns, x, strict=True)) for x in lines])
    monkeypatch.setattr(analysis, "RESULTS", tmp_path / "results.csv")
    found = analysis.study()
    setups = {row: {group[2:4] for group, _ in x.runs} for row, x in found.items()}
    gpu, cpu = ("GPU", "v 1"), ("CPU", "v 1")
    assert setups == {"relu": {gpu, cpu}, "paper": {gpu, cpu}, "shift 0": {cpu}}
    differences = analysis.differences(found, analysis.accuracy)
    assert {row: pytest.approx(x[0]) for row, x in differences.items()} == {
        "paper": 0.2 / 3,  # two of 0.1 and one of 0
        "shift 0": 0,
    }

    # Nor do other numbers on another device say that the code makes others.
    other = [RUN | {"seed": "0", "sources": x, "device": x, "test_accuracy": x} for x in "ab"]
    assert same_float32(other) == {"a": "a", "b": "b"}
    both = [RUN | {"seed": "1", "sources": x, "device": "c", "test_accuracy": "1"} for x in "ab"]
    assert same_float32([*other, *both]) == {"a": "b", "b": "b"}


def same_float32(lines):
    same = analysis.same_code(lines)
    return {sources: latest for (sources, precision), latest in same.items() if "32" in precision}


RUN = {"row": "paper", "epochs": "20", "data": "a", "best_test_accuracy": "0.9"}
RUN["settings"] = json.dumps(rows.ROWS["paper"])


def made(code, **accuracies):
    """Lines of the results, by the accuracy of each seed."""
    return [
        RUN | {"sources": code, "seed": seed, "test_accuracy": accuracy}
        for seed, accuracy in accuracies.items()
    ]


@pytest.mark.parametrize("order", ["abcd", "acdb", "dbca", "cadb"])
def test_codes_that_make_the_same_numbers_of_a_run_count_as_one(order):
    """a and b share seed 1, b and c seed 3; d makes something else of seed 1, and e shares none."""
    lines = {
        "a": made("a", s0="0.5", s1="0.51"),
        "b": made("b", s1="0.51", s3="0.53"),
        "c": made("c", s3="0.53"),
        "d": made("d", s1="0.510001", s0="0.5"),
    }
    lines = sum((lines[code] for code in order), made("e", s4="0.5"))
    same = same_float32(lines)
    assert same["a"] == same["b"] == same["c"] == max("abc", key=order.index)  # the latest
    assert (same["d"], same["e"]) == ("d", "e")


def test_relu_says_nothing_of_codes_with_other_accelerations():
    lines = [RUN | {"row": "relu", "seed": "0", "sources": x, "test_accuracy": "1"} for x in "ab"]
    assert same_float32(lines) == {"a": "a", "b": "b"}
    assert same_float32([*lines, *made("a", s1="2"), *made("b", s1="2")])["a"] == "b"


def test_float32_ties_codes_in_half_precision_too_unless_that_belies_it():
    def in_bfloat16(lines):
        settings = json.dumps(rows.ROWS["paper"] | {"precision": "mixed_bfloat16"})
        return [line | {"settings": settings} for line in lines]

    lines = made("a", s0="1") + made("b", s0="1")
    lines += in_bfloat16(made("a", s1="2") + made("b", s2="2"))
    assert analysis.same_code(lines)["a", "mixed_bfloat16"] == "b"
    same = analysis.same_code(lines + in_bfloat16(made("b", s1="3")))
    assert same["a", "float32"] == "b" and same["a", "mixed_bfloat16"] == "a"


@pytest.mark.parametrize("order", ["abc", "acb", "cab", "bca"])
def test_codes_that_belie_each_other_never_count_as_one(order):
    """b makes the same as a, and as c."""
    lines = {
        "a": made("a", s0="0.5", s1="0.51"),
        "b": made("b", s0="0.5", s3="0.53"),
        "c": made("c", s3="0.53", s1="0.999"),
    }
    same = same_float32([line for code in order for line in lines[code]])
    assert same["a"] != same["c"] and same["b"] in (same["a"], same["c"])


def test_a_row_whose_settings_have_changed_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setattr(study_runs, "setup", lambda: (None, None))
    run = experiments.Run("paper", 0, 20, "a", folder=tmp_path)
    (line,) = made(study_runs.code(), **{"0": "0.5"})
    assert experiments.is_done(run, [line])
    monkeypatch.setitem(rows.ROWS, "paper", rows.ROWS["paper"] | {"slope": 6})
    assert not experiments.is_done(run, [line])


def test_equal_differences_are_equal_though_floats_are_not():
    pair = analysis.Comparison(runs(0.81, 0.82), runs(0.8, 0.81))
    found = analysis.differences({"row": pair}, analysis.accuracy)["row"]
    assert make.difference_in_words(found) == "+0.0100 ± 0.0000"


def test_after_a_change_of_the_code_one_run_is_trained_anew(tmp_path, monkeypatch):
    """And the others if it ends in other numbers."""

    def train(run, processes):
        trained.append(run.seed)

    def result_of(directory):
        return made(code, **{str(trained[-1]): accuracy})[0]

    runs = [experiments.Run("paper", seed, 20, "a", folder=tmp_path) for seed in range(3)]
    monkeypatch.setattr(experiments.Run, "train", train)
    monkeypatch.setattr(experiments, "result_of", result_of)
    monkeypatch.setattr(study_runs, "code", lambda: code)
    monkeypatch.setattr(study_runs, "setup", lambda: (None, None))
    results = tmp_path / "results.csv"
    for code, accuracy, expected in (  # noqa: B007 - as train has it
        ("first", 0.5, [0, 1, 2]),
        ("first", 0.5, []),
        ("same", 0.5, [0]),
        ("another", 0.6, [0, 1, 2]),
    ):
        trained = []
        experiments.train(runs, 1, results)
        assert trained == expected
    assert len(read_csv(results)) == 7


@once
def test_two_processes_may_write_the_results(tmp_path):
    """Each waits for the other, and adds to what that one has written meanwhile."""
    results = tmp_path / "results.csv"
    code = f"""if True:
        import pathlib
        from study import experiments

        experiments.is_done = lambda *_: False
        line = {{"row": "relu", "test_accuracy": 0.5, "seed": 0, "epochs": 1, "data": "a"}}
        line["sources"] = "f"
        experiments.Run.train = lambda *_: print("trained", flush=True)
        experiments.result_of = lambda directory: line
        run = experiments.Run("relu", 0, 20, "a")
        experiments.train([run], 1, pathlib.Path({str(results)!r}))
    """
    with filelock.FileLock(f"{results}.lock"):
        command = [sys.executable, "-c", code]
        other = subprocess.Popen(command, cwd=study_runs.ROOT, stdout=subprocess.PIPE, text=True)
        assert "trained\n" in iter(other.stdout.readline, "")
        time.sleep(0.5)
        line = {"row": "paper", "test_accuracy": 0.6, "seed": 0, "epochs": 1, "data": "a"}
        write_csv(results, [line | {"sources": "f"}])
    other.communicate()
    assert other.returncode == 0
    assert [line["row"] for line in read_csv(results)] == ["paper", "relu"]


def test_runs_of_another_precision_are_others(tmp_path, monkeypatch):
    run = experiments.Run("relu", 0, 20, "a", "mixed_bfloat16", tmp_path)
    assert "--precision=mixed_bfloat16" in run.command()
    monkeypatch.setattr(study_runs, "setup", lambda: (None, None))
    monkeypatch.setattr(study_runs, "code", lambda: "f")
    assert run.directory != run._replace(precision="float32").directory
    columns = ("row", "seed", "epochs", "data", "test_accuracy", "sources", "settings")
    bfloat16 = json.dumps(run.settings)
    plain = json.dumps(rows.ROWS["relu"])
    lines = [("relu", 0, 20, "a", 0.5, "f", plain), ("relu", 0, 20, "a", 0.6, "f", bfloat16)]
    lines += [("paper", 0, 20, "a", 0.7, "f", bfloat16), ("relu", 1, 20, "a", 0.5, "f", plain)]
    write_csv(tmp_path / "results.csv", [dict(zip(columns, x, strict=True)) for x in lines])
    monkeypatch.setattr(analysis, "RESULTS", tmp_path / "results.csv")
    found = analysis.study()
    precisions = {row: {group[-1] for group, _ in x.runs} for row, x in found.items()}
    assert precisions == {"relu": {"float32", "mixed_bfloat16"}, "paper": {"mixed_bfloat16"}}
    assert analysis.differences(found, analysis.accuracy)["paper"][0] == pytest.approx(0.1)
    done = [line | {"device": None, "versions": None} for line in read_csv(analysis.RESULTS)]
    runs = run, run._replace(seed=1), run._replace(seed=1, precision="float32")
    assert [experiments.is_done(run, done) for run in runs] == [True, False, True]


def test_what_another_setup_has_made_is_not_done_here(tmp_path, monkeypatch):
    run = experiments.Run("paper", 0, 20, "a", folder=tmp_path)
    (line,) = made(study_runs.code(), **{"0": "0.5"})
    line |= {"device": "GPU", "versions": "keras 3"}
    for setup, done in ((("GPU", "keras 3"), True), (("CPU", "keras 3"), False)):
        monkeypatch.setattr(study_runs, "setup", lambda setup=setup: setup)
        assert experiments.is_done(run, [line]) == done


def runs(*accuracies, group="CPU"):
    """{(group, seed): line of the results} of the runs of a row."""
    return {(group, str(seed)): {"test_accuracy": a} for seed, a in enumerate(accuracies)}


def test_differences_are_paired_by_seed():
    plain = runs(0.80, 0.80, 0.80)
    rows = {
        "plain": analysis.Comparison(plain, {}),
        "three": analysis.Comparison(runs(0.81, 0.82, 0.83), plain),
    }
    rows |= {
        "one": analysis.Comparison(runs(0.81), plain),
        "alone": analysis.Comparison(runs(0.81), {}),
    }
    found = analysis.differences(rows, analysis.accuracy)
    assert set(found) == {"three", "one"}
    assert make.difference_in_words(found["three"]) == "+0.0200 ± 0.0248"
    assert make.difference_in_words(found["three"], digits=3) == "+0.020 ± 0.025"
    assert make.p_in_words(found["three"].p) == "0.074"
    assert make.difference_in_words(found["one"]) == "+0.0100"
    assert make.p_in_words(0.0002) == "< 0.001"
    assert make.difference_in_words(found.get("alone")) == make.p_in_words(None) == ""


def test_a_seed_counts_once_though_it_has_run_in_several_groups():
    """As the mean of the runs that both rows have: the runs of a seed are not independent."""
    ours = runs(0.7, 0.8) | runs(0.5, group="GPU")
    plain = runs(0.6, 0.6, 0.9) | runs(0.6, 0.9, group="GPU")
    pair = analysis.Comparison(ours, plain)
    once_each = analysis.Comparison(runs(0.6, 0.8), runs(0.6, 0.6))  # of seed 0, means
    found, expected = (
        analysis.differences({"row": x}, analysis.accuracy)["row"] for x in (pair, once_each)
    )
    assert found == pytest.approx(expected) and found.seeds == 2
    values = analysis.values_by_seed(pair, analysis.accuracy)
    np.testing.assert_allclose(values, [[0.6, 0.6], [0.8, 0.6]])


def test_the_data_with_the_most_rows_counts(tmp_path, monkeypatch):
    """Not that with the most runs: each change of the code is tied by new runs of the digits."""
    shared = {"epochs": 20, "test_accuracy": 0.5, "sources": "f"}
    lines = [{"row": "relu", "seed": seed, "data": "digits"} for seed in range(3)]
    lines += [{"row": row, "seed": 0, "data": "cifar10"} for row in ("relu", "paper")]
    write_csv(tmp_path / "results.csv", [line | shared for line in lines])
    monkeypatch.setattr(analysis, "RESULTS", tmp_path / "results.csv")
    assert analysis.study().keys() == {"relu", "paper"}


def test_the_unpaired_interval_is_that_of_welch():
    """By its formula: t of the Welch-Satterthwaite degrees of freedom, times the standard error."""
    ours, theirs = [0.61, 0.64, 0.66, 0.62], [0.60, 0.61, 0.64, 0.64]
    pair = analysis.Comparison(runs(*ours), runs(*theirs))
    found = analysis.differences({"row": pair}, analysis.accuracy)["row"]
    a, b = np.var(ours, ddof=1) / 4, np.var(theirs, ddof=1) / 4
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 3)
    half = scipy.special.stdtrit(freedom, 0.975) * np.sqrt(a + b)
    assert found.unpaired == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize(
    "shift, shown", [(0.0, True), (0.002, True), (0.0039, False), (0.1, False)]
)
def test_equivalence_is_shown_where_the_90_percent_interval_is_within_the_margin(shift, shown):
    values = shift + 0.002 * np.array([-1, 1, -0.5, 0.5, 0, 0, -1, 1])
    plain = runs(*[0.7] * 8)
    pair = analysis.Comparison(runs(*(0.7 + values)), plain)
    found = analysis.differences({"row": pair}, analysis.accuracy)["row"]
    half = scipy.special.stdtrit(7, 0.95) * values.std(ddof=1) / np.sqrt(8)
    assert (abs(values.mean()) + half < analysis.MARGIN) == shown  # what the test is to say
    assert (found.equivalence < 0.05) == shown
    few = analysis.Comparison(dict(list(pair.runs.items())[:7]), plain)
    assert analysis.differences({"row": few}, analysis.accuracy)["row"].equivalence is None


def test_a_row_is_compared_with_the_one_that_a_contrast_names(tmp_path, monkeypatch):
    columns = ("row", "seed", "epochs", "data", "test_accuracy", "sources")
    lines = [("relu", 0, 20, "a", 0.5, "f"), ("weight decay matched", 0, 20, "a", 0.6, "f")]
    lines += [("default", 0, 20, "a", 0.7, "f")]
    write_csv(tmp_path / "results.csv", [dict(zip(columns, x, strict=True)) for x in lines])
    monkeypatch.setattr(analysis, "RESULTS", tmp_path / "results.csv")
    for other, expected in (("relu", 0.2), ("weight decay matched", 0.1)):
        found = analysis.differences(analysis.study({"default": other}), analysis.accuracy)
        assert found["default"].mean == pytest.approx(expected)
    assert analysis.study({"AdamW, default": "AdamW, relu"}) == {}  # no run yet


def test_a_contrast_tells_cross_entropy_and_weights(tmp_path, monkeypatch):
    columns = ("row", "seed", "test_accuracy", "train_loss", "penalty", "squares")
    lines = [("relu", 0, 0.7, 0.5, 0.25, 1000), ("relu", 1, 0.7, 0.5, 0.25, 100)]
    lines += [("default", 0, 0.8, 0.5, 0.125, 500), ("default", 1, 0.8, 0.5, 0.125, 200)]
    lines += [("relu", 2, 0.7, 0.5, "", ""), ("default", 2, 0.8, 0.5, "", "")]  # of older code
    lines = [dict(zip(columns, line, strict=True)) for line in lines]
    shared = {"epochs": 20, "data": "a", "sources": "f"}
    write_csv(tmp_path / "results.csv", [line | shared for line in lines])
    monkeypatch.setattr(analysis, "RESULTS", tmp_path / "results.csv")
    line, *_ = make.contrasts_table().splitlines()[2:]
    assert line.startswith("| default − relu ") and "| 3 | +0.1000 ± 0.0000 |" in line
    assert line.endswith("| +0.125 ± 0.000 | 1.00 |")  # half and twice the weights


def test_p_is_corrected_for_the_number_of_rows():
    """By Holm: the smallest of three counts three times, the next twice, and none less than it."""
    plain = runs(0.5, 0.5, 0.5, 0.5)
    rows = {"little": analysis.Comparison(runs(0.49, 0.52, 0.48, 0.53), plain)}
    rows |= {"much": analysis.Comparison(runs(0.60, 0.61, 0.62, 0.63), plain)}
    rows |= {"some": analysis.Comparison(runs(0.5, 0.51, 0.52, 0.53), plain)}
    alone = {
        row: analysis.differences({row: pair}, analysis.accuracy)[row].p
        for row, pair in rows.items()
    }
    together = {row: x.p for row, x in analysis.differences(rows, analysis.accuracy).items()}
    assert alone["much"] < alone["some"] < alone["little"]
    assert together["much"] == pytest.approx(3 * alone["much"])
    assert together["some"] == pytest.approx(2 * alone["some"])
    assert together["little"] == pytest.approx(alone["little"])
    same = dict.fromkeys("abc", rows["some"])  # none may get a smaller p than the one before it
    values = {x.p for x in analysis.differences(same, analysis.accuracy).values()}
    assert values == {min(1, 3 * alone["some"])}


def test_what_a_line_lacks_is_no_number():
    assert analysis.loss({"train_loss": "0.5"}) == 0.5
    assert np.isnan(analysis.measure_of("penalty")({"penalty": ""}))
