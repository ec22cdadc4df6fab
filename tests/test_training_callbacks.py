"""What happens while `fit` trains: signals, a NaN loss, TensorBoard, and what is told meanwhile."""

import re
import signal
import threading

import keras
import pytest
from backends import once
from trainings import contents, stops_with

import main
from training import Mistake, callback_states, callbacks, model, tensorboard
from training.console import Interrupted, NotFinite
from training.data import load
from training.tensorboard import TensorBoard


@pytest.mark.parametrize("is_program", [True, False])
def test_signals_are_caught_once_and_given_back(is_program, monkeypatch):
    monkeypatch.setattr(callbacks.console, "is_program", lambda: is_program)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), callbacks.StopOnSignal() as stop:
        stop.on_train_batch_begin(0)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT"):
            stop.on_train_batch_begin(1)
        with pytest.raises(Interrupted):
            stop.on_test_batch_begin(0)
        # The second one ends the program at once, in C++ code as well; a script goes on to its
        # `finally`, as Ctrl-C raises KeyboardInterrupt there.
        second = (signal.SIG_DFL, signal.SIG_DFL) if is_program else before
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == second
        # No step follows, and so the end raises: a loop around the training is to end as well.
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    "error, line", [(Interrupted(signal.SIGINT), "\n"), (NotFinite(), "\n"), (Mistake(), "")]
)
def test_the_line_of_the_progress_bar_is_ended_on_a_terminal(error, line, monkeypatch, capsys):
    for terminal in (True, False):
        monkeypatch.setattr(callbacks.sys.stdout, "isatty", lambda terminal=terminal: terminal)
        with pytest.raises(type(error)), callbacks.StopOnSignal():
            raise error
        assert capsys.readouterr().out == (line if terminal else "")


def test_without_signals_in_a_thread_it_trains_too():
    ended = []

    def listen():
        with callbacks.StopOnSignal() as stop:
            stop.on_train_batch_begin(0)
            ended.append(True)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert ended == [True]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_told_with_its_place(loss):
    """Of its first step, in whatever order Keras' threads tell of the steps."""
    stop = callbacks.StopOnNotFinite()
    stop.on_epoch_begin(4)
    for step in (0, 2, 3, 5, 4):
        stop.on_train_batch_end(step, {"loss": 1e30 if step < 4 else loss})
        stop.on_train_batch_begin(6)  # it waits to hear of the second step
    with pytest.raises(NotFinite, match="in epoch 5, step 5"):
        stop.on_train_batch_end(1, {"loss": 1e30})
        stop.on_train_batch_begin(7)
    with pytest.raises(NotFinite, match="in epoch 5, step 5"):
        stop.on_epoch_end(4, {"val_loss": 1.0})
    stop.on_epoch_begin(4)
    stop.on_epoch_end(4, {"loss": 1.0, "val_loss": 1e30})
    with pytest.raises(NotFinite, match=r"the test loss became .* after epoch 5"):
        stop.on_epoch_end(4, {"loss": 1.0, "val_loss": loss})


def test_the_time_to_compile_is_told_once_whatever_threads_do(capsys):
    progress = callbacks.Progress(epochs=2)
    for epoch in (0, 1):
        progress.on_epoch_begin(epoch)
        for step in (0, 1):
            progress.on_train_batch_begin(step)
        for step in (1, 0, 2):
            progress.on_train_batch_end(step)
    assert len(re.findall(r"\d s\n", capsys.readouterr().out)) == 1


def test_the_time_that_is_left_is_that_of_the_whole_run(monkeypatch, capsys):
    clock = iter([100.0, 110.0, 117.0, 3700.0, 3700.0, 7300.0, 7300.0])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    progress = callbacks.Progress(epochs=4)
    progress.on_epoch_begin(0)
    progress.on_train_batch_begin(0)
    progress.on_train_batch_end(0)
    progress.on_train_batch_begin(1)
    progress.on_train_batch_end(1)
    progress.on_epoch_begin(1)
    progress.on_epoch_begin(3)
    assert capsys.readouterr().out.splitlines() == [
        "Compiling the training step … 7 s",
        "Time left for the whole run: about 3 h 0 min",
        "Time left for the whole run: about 1 h 0 min",
    ]


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_only_one_sets_the_learning_rate(callback, schedule):
    settings, name = main.Settings(schedule=schedule), type(callback).__name__
    callback_states.require_compatible(settings, [keras.callbacks.EarlyStopping()])
    if schedule == "constant":
        callback_states.require_compatible(settings, [callback])
    else:
        with pytest.raises(Mistake, match=f"^schedule: allowed with {name} is 'constant'"):
            callback_states.require_compatible(settings, [callback])


def events(folder):
    """The events in the TensorBoard files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("*")):
        data = path.read_bytes()
        while data:  # each record: its length, 4 bytes of checksum, the event, 4 more
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(folder):
    """{(epoch, tag): value} in the TensorBoard files of a folder."""
    return {
        (event.step, value.tag): pytest.approx(value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    }


def test_tensorboard_has_the_whole_history_after_a_stop(tmp_path):
    rows = [{"epoch": 1, "learning_rate": 0.1, "loss": 2.0, "val_loss": 3.0, "mse": 0.5}]
    for epochs in (2, 3):  # two processes
        logs = TensorBoard(tmp_path, rows)
        logs.on_train_begin()
        rows.append({"epoch": epochs, "learning_rate": 0.1, "loss": 1.0, "val_loss": 2.0})
        logs.on_epoch_end(epochs - 1)
    assert len(list(tmp_path.iterdir())) == 1
    seen = scalars(tmp_path)
    assert len(list(events(tmp_path))) == 1 + len(seen) == 1 + 5 + 3 + 3 - 1  # and a head
    assert seen[1, "learning_rate"] == 0.1 and seen[1, "mse/train"] == 0.5
    assert (seen[3, "loss/train"], seen[3, "loss/test"]) == (1.0, 2.0)


@once
def test_gradient_histograms_are_those_of_the_activations(npz, tmp_path):
    flags = ["--depth=8", f"--data={npz}", "--shape=none", f"--output-dir={tmp_path / 'run'}"]
    main.main([*flags, "--epochs=1", "--gradient-histograms"])
    main.main([*flags, "--epochs=2", "--gradient-histograms"])  # goes on, and loses none
    seen = list(events(tmp_path / "run" / "tensorboard" / "gradients"))
    values = [(event.step, value) for event in seen for value in event.summary.value]
    assert [step for step, _ in values] == [1] * 7 + [2] * 7
    for _, value in values:
        assert value.tag.startswith("gradient/") and "_act" in value.tag
        # Half of φ′ + s, which is 0 + 1 or 1 + 1; 16 images, of which every value counts.
        assert (value.histo.min, value.histo.max) == (0.5, 1)
        assert value.histo.num % 16 == 0
    assert next(iter(values))[1].histo.num == 16 * 32 * 32 * 16


@once
def test_gradient_histograms_of_a_network_of_ones_own_are_refused(run, capsys, monkeypatch):
    """Before --overwrite removes the run that is there."""
    directory, arguments = run
    before = contents(directory)
    layers = [keras.Input((32, 32, 3)), keras.layers.Flatten()]
    layers += [keras.layers.Dense(10, "softmax", name="classifier")]
    monkeypatch.setattr(model, "build", lambda *_: keras.Sequential(layers, name="mine"))
    message = stops_with(2, [*arguments, "--overwrite", "--gradient-histograms"], capsys)
    assert "--gradient-histograms: allowed is True with the networks of" in message
    assert message.endswith("received True with mine\n")
    assert contents(directory) == before


def test_only_networks_like_those_of_build_have_gradient_histograms():
    resnet = model.build(main.Settings(depth=8), load("digits")).layers[-1]
    image = keras.Input(resnet.input_shape[1:])
    rescaling = keras.layers.Rescaling(1.0)
    leaky = keras.layers.LeakyReLU(name="stem_act")
    tensorboard.require_activations(keras.Sequential([image, rescaling, resnet]))
    for refused in (
        keras.Model(image, resnet(image)),  # its first layer is the input
        keras.Sequential([image, rescaling, keras.Model(image, leaky(image))]),
        keras.Sequential([image, rescaling, keras.Sequential([image, leaky])]),
        keras.Sequential([image, rescaling, keras.layers.Flatten()]),
        keras.Sequential([image, resnet]),
        keras.Sequential([image, resnet, rescaling]),
    ):
        with pytest.raises(Mistake, match=r"^gradient_histograms: allowed is True with "):
            tensorboard.require_activations(refused)


def test_what_a_run_would_undo_is_refused():
    with pytest.raises(Mistake, match=r"^callbacks: allowed are all but BackupAndRestore, "):
        callback_states.require_compatible(main.Settings(), [keras.callbacks.BackupAndRestore("x")])
