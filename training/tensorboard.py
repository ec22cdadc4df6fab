"""TensorBoard logs of a run, without TensorFlow, which Keras' own callback imports."""

import contextlib
import time

import keras

import gaaf
from training import Mistake
from training.files import own_files, writing


def write_event(writer, epoch, summary):
    """Adds a scalar or a histogram of an epoch to a file of TensorBoard's."""
    from tensorboardX.proto.event_pb2 import Event

    writer.write_event(Event(step=epoch, wall_time=time.time(), summary=summary))


class TensorBoard(keras.callbacks.Callback):
    """Writes the history as TensorBoard logs. Another callback adds to the history first."""

    def __init__(self, folder, rows):
        super().__init__()
        self.folder, self.rows, self.writer, self.logged = folder, rows, None, 0

    def on_train_begin(self, logs=None):
        for path in own_files(self.folder, "tensorboard"):
            with writing(path):
                path.unlink()
        self._log_new_rows()

    def on_epoch_end(self, epoch, logs=None):
        self._log_new_rows()

    def close(self):
        """Closes the file: Windows removes none that is open. All rows are on the disk by now."""
        if self.writer:
            with contextlib.suppress(OSError):
                self.writer.close()

    def _log_new_rows(self):
        for row in self.rows[self.logged :]:
            self._log(row)
        self.logged = len(self.rows)

    def _log(self, row):
        """Adds a row, at once: SummaryWriter's thread hides errors."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import scalar

        with writing(self.folder):
            if self.writer is None:
                self.folder.mkdir(exist_ok=True)
                self.writer = EventsWriter(str(self.folder / "history"))
            for column, value in row.items():
                split = "test" if column.startswith("val_") else "train"
                tag = f"{column.removeprefix('val_')}/{split}"
                tag = column if column.startswith("learning_rate") else tag
                if column != "epoch" and isinstance(value, float):
                    write_event(self.writer, row["epoch"], scalar(tag, value))
            self.writer.flush()


class GradientHistograms(keras.callbacks.Callback):
    """Adds histograms of each activation's gradient to the TensorBoard logs, after every epoch.

    That is φ_new′, by which the activation multiplies the gradient on its way back. It is taken at
    the inputs that the activation gets from some raw images.
    """

    def __init__(self, folder, images, whole):
        super().__init__()
        self.folder, self.images, self.whole = folder, images, whole

    def on_epoch_end(self, epoch, logs=None):
        if not self.whole.is_whole:
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import histogram

        normalization, network = self.model.layers  # as `require_activations` requires
        inputs_of = inputs_of_activations(network)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            writer = EventsWriter(str(self.folder / f"epoch{epoch + 1:04}"))
            for name, inputs in inputs_of(normalization(self.images)).items():
                gradient = gaaf.gradient(network.get_layer(name).activation, inputs)
                values = keras.ops.convert_to_numpy(keras.ops.cast(gradient, "float32"))
                write_event(writer, epoch + 1, histogram(f"gradient/{name}", values, "auto", 64))
            writer.close()


def require_activations(model):
    """Raises `Mistake` unless a model is built like those of `build`, as the histograms need it."""
    first, *others = model.layers
    network = others[-1] if others else first
    layers = [x for x in getattr(network, "layers", ()) if "_act" in x.name]
    is_built_so = (
        len(others) == 1
        and isinstance(first, keras.layers.Rescaling)
        and not isinstance(network, keras.Sequential)
        and all(isinstance(layer, keras.layers.Activation) for layer in layers)
    )
    if not layers or not is_built_so:
        raise Mistake(
            "gradient_histograms: allowed is True with the networks of training.model.build alone; "
            f"received True with {model.name}"
        )


def inputs_of_activations(network):
    """A model from the input of a ResNet to the inputs of its activations, by layer."""
    inputs = {layer.name: layer.input for layer in network.layers if "_act" in layer.name}
    return keras.Model(network.input, inputs)
