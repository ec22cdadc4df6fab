"""Kills runs at random moments, and fills the disk under them: pytest -m slow"""

import itertools
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import ROOT
from trainings import assert_same_run, flags

from training import files

pytestmark = pytest.mark.slow
KILLS = 30


def start(arguments, log):
    return subprocess.Popen(
        [sys.executable, ROOT / "main.py", *arguments], stdout=log, stderr=subprocess.STDOUT
    )


def finish(arguments, log):
    assert start(arguments, log).wait() == 0, log.name


def wait_for(condition, process):
    while not condition() and process.poll() is None:
        time.sleep(0.0005)


def kill(process, directory, rng, while_writing):
    """Kills a run some time after its first file; returns whether it still ran, and wrote."""
    began, history = time.time(), directory / "history.csv"
    wait_for(lambda: history.exists() and history.stat().st_mtime > began, process)
    time.sleep(rng.uniform(0, 0.5))
    unfinished = directory / "checkpoints" / files.UNFINISHED
    if while_writing:
        wait_for(unfinished.exists, process)
        time.sleep(rng.uniform(0, 0.02))
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running, unfinished.exists()


def test_runs_survive_being_killed(npz, tmp_path, count):
    """Half of the kills come at a random moment, half while a checkpoint is being written."""
    rng = random.Random(0)
    settings = {"epochs": 2 * KILLS, "activation": "relu"}
    killed = writing = 0
    with open(tmp_path / "log", "w") as log:
        finish(flags(npz, tmp_path / "whole", **settings), log)
        for run in itertools.count():
            directory = tmp_path / f"killed{run}"
            arguments = flags(npz, directory, **settings)
            while killed < KILLS:
                running, wrote = kill(start(arguments, log), directory, rng, killed % 2)
                if not running:
                    break
                killed += 1
                writing += wrote
            finish(arguments, log)
            assert_same_run(tmp_path / "whole", directory)
            if killed == KILLS:
                break
    assert writing > 0
    count("kills survived", killed)
    count("of them while a checkpoint was being written", writing)


def test_a_second_ctrl_c_stops_at_once(npz, tmp_path):
    code = f"""if True:
        import signal, time, keras, main

        raises = signal.default_int_handler
        signal.signal(signal.SIGINT, raises)  # a shell may ignore it in the background

        class Slow(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                print("within a step", flush=True)
                while signal.getsignal(signal.SIGINT) != raises:
                    time.sleep(0.05)
                print("the first was received, and waits for the step", flush=True)
                time.sleep(60)

        settings = main.Settings(depth=8, data={str(npz)!r}, output_dir={str(tmp_path / "run")!r})
        try:
            main.train(settings, callbacks=[Slow()])
        finally:
            print("the caller goes on", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert any("within a step" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert any("waits for the step" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert "the caller goes on" in process.stdout.read()


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of 10 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", path]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_costs_no_more_than_the_epoch(npz, small_disk, tmp_path, count):
    settings = {"epochs": 4, "activation": "relu"}
    arguments = flags(npz, small_disk / "run", **settings)
    survived = []
    with open(tmp_path / "log", "w+") as log:
        finish(flags(npz, tmp_path / "whole", **settings), log)
        for room in (0, 100, 600, 1300, 2000, 2600, 3300, 4000):  # in kB
            (small_disk / "other").write_bytes(bytes(10 * 2**20 - 20_000 - room * 1000))
            log.truncate(log.seek(0))
            code = start(arguments, log).wait()
            log.seek(0)
            last = log.read().splitlines()[-1]
            assert code == 1 and last.startswith("main.py: error: cannot write"), last
            assert "No space left" in last, last
            survived.append("no epoch" not in last)
            (small_disk / "other").unlink()  # room again
            finish(arguments, log)
            assert_same_run(tmp_path / "whole", small_disk / "run")
            shutil.rmtree(small_disk / "run")
    assert any(survived)
    count("full disks survived", len(survived))
