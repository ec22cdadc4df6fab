"""Many devices train what one trains: virtual ones of the CPU, and two processes."""

import itertools
import json
import operator
import os
import re
import socket
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from backends import BACKEND
from processes import ROOT, python

import gaaf  # noqa: F401  so that its models can be loaded
import main
from training import Mistake, batches, devices
from training.data import Data

SCRIPT = ROOT / "tests" / "losses.py"
# The last batch of an epoch has 8 images, or of 42 images 10. 4 devices can share 16 test images,
# but not 19.
FLAGS = ["--data=small.npz", "--depth=8", "--batch-size=16", "--epochs=2", "--learning-rate=1e-5"]

sharing = pytest.mark.skipif(BACKEND == "torch", reason="Keras shares batches on TF and JAX")


@pytest.fixture
def small(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (56, 32, 32, 3), dtype="uint8")
    y = np.arange(56) % 10
    np.savez(tmp_path / "small.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    np.savez(tmp_path / "odd.npz", x_train=x[:42], y_train=y[:42], x_test=x[37:], y_test=y[37:])
    return tmp_path


def figures(said, word):
    return [list(map(float, x.split())) for x in re.findall(rf"^{word} (.+)$", said, re.M)]


def require_same_training(said, one):
    """The losses of all steps, and of the tests, are equal but for rounding.

    The learning rate is a low one: Adam makes of a gradient that is only rounding a whole step.
    """
    for word, n, rtol in (("LOSS", 6, 5e-5), ("TEST", 2, 5e-4)):
        assert len(figures(said, word)) == len(figures(one, word)) == n
        np.testing.assert_allclose(figures(said, word), figures(one, word), rtol=rtol)


@sharing
@pytest.mark.parametrize(
    "devices, flags",
    [
        (2, ["--data=odd.npz", "--data-augmentation"]),
        pytest.param(4, [], marks=pytest.mark.slow),
    ],
)
def test_devices_train_as_one_does(devices, flags, small):
    said = {}
    for n in (1, devices):
        run = python(str(SCRIPT), str(n), *FLAGS, *flags, f"--output-dir=run{n}", cwd=small)
        assert run.returncode == 0, run.stderr
        said[n] = run.stdout
        config = json.loads((small / f"run{n}" / "config.json").read_text())
        assert config["stretches"][0]["devices"] == n
        assert ("which share each batch" in run.stdout) == (n > 1)
    require_same_training(said[devices], said[1])
    model = keras.models.load_model(small / f"run{devices}" / "final.keras")  # on one device
    assert model.predict(np.zeros((1, 32, 32, 3), "uint8"), verbose=0).shape == (1, 10)


@sharing
@pytest.mark.slow
def test_images_that_do_not_divide(small):
    """Of 42 training images 4 devices share 40. All 19 test images count, 16 or 15 and the rest."""
    flags = [*FLAGS, "--data=odd.npz", "--epochs=1", "--learning-rate=1e-9"]
    said = [python(str(SCRIPT), n, *flags, f"--output-dir={n}", cwd=small).stdout for n in "14"]
    (one,), (four,) = (figures(x, "TEST") for x in said)
    np.testing.assert_allclose(four, one, rtol=1e-4)


@sharing
@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(small):
    python(str(SCRIPT), "1", *FLAGS, "--epochs=1", "--output-dir=two", cwd=small)
    resumed = python(str(SCRIPT), "2", *FLAGS, "--output-dir=two", cwd=small)
    assert "Going on after epoch 1 of 2" in resumed.stdout, resumed.stderr


@sharing
def test_a_batch_that_does_not_divide_is_refused(small):
    run = python(str(SCRIPT), "4", *FLAGS, "--batch-size=18", "--output-dir=new", cwd=small)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines()[-1] == (
        "main.py: error: --batch-size: allowed with 4 devices is a multiple of 4, such as 16; "
        "received 18"
    )
    assert not (small / "new").exists()


def processes(small, *flags, script=SCRIPT):
    """Two processes of one device each that train together; what each said and ended with."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    begun = []
    for number in "01":
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": number,
        }
        command = [sys.executable, str(script), "1", *FLAGS, "--output-dir=two", *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command, cwd=small, env=environment, **pipes))
    said = [x.communicate(timeout=200) for x in begun]
    return [(x.returncode, *text) for x, text in zip(begun, said, strict=True)]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="Keras trains in several processes on JAX")
def test_two_processes_train_as_one_does(small):
    """The first waits for the other, which ends later. Else that one would abort."""
    late = small / "late.py"
    seconds = "3 * int(os.environ['KERAS_DISTRIBUTION_PROCESS_ID'])"
    late.write_text(f"{SCRIPT.read_text()}\nimport time\ntime.sleep({seconds})\nconsole.leave(0)\n")
    one = python(str(SCRIPT), "1", *FLAGS, "--output-dir=one", cwd=small).stdout
    for code, out, err in processes(small, script=late):
        assert code == 0, err
        require_same_training(out, one)
    history = (small / "two" / "history.csv").read_text()
    assert len(history.splitlines()) == 3
    np.testing.assert_allclose(
        keras.models.load_model(small / "two" / "final.keras").get_weights()[0],
        keras.models.load_model(small / "one" / "final.keras").get_weights()[0],
        atol=1e-4,
    )


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="Keras trains in several processes on JAX")
def test_two_processes_go_on(small):
    processes(small)
    (code, out, err), (other_code, *_) = processes(small, "--epochs=3")
    assert (code, other_code) == (0, 0), err
    assert "Going on after epoch 2 of 3" in out


@pytest.mark.skipif(BACKEND != "tensorflow", reason="which cannot")
def test_several_processes_are_refused_where_keras_cannot(small):
    environment = {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}
    run = python("-m", "main", *FLAGS, "--output-dir=new", cwd=small, **environment)
    assert (run.returncode, run.stdout) == (2, "")
    assert "main.py: error: KERAS_BACKEND: allowed for several processes is jax" in run.stderr
    assert not (small / "new").exists()


def test_what_processes_cannot_do_is_refused(monkeypatch):
    images, labels = np.zeros((40, 32, 32, 3), "uint8"), np.arange(40) % 10
    data = Data(images, labels, images[:15], labels[:15])
    devices.require_shareable(main.Settings(batch_size=16, gradient_histograms=True), data)
    with pytest.raises(
        Mistake, match=r"^data: allowed is at least one batch of 41 .*; received 40"
    ):
        devices.require_shareable(main.Settings(batch_size=41), data)
    monkeypatch.setattr(devices, "count", lambda: 16)
    with pytest.raises(Mistake, match=r"^data: .* 16 devices is at least 16 images .*; .* 15$"):
        devices.require_shareable(main.Settings(batch_size=16), data)
    monkeypatch.setattr(devices, "process", lambda: (1, 2))
    monkeypatch.setattr(devices, "count", lambda: 2)
    with pytest.raises(Mistake, match=r"^gradient_histograms: .* False; "):
        devices.require_shareable(main.Settings(batch_size=16, gradient_histograms=True), data)
    with pytest.raises(Mistake, match=r"^data: .* 2 devices can share evenly; received 15"):
        devices.require_shareable(main.Settings(batch_size=16), data)


def test_how_it_trains_here_is_told(monkeypatch):
    tensorflow = BACKEND == "tensorflow"
    for kind, n in (("CPU", 1), ("CPU", 2), ("GPU", 1), ("GPU", 2)):
        monkeypatch.setattr(devices, "kind", lambda kind=kind: kind)
        monkeypatch.setattr(devices, "count", lambda n=n: n)
        plain = tensorflow and (kind == "CPU" or n == 2)
        assert devices.jit_compile() == (False if plain else "auto")
        words = devices.compiler_in_words()
        assert ("XLA for the activations alone" in words) == plain
        kept = (kind, n) == ("GPU", 1) and not tensorflow
        assert ("images kept on the GPU" in words) == kept


def test_a_gpu_that_is_used_or_absent_is_not_told(graphics_card, monkeypatch):
    assert "pip install" in devices.unused_gpu()
    with monkeypatch.context() as patch:
        patch.setattr(devices, "kind", lambda: "GPU")
        assert devices.unused_gpu() is None
    for hidden in ("", "-1"):
        with monkeypatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", hidden)
            assert devices.unused_gpu() is None
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(devices.Path, "exists", lambda path: False)
    assert devices.unused_gpu() is None


def test_bfloat16_is_said_to_win_on_a_cpu_that_computes_with_it(monkeypatch):
    monkeypatch.setattr(devices, "on_one_cpu", lambda: True)
    monkeypatch.setattr(devices.Path, "exists", lambda path: True)
    for flag, wins in (("amx_bf16", True), ("avx512_bf16", True), ("avx512f", False)):
        cpuinfo = f"processor : 0\nflags : fpu {flag} sse\n"
        monkeypatch.setattr(devices.Path, "read_text", lambda path, text=cpuinfo: text)
        assert devices.bfloat16_wins() == wins
    monkeypatch.setattr(devices.Path, "exists", lambda path: False)  # as on macOS
    assert not devices.bfloat16_wins()


def forty_images():
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), "uint8")
    return Data(images, np.arange(40) % 10, images, np.arange(40) % 10)


@pytest.mark.parametrize("augmentation", [False, True])
def test_fit_gets_the_batches_of_the_settings(augmentation):
    data = forty_images()
    settings = main.Settings(batch_size=16, seed=3, data_augmentation=augmentation)
    drawn = batches.feed(settings, data, first_epoch=5)["x"]
    expected = batches.draw(data.x_train, data.y_train, 16, augmentation, seed=3, first_epoch=5)
    for (x, y), (x_expected, y_expected) in zip(drawn, itertools.islice(expected, 4), strict=False):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(x), x_expected)
        np.testing.assert_array_equal(y, y_expected)


@sharing
@pytest.mark.parametrize(
    "kind, n, processes, on_tensorflow, on_jax",
    [
        ("GPU", 1, 1, 1024, 1024),
        ("GPU", 2, 1, 1024, 1024),
        ("GPU", 8, 4, None, 256),  # a process hands over its part
        ("GPU", 3, 1, 39, 1022),  # 3 devices cannot share 40 images
        ("CPU", 3, 1, 36, 35),
        ("CPU", 4, 2, None, 24),
    ],
)
def test_the_devices_can_share_the_test_images_or_are_given_all(
    kind, n, processes, on_tensorflow, on_jax, monkeypatch
):
    tested = on_tensorflow if BACKEND == "tensorflow" else on_jax
    if tested is None:
        pytest.skip("Keras trains in several processes on JAX")
    for name, value in (("kind", kind), ("count", n), ("process", (0, processes))):
        monkeypatch.setattr(devices, name, lambda value=value: value)
    fed = batches.feed(main.Settings(batch_size=12 * n), forty_images())
    assert fed["validation_batch_size"] == tested


@pytest.mark.skipif(BACKEND == "tensorflow", reason="which keeps no images on the device")
@pytest.mark.parametrize("augmentation", [False, True])
def test_images_kept_on_the_device_make_the_same_batches(monkeypatch, augmentation):
    data = forty_images()
    settings = main.Settings(batch_size=16, data_augmentation=augmentation)
    here, there, compiled = [], [], []
    if BACKEND == "jax":
        import jax

        monkeypatch.setattr(jax, "jit", lambda f, jit=jax.jit: compiled.append(f) or jit(f))
    for drawn, kind in ((here, "CPU"), (there, "GPU")):
        monkeypatch.setattr(devices, "kind", lambda kind=kind: kind)
        drawn += itertools.islice(batches.feed(settings, data)["x"], 6)  # two epochs
    for (x, y), (kept, labels) in zip(here, there, strict=True):
        assert isinstance(x, np.ndarray) and not isinstance(kept, np.ndarray)
        np.testing.assert_array_equal(x, keras.ops.convert_to_numpy(kept))
        np.testing.assert_array_equal(y, labels)
    assert (operator.getitem in compiled) == (BACKEND == "jax")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="which draws the images of a GPU itself")
@pytest.mark.parametrize("augmentation", [False, True])
def test_tensorflow_draws_the_same_batches_for_a_gpu(augmentation, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (50, 32, 36, 3), dtype="uint8"), np.arange(50, dtype="int32") % 10
    settings = main.Settings(batch_size=16, data_augmentation=augmentation)
    import tensorflow as tf

    def from_tensor(images, *given, tf_gather=tf.gather, **named):
        assert tf.is_tensor(images)  # an array would be in the graph, which may have 2 GB at most
        return tf_gather(images, *given, **named)

    monkeypatch.setattr(tf, "gather", from_tensor)
    drawn = {}
    for kind in ("CPU", "GPU"):
        monkeypatch.setattr(devices, "kind", lambda kind=kind: kind)
        fed = batches.feed(settings, Data(x, y, x, y), first_epoch=2)
        drawn[kind] = list(itertools.islice(iter(fed["x"]), 9))  # two epochs, and one batch
        assert fed["steps_per_epoch"] == 4
        assert fed["validation_batch_size"] == (16 if kind == "CPU" else 1024)
    for (images, labels), (same_images, same_labels) in zip(*drawn.values(), strict=True):
        np.testing.assert_array_equal(same_images, images)
        np.testing.assert_array_equal(same_labels, labels)
        assert same_images.dtype == "uint8" and same_labels.dtype == "int32"


@pytest.mark.skipif(BACKEND != "torch", reason="whose devices Keras does not list")
def test_devices_of_pytorch_are_named(monkeypatch):
    for device, kind in (("cpu", "CPU"), ("cuda", "GPU"), ("mps", "MPS"), ("xpu", "XPU")):
        tensor = types.SimpleNamespace(device=types.SimpleNamespace(type=device))
        monkeypatch.setattr(devices.keras.ops, "zeros", lambda shape, tensor=tensor: tensor)
        assert devices.kind() == kind


def test_a_cpu_has_the_name_that_its_maker_gave_it(monkeypatch):
    monkeypatch.setattr(devices, "kind", lambda: "CPU")
    for text, name in (
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel\t: 1\n", "Some CPU @ 2 GHz"),
        ("processor\t: 0\nCPU part\t: 0xd40\n", "aarch64"),  # as on ARM
    ):
        monkeypatch.setattr(devices.Path, "read_text", lambda path, text=text: text)
        monkeypatch.setattr(devices.platform, "processor", lambda: "")
        monkeypatch.setattr(devices.platform, "machine", lambda: "aarch64")
        assert devices.name() == f"CPU: {name}"


def test_a_gpu_has_the_name_that_its_maker_gave_it(monkeypatch):
    monkeypatch.setattr(devices, "kind", lambda: "GPU")
    if BACKEND == "tensorflow":
        import tensorflow as tf

        monkeypatch.setattr(tf.config, "list_physical_devices", {"GPU": ["a", "b"]}.get)
        details = {"a": {"device_name": "Card A"}, "b": {"device_name": "Card B"}}
        monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
    elif BACKEND == "jax":
        import jax

        cards = [types.SimpleNamespace(device_kind=f"Card {x}") for x in "AB"]
        monkeypatch.setattr(jax, "devices", lambda: cards)
    else:
        import torch

        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card A")
    assert devices.name() == "GPU: Card A"
