"""Progress reports: a callback is called with byte counts; a bar appears only on a terminal."""

import itertools
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver import _progress
from pytreesaver.testing import assert_trees_equal

TREE = {
    "large": np.arange(5 << 20, dtype=np.float32),
    "small": {str(i): np.full(7, i) for i in range(300)},
    "step": 7,
}
NBYTES = TREE["large"].nbytes + sum(a.nbytes for a in TREE["small"].values()) + 8


class Calls(list):
    def __call__(self, done, total):
        self.append((done, total))

    def check(self, total=NBYTES):
        assert {t for _, t in self} == {total}
        assert all(a < b for (a, _), (b, _) in itertools.pairwise(self))
        assert self[-1] == (total, total)
        assert len(self) > 2


def save_synchronously(path, progress):
    pts.save(TREE, path, progress=progress)


def save_asynchronously(path, progress):
    pts.save_async(TREE, path, progress=progress).result()


def save_with_a_saver(path, progress):
    pts.Saver().save(TREE, path, progress=progress)


def save_with_a_manager(path, progress):
    with pts.CheckpointManager(f"{path}-run") as manager:
        manager.save(1, TREE, progress=progress)


@pytest.mark.parametrize("save", [save_synchronously, save_asynchronously, save_with_a_saver, save_with_a_manager])
def test_save_reports_the_bytes_written(save):
    calls = Calls()
    save("model", calls)
    calls.check()


@pytest.mark.parametrize(
    "options", [{}, {"verify": False}, {"mmap": True}, {"mmap": True, "verify": False}, {"as_numpy": True}], ids=str
)
def test_restore_reports_the_bytes_read(options):
    pts.save(TREE, "model")
    calls = Calls()
    assert_trees_equal(pts.restore("model", progress=calls, **options), TREE)
    if options.get("mmap") and not options.get("verify", True):
        assert calls[-1] == (NBYTES, NBYTES)
    else:
        calls.check()


def test_partial_and_cast_restores_report_stored_bytes():
    pts.save(TREE, "model")
    calls = Calls()
    pts.restore("model", like={"large": np.zeros(5 << 20, np.float64)}, only="large", cast=True, progress=calls)
    calls.check(TREE["large"].nbytes)


def test_verify_and_statistics_report_progress():
    pts.save(TREE, "model")
    for work in (pts.verify, lambda path, progress: pts.load_checkpoint(path).statistics(progress=progress)):
        calls = Calls()
        work("model", progress=calls)
        calls.check()


def test_nothing_is_reported_for_zero_bytes():
    def divide(done, total):
        return done / total

    pts.save({}, "nothing", progress=divide)
    assert pts.restore("nothing", progress=divide) == {}


def test_the_callback_may_read_checkpoints():
    other = pts.save({"w": np.zeros(1000)}, "other")
    calls = Calls()

    def look(done, total):
        calls(done, total)
        pts.verify(other)
        pts.restore(other, progress=True)

    pts.save({"w": np.zeros(500_000)}, "model", progress=look)
    assert calls[-1] == (4_000_000, 4_000_000)


def test_copy_counts_every_byte_once():
    path = pts.save({"w": np.zeros(3_000_000), "v": np.zeros(10)}, "model")
    calls = Calls()
    pts.copy_checkpoint(path, "copy", progress=calls)
    assert calls[-1] == (24_000_080, 24_000_080)
    assert any(done < 24_000_000 for done, _ in calls)


def test_a_terminal_error_does_not_fail_the_operation(monkeypatch):
    monkeypatch.setattr(_progress, "_DISPLAY_DELAY", 0.0)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=print, flush=lambda: None))  # without isatty
    path = pts.save({"w": np.zeros(3_000_000)}, "model", progress=True)

    def fail(*_, **__):
        raise RuntimeError("no terminal")

    monkeypatch.setattr("rich.progress.Progress.start", fail)
    assert pts.restore(path, progress=True)["w"].size == 3_000_000


def test_an_error_in_the_callback_ends_the_save_and_leaves_no_files():
    def stop(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pts.save(TREE, "model", progress=stop)
    assert os.listdir() == []


@pytest.mark.parametrize("work", [lambda p: pts.save(TREE, "model", progress=p), lambda p: pts.verify("m", progress=p)])
def test_invalid_progress_is_refused_before_anything_is_written(work):
    pts.save({"w": 1}, "m")
    with pytest.raises(
        TypeError, match=r"progress: expected True, False or a function of \(done, total\), found 'yes'"
    ):
        work("yes")
    with pytest.raises(TypeError, match="progress"):
        pts.restore("m", progress=1)
    assert os.listdir() == ["m"]


PROGRAM = """
import logging, sys, time
import pytreesaver._progress as progress
from pytreesaver._io.parallel import advance
logging.basicConfig(level=logging.INFO, format="%(message)s")
progress._DISPLAY_DELAY = 0.0
with progress.reporting(True, "saving \\x1b[31mred", 4_000_000):
    for i in range(3):
        advance(1_000_000)
        time.sleep(0.15)
        print("printed", i, flush=True)
        logging.info("logged %d", i)
print("end")
"""


def test_no_bar_is_shown_without_a_terminal():
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert finished.stdout == "printed 0\nprinted 1\nprinted 2\nend\n"
    assert finished.stderr == "logged 0\nlogged 1\nlogged 2\n"


def in_terminal(*arguments, **options):
    """Run a program in a terminal of 100 columns. Return its output and its exit code."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(arguments, **{"stdout": slave, **options}, stderr=slave, env=environment) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                chunk = os.read(master, 1 << 16)
            except OSError:  # all other ends are closed
                break
            if not chunk:
                break
            written += chunk
    os.close(master)
    return written.decode(), process.returncode


def test_the_bar_stays_below_other_output_and_is_removed_at_the_end():
    written, code = in_terminal(sys.executable, "-c", PROGRAM)
    assert code == 0
    lines = written.split("\n")
    assert "/4.0 MB" in written
    assert "saving \\x1b[31mred" in written
    for i in range(3):
        for text in (f"printed {i}\r", f"logged {i}\r"):
            assert any(line.endswith(text) and line[: -len(text)].endswith(("\x1b[2K", "", "\r")) for line in lines)
            # The bar is erased before each line and drawn again below it.
            (line,) = [line for line in lines if line.endswith(text)]
            assert line in (text, *(f"{before}{text}" for before in [line[: -len(text)]] if before.endswith("\x1b[2K")))
    assert lines[-2].endswith("\x1b[1A\x1b[2Kend\r")


def test_redirected_stdout_still_goes_to_the_file():
    with open("printed", "wb") as printed:
        written, code = in_terminal(sys.executable, "-c", PROGRAM, stdout=printed)
    assert code == 0
    assert Path("printed").read_text() == "printed 0\nprinted 1\nprinted 2\nend\n"
    assert "printed" not in written
    assert "logged 2" in written
