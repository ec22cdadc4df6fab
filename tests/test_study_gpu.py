"""What is timed of a step on a GPU, here on the CPU."""

import io

import keras
import pytest

jax_alone = pytest.mark.skipif(keras.backend.backend() != "jax", reason="it times JAX")


@pytest.mark.slow
@jax_alone
def test_a_job_times_main_and_both_loops(npz, monkeypatch, capfd):
    from study import gpu

    small = {"activation": "relu", "depth": 8, "batch_size": 64}
    monkeypatch.setitem(gpu.NETWORKS, "relu, a callback", small)
    for name, value in {"BATCH": 2, "SCANNED": 2, "ROUNDS": 1}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu.sys, "stdin", io.StringIO("\n"))
    times = gpu.times_of(gpu.Job("relu, a callback", "default", "float32"), str(npz), calls=2)
    assert list(times) == [
        "main.train, a step",
        "main.train, test of an epoch",
        "main.train, end of an epoch",
        "the step alone",
        "a step of a scan of 2",
    ]
    assert all(milliseconds > 0 for milliseconds in times.values())
    assert gpu.READY in capfd.readouterr().out


@jax_alone
def test_times_of_epochs_are_means():
    from study import gpu

    epochs = [[0.0, 4.0, 5.0], [7.0, 9.0, 12.0]]  # the begin of each, of its test, and its end
    assert gpu.times_of_epochs(epochs, steps=10) == {
        "main.train, a step": 300.0,
        "main.train, test of an epoch": 2000.0,
        "main.train, end of an epoch": 2000.0,
    }


@jax_alone
def test_all_jobs_compile_before_the_first_is_timed(tmp_path, monkeypatch):
    from study import gpu

    program = tmp_path / "study" / "gpu.py"
    program.parent.mkdir()
    program.write_text(
        "import os, sys, time\n"
        f"log = open({str(tmp_path / 'log')!r}, 'a', buffering=1)\n"
        "log.write('compiled\\n')\n"
        f"print({gpu.READY!r}, flush=True)\n"
        "sys.stdin.readline()\n"
        "log.write('timed\\n')\n"
        "flags = os.environ['XLA_FLAGS']\n"
        "print('{\"step\": 1.5}') if 'WHILE' in flags else sys.exit(1)\n"
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    jobs = [gpu.Job("relu", graphs, "float32") for graphs in ("default", "convolutions, loops")]
    assert list(gpu.time_all(jobs, [])) == [(jobs[1], {"step": 1.5})]  # the other has failed
    lines = (tmp_path / "log").read_text().split()
    assert lines == ["compiled", "compiled", "timed", "timed"]
