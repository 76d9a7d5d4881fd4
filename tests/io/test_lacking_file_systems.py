"""File systems that lack a call, say that a call failed that worked, or add files of their own."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import message_of

import pytreesaver as pts
from pytreesaver._io import filesystem

TREE = {"w": np.arange(1000.0), "step": 3}


def failing(monkeypatch, name, code, *, when=lambda *arguments: True, after=False):
    real = getattr(os, name)

    def call(*arguments, **options):
        if not when(*arguments):
            return real(*arguments, **options)
        if after:
            real(*arguments, **options)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, call)


def save_everything():
    pts.save(TREE, "model", overwrite=True)
    with pts.CheckpointManager("run", max_to_keep=1) as manager:
        for step in range(3):
            manager.save(step, TREE)
    assert pts.restore("model")["step"] == pts.restore("run")["step"] == 3
    assert manager.all_steps() == [2]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_directories_that_cannot_be_synced(monkeypatch, code):
    failing(monkeypatch, "fsync", code)
    save_everything()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no such call")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_space_that_cannot_be_reserved(monkeypatch, code):
    failing(monkeypatch, "posix_fallocate", code)
    save_everything()


@pytest.mark.parametrize("name", ["posix_fallocate", "fsync"])
def test_other_errors_of_these_calls_are_errors(monkeypatch, name):
    failing(monkeypatch, name, errno.EIO)
    with pytest.raises(pts.CheckpointIOError, match="Input/output error"):
        pts.save(TREE, "model")


def test_a_rename_that_worked_although_it_says_that_nothing_is_there(monkeypatch):
    failing(monkeypatch, "rename", errno.ENOENT, after=True)
    save_everything()
    pts.save({"step": 4}, "model", overwrite=True)
    assert pts.restore("model") == {"step": 4}
    assert pts.remove_checkpoint("model")


def test_a_rename_that_failed_is_an_error(monkeypatch):
    failing(monkeypatch, "rename", errno.ENOENT)
    with pytest.raises(pts.CheckpointIOError):
        pts.save(TREE, "model")
    assert os.listdir() == []


@pytest.mark.skipif(sys.platform != "linux", reason="pwritev is not used")
def test_files_that_can_only_be_written_from_the_beginning_are_explained(monkeypatch):
    failing(monkeypatch, "pwritev", errno.ESPIPE)
    message = message_of(pts.CheckpointIOError, lambda: pts.save(TREE, "model"))
    assert "Illegal seek" in message
    assert "cannot write at any position of a file" in message
    assert "save to a local disk and copy the checkpoint" in message


@pytest.mark.parametrize("name", [".DS_Store", "._index.json", ".nfs000000000123", "Thumbs.db", ".ipynb_checkpoints"])
def test_files_of_the_system_do_not_keep_a_checkpoint_for_ever(name):
    manager = pts.CheckpointManager("run", max_to_keep=1, block=True)
    manager.save(1, TREE)
    added = Path("run/ckpt-1", name)
    if name == ".ipynb_checkpoints":
        added.mkdir()
        added = added / "index-checkpoint.json"
    added.write_text("x")
    assert pts.restore("run/ckpt-1")["step"] == 3
    manager.save(2, TREE)
    assert manager.all_steps() == [2]
    assert not Path("run/ckpt-1").exists()
    assert list(Path("run").glob("*.tmp")) == []


def test_other_files_keep_a_checkpoint():
    pts.save(TREE, "model")
    Path("model/notes.txt").write_text("mine")
    with pytest.raises(pts.CheckpointExistsError, match=r"also contains other files: notes.txt"):
        pts.remove_checkpoint("model")


DEBRIS = ".pytreesaver-0123456789abcdef.tmp"
SAVES = {
    "Saver.save without a step": lambda: pts.Saver().save({"w": 1}, "run/model"),
    "Saver.save": lambda: pts.Saver().save({"w": 1}, "run/model", 2),
    "CheckpointManager.save": lambda: pts.CheckpointManager("run", block=True).save(2, {"w": 1}),
    "save over a checkpoint": lambda: pts.save({"w": 1}, "run/model", overwrite=True),
    "update_checkpoint_state": lambda: pts.update_checkpoint_state("run", "run/model"),
}


@pytest.mark.parametrize("name", SAVES)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_leftovers_of_an_interrupted_save_are_removed_by_every_save(name, kind):
    pts.Saver().save({"w": 1}, "run/model")
    debris = Path("run", DEBRIS)
    if kind == "file":
        debris.write_bytes(b"half")
    else:
        debris.mkdir()
        (debris / "data-00000-of-00001.safetensors").write_bytes(b"half")
    SAVES[name]()
    assert not debris.exists()


def test_a_pin_is_synced_before_it_is_acknowledged(monkeypatch):
    manager = pts.CheckpointManager("run", block=True)
    manager.save(1, TREE)
    synced = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def call(descriptor, real=real):
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            return real(descriptor)

        monkeypatch.setattr(os, name, call)
    manager.pin(1)
    assert str(Path("run/ckpt-1").absolute()) in synced


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_rename_that_worked_although_it_says_that_it_failed(monkeypatch, code):
    failing(monkeypatch, "rename", code, after=True)
    save_everything()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_rename_is_explained(monkeypatch, code):
    failing(monkeypatch, "rename", code)
    assert "the file system cannot rename" in message_of(pts.CheckpointIOError, lambda: pts.save(TREE, "model"))
    assert os.listdir() == []


@pytest.mark.skipif(sys.platform != "linux", reason="fdatasync is not used")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_sync_files_is_explained(monkeypatch, code):
    failing(monkeypatch, "fdatasync", code)
    assert "pass durable=False" in message_of(pts.CheckpointIOError, lambda: pts.save(TREE, "model"))
    pts.save(TREE, "model", durable=False)
    assert pts.restore("model")["step"] == 3


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EINVAL], ids=errno.errorcode.get)
def test_files_that_cannot_be_mapped_are_read(monkeypatch, code):
    pts.save(TREE, "model")

    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filesystem, "map_file", refuse)
    assert pts.restore("model", mmap=True)["w"].sum() == TREE["w"].sum()


def test_a_directory_that_was_made_although_it_says_that_it_exists(monkeypatch):
    failing(monkeypatch, "mkdir", errno.EEXIST, after=True, when=lambda path, *rest: ".pytreesaver-" in str(path))
    save_everything()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no such call")
def test_space_that_cannot_be_reserved_where_writes_are_sequential_is_no_error_by_itself(monkeypatch):
    failing(monkeypatch, "posix_fallocate", errno.ESPIPE)
    save_everything()


@pytest.mark.parametrize("name", ["@eaDir", ".AppleDouble", "Icon\r", "thumbs.db", ".index.json.swp", ".directory"])
def test_more_files_of_the_system(name):
    manager = pts.CheckpointManager("run", max_to_keep=1, block=True)
    manager.save(1, TREE)
    Path("run/ckpt-1", name).touch()
    manager.save(2, TREE)
    assert manager.all_steps() == [2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_write_that_fails_when_the_file_is_closed_is_an_error(monkeypatch):
    def is_written(descriptor):
        where = os.readlink(f"/proc/self/fd/{descriptor}")
        flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("flags:")[1].split()[0]
        return where.endswith(".safetensors") and int(flags, 8) & os.O_ACCMODE == os.O_RDWR

    with monkeypatch.context() as patch:
        failing(patch, "close", errno.EDQUOT, when=is_written, after=True)
        with pytest.raises(pts.CheckpointIOError, match="Disk quota exceeded"):
            pts.save(TREE, "model", durable=False)
    assert os.listdir() == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no such call")
def test_a_file_that_is_larger_than_the_free_space_takes_none_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "posix_fallocate", lambda *arguments: pytest.fail("the disk would be full for a moment"))
    descriptor = filesystem.open_new(tmp_path / "file")
    with pytest.raises(OSError, match="No space left on device"):
        filesystem.reserve(descriptor, 1 << 60)
    os.close(descriptor)
