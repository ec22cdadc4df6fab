"""The files of a run: whole or not there, never another process', and CSV in and out."""

import errno
from pathlib import Path

import pytest

import main
from training import Mistake, files


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(files.CannotWrite, match="disk full") as caught:
        files.replace_file(path, fail)
    assert caught.value.filename == str(path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    files.replace_file(path, lambda temporary: temporary.write_text("after"))
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        function = getattr(files.os, name)
        monkeypatch.setattr(
            files.os, name, lambda *args, f=function: (done.append(f.__name__), f(*args))[1]
        )
    files.write_text(tmp_path / "file.txt", "text")
    assert done == ["fsync", "replace"]


def test_a_directory_in_use_is_refused(tmp_path):
    refused = pytest.raises(Mistake, match=r"^output_dir: allowed is .*; received ")
    with files.locked(tmp_path), refused, files.locked(tmp_path):
        pass
    with files.locked(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def acquire(lock):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(files.CannotWrite) as caught, files.locked(tmp_path):
        pass
    assert caught.value.filename == str(tmp_path / ".lock")


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    refused = pytest.raises(Mistake, match=r"^output_dir: the directory cannot be made: ")
    with refused, files.locked(tmp_path / "file" / "run"):
        pass


def test_remove_run_leaves_other_files(tmp_path):
    for name in files.FILES:
        (tmp_path / name).write_text("x")
    mine = ["notes.txt", "checkpoints/step_100000.pt", "checkpoints/best.keras"]
    mine += ["checkpoints/7.keras", "checkpoints/0001-mine-2.keras", "checkpoints/2024-01.keras"]
    mine += ["tensorboard/mine/events.1", "tensorboard/events_of_my_run.txt"]
    mine += ["tensorboard/gradients/epoch1_notes.txt", ".unfinished/thesis.txt"]
    mine += ["tensorboard/events.out.tfevents.1795880806.of_my_own"]
    mine += ["tensorboard/history.out.tfevents.old/a_folder.txt"]
    theirs = ["checkpoints/0001.keras", "checkpoints/12345.keras"]
    theirs += ["tensorboard/history.out.tfevents.1795880806.vm"]
    theirs += ["tensorboard/gradients/epoch0001.out.tfevents.1795880806.vm"]
    theirs += [f"{files.UNFINISHED}/0002.keras", f"checkpoints/{files.UNFINISHED}/0003.keras"]
    for name in (*mine, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    files.remove_run(tmp_path)
    files.remove_run(tmp_path)  # where there is none
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(map(Path.as_posix, left)) == sorted(mine)
    assert not (tmp_path / files.UNFINISHED).exists()
    assert not (tmp_path / "checkpoints" / files.UNFINISHED).exists()


def test_of_a_run_that_is_half_removed_config_json_is_left(tmp_path, monkeypatch):
    """By which it is known for a run."""
    removed = []
    monkeypatch.setattr(files.Path, "unlink", lambda path, **_: removed.append(path.name))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "0001.keras").touch()
    files.remove_run(tmp_path)
    assert removed[-1] == "config.json" and set(removed) == {*files.FILES, "0001.keras"}


def test_remove_run_takes_a_link_away_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "0001.keras").write_text("x")
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    files.remove_run(tmp_path)
    assert not (tmp_path / "checkpoints").is_symlink()
    assert (tmp_path / "disk" / "0001.keras").exists()


def test_what_cannot_be_removed_is_told(tmp_path, monkeypatch):
    def unlink(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.Path, "unlink", unlink)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "0001.keras").touch()
    with pytest.raises(files.CannotWrite, match="Permission denied"):
        files.remove_run(tmp_path)


def test_what_the_system_refuses_is_told_with_the_path(tmp_path):
    with pytest.raises(files.CannotWrite) as caught, files.writing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.filename, caught.value.errno) == (str(tmp_path / "a"), errno.ENOSPC)
    with pytest.raises(files.CannotWrite, match="only words"), files.writing(tmp_path / "a"):
        raise OSError("only words")


def test_a_history_is_read_as_it_was_written(tmp_path):
    rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 1e-7, "mse": 0.25}]
    files.write_csv(tmp_path / "history.csv", rows)
    first, second = files.read_history(tmp_path / "history.csv")
    assert second == rows[1]
    assert (first["epoch"], first["loss"]) == (1, 0.5) and first["mse"] != first["mse"]
    assert files.read_history(tmp_path / "absent.csv") == []


@pytest.mark.parametrize("columns", [("loss",), ("loss", "val_loss", "accuracy", "val_accuracy")])
def test_curves_are_drawn_of_what_there_is(columns, tmp_path):
    rows = [{"epoch": i} | dict.fromkeys(columns, 1 / i) for i in (1, 2)]
    files.plot_curves(tmp_path / "curves.png", main.Settings(validation=0.1), rows)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
