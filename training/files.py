"""A run's directory: its lock, and its files, each whole or not there. No Keras."""

import contextlib
import csv
import os
import re
import shutil
from pathlib import Path

from training import Mistake

# All that a run writes into its directory.
FILES = ("config.json", "history.csv", "curves.png", "best.keras", "final.keras")
FOLDERS = ("checkpoints", "tensorboard")
UNFINISHED = ".unfinished_by_gaaf"  # a folder beside a file that is being written
# The names of the files that it writes into folders there, as regular expressions.
IN_FOLDERS = {
    "checkpoints": r"\d{4,}\.keras",
    "tensorboard": r"history\.out\.tfevents\..+",
    "tensorboard/gradients": r"epoch\d{4,}\.out\.tfevents\..+",
    f"checkpoints/{UNFINISHED}": ".+",
    UNFINISHED: ".+",
}


class CannotWrite(OSError):
    """A file cannot be written, as when the disk is full."""


@contextlib.contextmanager
def writing(path):
    """Raises `CannotWrite`, with the path, if the system refuses to write within it."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(error.errno, error.strerror or str(error), str(path)) from error


def replace_file(path, write):
    """Has `write(temporary_path)` write the file, then puts it in place as a whole."""
    path = Path(path)
    # It has a folder of its own, as Keras puts temporary files beside what it saves.
    folder = path.parent / UNFINISHED
    try:
        with writing(path):
            folder.mkdir(exist_ok=True)
            temporary = folder / path.name
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path, text):
    """Writes a text file."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(path, rows):
    """Writes dictionaries, by column, as a CSV file with a header; what a row lacks is empty."""

    def write(temporary):
        columns = dict.fromkeys(name for row in rows for name in row)
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)


def in_six_digits(value):
    """A number of the logs for the history; what else a callback puts there, as text."""
    try:
        return float(f"{value:.6g}")
    except (TypeError, ValueError):
        return str(value)


def read_csv(path):
    """The rows of a CSV file as dictionaries of text; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_history(path):
    """The rows of a history.csv, as numbers; nan for what is none."""
    return [{k: _number(v) for k, v in row.items()} for row in read_csv(path)]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return float("nan")


def plot_curves(path, settings, rows):
    """Draws loss and accuracy against the epoch, training dashed, as a .png file."""
    from matplotlib.figure import Figure

    other, label = "validation" if settings.validation else "test", settings.activation
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    quantities = [name for name in ("loss", "accuracy") if name in rows[-1]]
    (plots,) = figure.subplots(1, len(quantities), squeeze=False)
    for axes, quantity in zip(plots, quantities, strict=True):
        for prefix, split, line in (("", "train", "--"), ("val_", other, "-")):
            values = [row.get(prefix + quantity) for row in rows]
            epochs = [row["epoch"] for row in rows]
            axes.plot(epochs, values, f"C0{line}", marker=".", label=f"{label} {split}")
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=120))


@contextlib.contextmanager
def locked(directory):
    """Keeps other processes out of a run's directory; raises `Mistake` where one is in it."""
    import filelock

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"output_dir: the directory cannot be made: {error}") from error
    path = directory / ".lock"
    with writing(path):
        try:
            held = filelock.FileLock(path, timeout=0).acquire()
        except filelock.Timeout as error:
            raise Mistake(
                "output_dir: allowed is a directory that no other process trains in; "
                f"received '{directory}'"
            ) from error
    with held:
        yield


def own_files(folder, kind):
    """The files in a folder whose names are those of a kind of `IN_FOLDERS`."""
    pattern = re.compile(IN_FOLDERS[kind])
    found = (path for path in folder.glob("*") if pattern.fullmatch(path.name))
    return sorted(path for path in found if path.is_file())


def remove_run(directory):
    """Removes what a run has written into its directory, and nothing else; config.json last."""
    links = [directory / name for name in FOLDERS if (directory / name).is_symlink()]
    for link in links:  # to another disk perhaps: what lies there stays
        with writing(link):
            link.unlink()
    for kind in reversed(IN_FOLDERS):
        for path in own_files(directory / kind, kind):
            with writing(path):
                path.unlink()
        with contextlib.suppress(OSError):  # it is not there, or holds something of somebody else
            (directory / kind).rmdir()
    for name in reversed(FILES):
        with writing(directory / name):
            (directory / name).unlink(missing_ok=True)
