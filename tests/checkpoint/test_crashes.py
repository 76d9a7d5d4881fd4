"""Interrupted saves: system errors, full disks, kills, and their leftovers."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoint.saving import NEW, OLD, found_at

import pytreesaver as pts
from pytreesaver._io import filesystem


@pytest.mark.parametrize("name", ["open_new", "reserve", "write", "sync_file", "sync_directory", "rename", "close"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EIO])
def test_a_system_error_is_reported_and_changes_nothing(monkeypatch, tmp_path, name, overwrite, durable, error):
    path = tmp_path / "runs" / "model"
    if overwrite:
        pts.save(OLD, path)
    before = sorted(tmp_path.rglob("*"))
    real = getattr(filesystem, name)
    for call in range(10):
        calls = iter(range(100))

        def failing(*args, calls=calls, call=call):
            if next(calls) == call:
                if name == "close":  # a network file system reports a failed write when the file is closed
                    real(*args)
                raise OSError(error, os.strerror(error))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(filesystem, name, failing)
            try:
                pts.save(NEW, path, overwrite=overwrite, durable=durable)
                break  # all calls have failed once
            except pts.CheckpointIOError as error_of_save:
                caught = error_of_save
        assert caught.errno == error
        assert str(path) in str(caught)
        assert os.strerror(error) in str(caught)
        # If only the final directory sync fails, the new checkpoint exists.
        if name == "sync_directory" and path.exists() and found_at(path, ".") == "new":
            shutil.rmtree(tmp_path / "runs")
            if overwrite:
                pts.save(OLD, path)
                before = sorted(tmp_path.rglob("*"))
        else:
            assert sorted(tmp_path.rglob("*")) == before
            assert not overwrite or found_at(path, ".") == "old"
    else:
        pytest.fail("the save never succeeded")
    assert found_at(path, ".") == "new"


@pytest.mark.parametrize("name", ["open_new", "reserve", "write", "sync_file", "sync_directory", "rename", "close"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupt_after_any_system_call_loses_nothing(monkeypatch, tmp_path, name, overwrite):

    path = tmp_path / "model"
    real = getattr(filesystem, name)
    for call in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if overwrite:
            pts.save(OLD, path)
        calls = iter(range(100))

        def interrupted(*args, calls=calls, call=call):
            result = real(*args)
            if next(calls) == call:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(filesystem, name, interrupted)
            try:
                pts.save(NEW, path, overwrite=overwrite)
                break
            except KeyboardInterrupt:
                pass
        assert found_at(tmp_path, "model") in (("old", "new") if overwrite else (None, "new"))
    else:
        pytest.fail("the save never succeeded")


def test_threads_that_save_to_the_same_path_leave_one_checkpoint(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "model"
    for _ in range(10):
        shutil.rmtree(path, ignore_errors=True)
        with ThreadPoolExecutor(4) as executor:
            trees = [{"w": np.full(1000, i)} for i in range(8)]
            for future in [executor.submit(pts.save, tree, path, overwrite=True) for tree in trees]:
                future.result()
        assert len(set(pts.restore(path)["w"].tolist())) == 1
    pts.save(NEW, path, overwrite=True)
    assert len(list(path.iterdir())) == 2


needs_mounts = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a file system requires root on Linux"
)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@needs_mounts
def test_a_full_disk_is_reported_and_changes_nothing(small_disk):
    pts.save(OLD, small_disk / "model")
    before = sorted(small_disk.rglob("*"))
    large = {"w": np.zeros(1 << 20)}
    for attempt in (
        lambda: pts.save(large, small_disk / "other"),
        lambda: pts.save(large, small_disk / "model", overwrite=True),
    ):
        with pytest.raises(pts.CheckpointIOError, match="No space left on device") as caught:
            attempt()
        assert caught.value.errno == errno.ENOSPC
        assert sorted(small_disk.rglob("*")) == before
    assert found_at(small_disk, "model") == "old"


@needs_mounts
def test_a_read_only_file_system_is_reported(small_disk):
    pts.save(OLD, small_disk / "model")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for path in (small_disk / "other", small_disk / "model"):
        with pytest.raises(pts.CheckpointPermissionError, match=path.name) as caught:
            pts.save(NEW, path, overwrite=True)
        assert isinstance(caught.value, PermissionError)
    assert found_at(small_disk, "model") == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_reported(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(pts.CheckpointPermissionError, match="closed"):
        pts.save(NEW, tmp_path / "closed" / "model")


SAVE_REPEATEDLY = """
import sys
import numpy as np
import pytreesaver as pts
path = sys.argv[1]
for step in range(1_000_000):
    pts.save({"w": np.full(200_000, step), "step": step}, path, overwrite=True, durable=step % 2 == 0)
    print(step, flush=True)
"""


def test_killed_processes_leave_a_complete_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "model"
    for _ in range(4):
        command = [sys.executable, "-c", SAVE_REPEATEDLY, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            for _ in range(5):  # stop it, read, continue
                time.sleep(float(rng.uniform(0, 0.02)))
                process.send_signal(signal.SIGSTOP)
                tree = pts.restore(path)
                assert (tree["w"] == tree["step"]).all()
                process.send_signal(signal.SIGCONT)
            time.sleep(float(rng.uniform(0, 0.02)))
            process.kill()
        tree = pts.restore(path)
        assert (tree["w"] == tree["step"]).all()
        pts.verify(path)
    pts.save(NEW, path, overwrite=True)
    assert len(list(path.iterdir())) == 2  # the leftovers of the killed processes are removed


def test_a_reader_of_an_overwritten_checkpoint_reads_the_old_one(tmp_path):
    path = pts.save(OLD, tmp_path / "model")
    with pts.load_checkpoint(path) as opened:
        pts.save(NEW, path, overwrite=True)
        np.testing.assert_array_equal(opened["w"].read(), OLD["w"])
    np.testing.assert_array_equal(pts.load_variable(path, "w"), NEW["w"])


def test_an_index_with_the_data_of_another_checkpoint_is_corrupt(tmp_path):
    index = (pts.save(OLD, tmp_path / "one") / "index.json").read_bytes()
    path = pts.save({"w": OLD["w"] + 1, "step": 1}, tmp_path / "two")
    (path / "index.json").write_bytes(index)
    for verify in (True, False):
        with pytest.raises(pts.CorruptCheckpointError, match="belongs to another checkpoint"):
            pts.restore(path, verify=verify)


def test_a_checkpoint_that_is_overwritten_while_it_is_opened_is_opened_again(monkeypatch, tmp_path):

    path = pts.save(OLD, tmp_path / "model")
    real = filesystem.open_existing
    replacements = iter([{"step": 5}, {"step": 6}])

    def replaced_before_the_data_is_opened(file):
        if file.suffix == ".safetensors" and (tree := next(replacements, None)):
            with monkeypatch.context() as patch:
                patch.setattr(filesystem, "open_existing", real)
                pts.save(tree, path, overwrite=True)
        return real(file)

    monkeypatch.setattr(filesystem, "open_existing", replaced_before_the_data_is_opened)
    assert pts.restore(path) == {"step": 6}


def test_leftovers_of_a_crash_are_removed_but_not_files_of_a_live_writer(tmp_path):
    path = Path(pts.save(OLD, tmp_path / "model"))
    dead = path / "data-00000-of-00001-0123456789abcdef.safetensors"
    dead.write_bytes(b"half")
    alive = path / "data-00000-of-00001-fedcba9876543210.safetensors"
    users = path / "data-mine.safetensors"
    users.write_bytes(b"mine")
    with alive.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        pts.save(NEW, path, overwrite=True)
        assert not dead.exists()
        assert alive.exists()
    pts.save(OLD, path, overwrite=True)
    assert not alive.exists()
    assert users.read_bytes() == b"mine"


def test_the_next_save_removes_leftovers_of_a_killed_first_save(tmp_path):
    dead, alive = (tmp_path / f".pytreesaver-{digit * 16}.tmp" for digit in "01")
    users = tmp_path / ".pytreesaver-mine.tmp"
    for directory in (dead, alive, users):
        directory.mkdir()
        (directory / "data-00000-of-00001.safetensors").write_bytes(b"half")
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    pts.save(OLD, tmp_path / "model")
    assert (dead.exists(), alive.exists(), users.exists()) == (False, True, True)
    os.close(descriptor)
    pts.save(OLD, tmp_path / "other")
    assert not alive.exists()


def test_without_locks_nothing_is_lost_and_no_files_accumulate(monkeypatch, tmp_path):
    def no_locks(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(4):
        path = pts.save(NEW, tmp_path / "model", overwrite=True)
        assert found_at(path, ".") == "new"
        assert len(list(path.iterdir())) == 2


@pytest.mark.parametrize(
    "names",
    [
        ["data-train.safetensors"],
        ["data-00000-of-00001.safetensors"],
        ["index.json"],
        ["index.json", "data-train.safetensors", "README.md", "model.safetensors"],
    ],
)
def test_files_with_similar_names_are_never_replaced(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(pts.CheckpointExistsError, match=names[0]):
        pts.save(NEW, tmp_path, overwrite=True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(names, "{}")


SAVE_AT_EXIT = """
import atexit, sys
import numpy as np
import pytreesaver as pts
tree = {"w": np.arange(3 << 20)}
pts.save(tree, sys.argv[1] + "/before")
atexit.register(pts.save, tree, sys.argv[1] + "/at-exit")
"""


def test_a_save_works_while_the_interpreter_exits(tmp_path):
    finished = subprocess.run([sys.executable, "-c", SAVE_AT_EXIT, tmp_path], capture_output=True, check=False)
    assert finished.stderr == b""
    np.testing.assert_array_equal(pts.load_variable(tmp_path / "at-exit", "w"), np.arange(3 << 20))
