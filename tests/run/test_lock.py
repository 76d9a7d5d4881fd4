"""Only one process at a time can save into a run directory."""

import gc
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver._run import lock

OTHER = """
import sys, pytreesaver as pts
saver = pts.Saver(max_to_keep=1)
saver.save({"w": 1}, "run/model", 1)
print("saved", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process():
    process = subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "saved\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_cannot_save_until_the_first_one_ends(other_process):
    saver = pts.Saver()
    with pytest.raises(pts.ConcurrentWriterError, match=rf"run: .* found process {other_process.pid} on "):
        saver.save({"w": 2}, "run/model", 2)
    with pytest.raises(pts.ConcurrentWriterError, match=f"process {other_process.pid}"):
        pts.CheckpointManager("run").save(2, {"w": 2})
    assert pts.restore(pts.latest_checkpoint("run")) == {"w": 1}
    assert pts.CheckpointManager("run", checkpoint_name="model").restore() == {"w": 1}
    assert sorted(p.name for p in Path("run").iterdir() if p.is_dir()) == ["model-1"]
    saver.save({"w": 2}, "another/model", 2)
    other_process.kill()
    other_process.wait()
    saver.save({"w": 2}, "run/model", 2)
    assert pts.restore(pts.latest_checkpoint("run")) == {"w": 2}


def test_closing_or_collecting_a_saver_releases_the_lock():
    def other_can_save(step):
        program = f"import pytreesaver as pts; pts.Saver().save({{'w': 1}}, 'run/model', {step})"
        return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0

    first, second = pts.Saver(), pts.Saver()
    first.save({"w": 1}, "run/model", 1)
    second.save({"w": 1}, "run/model", 2)
    first.close()
    assert not other_can_save(3)
    second.save({"w": 1}, "elsewhere/model", 3)
    assert other_can_save(3)
    second.save({"w": 1}, "run/model", 4)
    assert not other_can_save(5)
    del second
    assert other_can_save(5)


def test_reading_the_lock_file_does_not_release_the_lock():
    saver = pts.Saver()
    saver.save({"w": 1}, "run/model", 1)
    shutil.copytree("run", "backup")
    program = "import pytreesaver as pts; pts.Saver().save({'w': 1}, 'run/model', 2)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ConcurrentWriterError" in result.stderr
    saver.close()


def test_a_deleted_lock_file_is_recreated():
    saver = pts.Saver()
    saver.save({"w": 1}, "run/model", 1)
    Path("run/.pytreesaver.lock").unlink()
    saver.save({"w": 2}, "run/model", 2)
    program = "import pytreesaver as pts; pts.Saver().save({'w': 1}, 'run/model', 3)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ConcurrentWriterError" in result.stderr
    saver.close()
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_an_interrupt_while_locking_releases_the_lock(monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    saver = pts.Saver()
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "truncate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            saver.save({"w": 1}, "run/model", 1)
    assert saver.save({"w": 1}, "run/model", 1) == "run/model-1"


def test_a_lock_collected_while_another_is_acquired_is_released(monkeypatch):
    class Cycle:
        pass

    cycle = Cycle()
    Path("a").mkdir()
    Path("b").mkdir()
    cycle.lock, cycle.self = lock.RunLock(Path("a")), cycle
    collected = cycle.lock.identity
    del cycle
    real = lock._open_lock_file
    monkeypatch.setattr(lock, "_open_lock_file", lambda directory: (gc.collect(), real(directory))[1])
    held = lock.RunLock(Path("b"))
    assert held.identity in lock._claims
    assert collected not in lock._claims
    held.release()


def test_savers_of_one_process_can_share_a_directory():
    savers = [pts.Saver(max_to_keep=2) for _ in range(4)]

    def work(i):
        for step in range(5):
            savers[i].save({"w": step}, f"run/model_{i}", step, latest_filename=f"state_{i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert pts.latest_checkpoint("run", f"state_{i}") == Path(f"run/model_{i}-4")
    assert len([p for p in Path("run").iterdir() if p.is_dir()]) == 8
