"""The last save after a SIGTERM."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from helpers import run_program

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


def tree(step):
    return {"w": np.full(100, step), "step": step}


LOOP = """
import sys, time, numpy as np, pytreesaver as pts
manager = pts.CheckpointManager("run", save_interval_steps=1000, save_on_sigterm=True)
for step in range(10**6):
    time.sleep(0.002)
    saved = manager.save(step, {"w": np.full(100, step), "step": step})
    if step == 50:
        print("ready", flush=True)
    if len(sys.argv) > 1 and step == 60:
        time.sleep(60)
"""


def start_loop(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_after_sigterm_the_process_saves_once_and_ends():
    process = start_loop()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert "SIGTERM: the process will end after the next save" in errors
    manager = pts.CheckpointManager("run")
    steps = manager.all_steps()
    assert steps[0] == 0
    assert steps[1] >= 50
    assert_trees_equal(manager.restore(), tree(steps[1]))


def test_a_second_sigterm_ends_a_process_that_does_not_save():
    process = start_loop("sleep")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert pts.CheckpointManager("run").all_steps() == [0]


def test_after_sigterm_the_pending_save_is_finished(tmp_path):
    program = """
    import os, signal, time, threading, numpy as np, pytreesaver as pts
    from pytreesaver._io import filesystem
    real = filesystem.sync_file
    def slow(descriptor):
        time.sleep(0.3)
        real(descriptor)
    filesystem.sync_file = slow
    manager = pts.CheckpointManager("run", save_on_sigterm=True)
    manager.save(5, {"w": 5})
    os.kill(os.getpid(), signal.SIGTERM)
    manager.save(5, {"w": 5})
    raise AssertionError("not reached")
    """

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert result.returncode == -signal.SIGTERM
    assert "not reached" not in result.stderr
    assert pts.CheckpointManager("run").restore() == {"w": 5}


def test_the_previous_handler_is_restored_and_called(caplog):
    before = signal.getsignal(signal.SIGTERM)
    calls = []
    signal.signal(signal.SIGTERM, lambda *args: calls.append(args[0]))
    own = signal.getsignal(signal.SIGTERM)
    try:
        with pts.CheckpointManager("run", save_on_sigterm=True, save_interval_steps=100) as manager:
            manager.save(0, tree(0))
            with caplog.at_level(logging.WARNING):
                os.kill(os.getpid(), signal.SIGTERM)
            assert calls == []
            assert manager.should_save(1)
            manager.save(1, tree(1))
            assert calls == [signal.SIGTERM]
            assert manager.all_steps() == [0, 1]
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def run_and_expect_sigterm(program):
    return run_program(program, returncode=-signal.SIGTERM)


SLOW_SAVES = """
from pytreesaver._savers import preemption
from pytreesaver._io import filesystem
preemption.GRACE_SECS = 1.0
real = filesystem.sync_file
def slow(descriptor):
    time.sleep(0.8)
    real(descriptor)
"""


@pytest.mark.parametrize("block", [True, False])
def test_the_last_save_may_exceed_the_grace_period_and_ignores_more_signals(block):
    run_and_expect_sigterm(f"""{SLOW_SAVES}
import threading
manager = pts.CheckpointManager("run", save_on_sigterm=True, block={block}, save_interval_steps=100)
manager.save(0, {{"w": 0}})
filesystem.sync_file = slow
os.kill(os.getpid(), signal.SIGTERM)
threading.Timer(1.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
manager.save(1, {{"w": 1}})
raise AssertionError("not reached")
""")
    assert pts.CheckpointManager("run").restore() == {"w": 1}


def test_an_earlier_failed_save_does_not_prevent_the_last_one():
    errors = run_and_expect_sigterm("""
    from pytreesaver._io import filesystem
    manager = pts.CheckpointManager("run", save_on_sigterm=True)
    manager.save(0, {"w": 0})
    manager.wait_until_finished()
    real = filesystem.reserve
    def refuse(*args):
        raise OSError(28, "No space left on device")
    filesystem.reserve = refuse
    manager.save(1, {"w": 1})
    while not manager._session.queue.pending.done():
        time.sleep(0.01)
    filesystem.reserve = real
    os.kill(os.getpid(), signal.SIGTERM)
    manager.save(2, {"w": 2})
    raise AssertionError("not reached")
    """)
    assert "the save before the last one failed" in errors
    assert pts.CheckpointManager("run").restore() == {"w": 2}


@pytest.mark.parametrize("block", [True, False])
def test_a_failed_last_save_is_logged(block):
    errors = run_and_expect_sigterm(f"""
    from pytreesaver._io import filesystem
    manager = pts.CheckpointManager("run", save_on_sigterm=True, block={block})
    manager.save(0, {{"w": 0}})
    manager.wait_until_finished()
    def refuse(*args):
        raise OSError(28, "No space left on device")
    filesystem.reserve = refuse
    os.kill(os.getpid(), signal.SIGTERM)
    manager.save(1, {{"w": 1}})
    raise AssertionError("not reached")
    """)
    assert "No space left on device" in errors
    assert pts.CheckpointManager("run").restore() == {"w": 0}


def test_the_previous_handler_is_restored_when_the_last_manager_is_closed():
    before = signal.getsignal(signal.SIGTERM)
    first = pts.CheckpointManager("a", save_on_sigterm=True)
    second = pts.CheckpointManager("b", save_on_sigterm=True)
    first.close()
    assert signal.getsignal(signal.SIGTERM) is not before
    second.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_that_saves_from_another_thread_ends_too():
    errors = run_and_expect_sigterm("""
    import threading
    manager = pts.CheckpointManager("run", save_on_sigterm=True, block=True, max_to_keep=None)
    def work():
        for step in range(10**6):
            manager.save(step, {"w": step})
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while worker.is_alive():
        worker.join(0.1)
    """)
    assert errors.count("SIGTERM: ") == 1
    manager = pts.CheckpointManager("run")
    assert manager.restore() == {"w": manager.all_steps()[-1]}


def test_a_signal_during_a_save_that_is_not_due_makes_it_the_last_save():
    run_and_expect_sigterm("""
    manager = pts.CheckpointManager("run", save_on_sigterm=True, save_interval_steps=100)
    manager.save(0, {"w": 0})
    manager.wait_until_finished()
    real = manager.should_save
    def should_save(step):
        due = real(step)
        if step == 50:
            manager.should_save = real
            os.kill(os.getpid(), signal.SIGTERM)
        return due
    manager.should_save = should_save
    manager.save(50, {"w": 50})
    raise AssertionError("not reached")
    """)
    assert pts.CheckpointManager("run").restore() == {"w": 50}


def test_a_forked_child_has_its_own_last_save():
    run_program(
        """
    import warnings
    warnings.simplefilter("ignore")
    parent = pts.CheckpointManager("parent", save_on_sigterm=True)
    child = os.fork()
    if not child:
        manager = pts.CheckpointManager("child", save_on_sigterm=True, save_interval_steps=100)
        manager.save(0, {"w": 0})
        os.kill(os.getpid(), signal.SIGTERM)
        manager.save(1, {"w": 1})
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGTERM
    """,
        returncode=0,
    )
    assert pts.CheckpointManager("child").restore() == {"w": 1}


def test_an_error_in_a_with_block_after_the_signal_is_logged():
    errors = run_and_expect_sigterm("""
    with pts.CheckpointManager("run", save_on_sigterm=True) as manager:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("my own")
    """)
    assert "RuntimeError: my own" in errors


@pytest.mark.parametrize(
    ("argument", "number"),
    [
        ("signal.SIGUSR1", signal.SIGUSR1),
        ("[signal.SIGUSR1, signal.SIGTERM]", signal.SIGUSR1),
        ("[signal.SIGUSR1, signal.SIGTERM]", signal.SIGTERM),
        ("10, save_on_sigterm=True", signal.SIGTERM),
    ],
)
def test_the_signals_to_save_on_can_be_chosen(argument, number):
    errors = run_program(
        f"""
    manager = pts.CheckpointManager("run", save_on_signal={argument}, save_interval_steps=100)
    manager.save(0, {{"w": 0}})
    assert not manager.preemption_requested
    os.kill(os.getpid(), {int(number)})
    assert manager.preemption_requested
    assert manager.should_save(1)
    manager.save(1, {{"w": 1}})
    print("not reached", file=sys.stderr)
    """,
        returncode=-number,
    )
    assert f"{number.name}: the process will end after the next save" in errors
    assert pts.CheckpointManager("run").restore() == {"w": 1}


def test_the_process_may_run_longer_after_a_signal_that_is_not_sigterm():
    run_program(
        """
    from pytreesaver._savers import preemption
    preemption.GRACE_SECS = 0.1
    manager = pts.CheckpointManager("run", save_on_signal=signal.SIGUSR1, save_interval_steps=100)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.5)
    manager.save(1, {"w": 1})
    """,
        returncode=-signal.SIGUSR1,
    )
    assert pts.CheckpointManager("run").restore() == {"w": 1}


def test_a_previous_handler_of_the_signal_lets_the_loop_go_on():
    run_program(
        """
    seen = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    manager = pts.CheckpointManager("run", save_on_signal=signal.SIGUSR1, save_interval_steps=100, block=True)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == []
    manager.save(1, {"w": 1})
    assert seen == [signal.SIGUSR1]
    assert not manager.preemption_requested
    assert manager.save(2, {"w": 2}) is None
    """,
        returncode=0,
    )


def test_closing_a_manager_restores_the_handlers_that_no_other_one_needs():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    first = pts.CheckpointManager("run", save_on_signal=[signal.SIGUSR1, signal.SIGTERM])
    second = pts.CheckpointManager("other", save_on_sigterm=True)
    first.close()
    assert signal.getsignal(signal.SIGUSR1) == handlers[signal.SIGUSR1]
    assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    second.close()
    assert signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"save_on_sigterm": signal.SIGUSR1}, TypeError, "save_on_sigterm: .*pass save_on_signal for another signal"),
        ({"save_on_sigterm": "yes"}, TypeError, "save_on_sigterm: expected True or False, found 'yes'"),
        ({"save_on_signal": True}, TypeError, "save_on_signal: expected a signal such as"),
        ({"save_on_signal": "SIGUSR1"}, TypeError, "save_on_signal: expected one or more signals"),
        ({"save_on_signal": ["SIGUSR1"]}, TypeError, "save_on_signal: expected a signal such as"),
        ({"save_on_signal": 4711}, ValueError, "save_on_signal: expected a signal that a process can handle"),
        ({"save_on_signal": signal.SIGKILL}, ValueError, "save_on_signal: expected a signal that a process can handle"),
    ],
)
def test_something_else_than_a_signal_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        pts.CheckpointManager("run", **arguments)


def test_real_time_signals_are_handled():
    number = signal.SIGRTMIN + 3
    caught = []
    signal.signal(number, lambda *arguments: caught.append(arguments))
    try:
        with pts.CheckpointManager("run", save_on_signal=number, save_interval_steps=100, block=True) as manager:
            os.kill(os.getpid(), number)
            manager.save(2, tree(2))
        assert caught
    finally:
        signal.signal(number, signal.SIG_DFL)
