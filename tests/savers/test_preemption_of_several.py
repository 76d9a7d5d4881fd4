"""The last saves of several managers after a signal."""

import signal
import subprocess
import sys
import textwrap

import pytest

import pytreesaver as pts


@pytest.mark.parametrize("argument", ["save_on_signal=signal.SIGUSR1", "save_on_sigterm=True"])
@pytest.mark.parametrize("close_first", [False, True])
def test_every_manager_has_its_last_save(argument, close_first):
    number = signal.SIGTERM if "sigterm" in argument else signal.SIGUSR1
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(f"""
            import os, signal, numpy as np, pytreesaver as pts
            managers = [pts.CheckpointManager(name, save_interval_steps=100, {argument}) for name in "ab"]
            unused = pts.CheckpointManager("c", {argument})
            for manager in managers:
                manager.save(0, {{"w": np.ones(3)}})
            os.kill(os.getpid(), {int(number)})
            managers[0].save(2, {{"w": np.ones(3)}})
            if {close_first}:
                managers[0].close()
            managers[1].save(2, {{"w": np.ones(3)}})
            print("still running")
        """)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode == -number, finished.stderr
    assert finished.stdout == ""
    assert [pts.CheckpointManager(name, read_only=True).all_steps() for name in "ab"] == [[0, 2], [0, 2]]


def test_a_second_save_of_one_manager_does_not_wait_for_the_others():
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent("""
            import os, signal, numpy as np, pytreesaver as pts
            managers = [pts.CheckpointManager(name, save_on_signal=signal.SIGUSR1) for name in "ab"]
            for manager in managers:
                manager.save(0, {"w": np.ones(3)})
            os.kill(os.getpid(), signal.SIGUSR1)
            for step in (1, 2):
                managers[0].save(step, {"w": np.ones(3)})
            print("still running")
        """)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode == -signal.SIGUSR1, finished.stderr
    assert finished.stdout == ""


def test_a_sigterm_during_the_last_save_of_one_manager_leaves_the_others_the_grace_period():
    program = textwrap.dedent("""
        import os, signal, time, numpy as np, pytreesaver as pts
        from pytreesaver._savers import preemption
        preemption.GRACE_SECS = 1.0
        first, second = (pts.CheckpointManager(name, save_on_sigterm=True, block=True) for name in "ab")
        first.save(0, {"w": np.ones(3)})
        second.save(0, {"w": np.ones(3)}, progress=lambda *done: os.kill(os.getpid(), signal.SIGTERM))
        time.sleep(30)
    """)
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert finished.returncode == -signal.SIGTERM
