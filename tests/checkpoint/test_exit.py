"""Pending asynchronous saves when the program exits."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


def run_program(text):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    program = "import pytreesaver as pts, numpy as np, sys, threading, time\n" + textwrap.dedent(text)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SLOW = """
from pytreesaver._io import filesystem
real = filesystem.sync_file
def slow(descriptor):
    time.sleep(0.5)
    real(descriptor)
filesystem.sync_file = slow
"""


@pytest.mark.parametrize(
    "end", ["", "sys.exit(0)", "raise SystemExit", "threading.Thread(target=lambda: time.sleep(0.1)).start()"]
)
def test_a_pending_save_is_finished_when_the_program_exits(end):
    tree = "{str(i): np.full(400_000, i) for i in range(8)}"
    result = run_program(f"{SLOW}\npts.save_async({tree}, 'model')\n{end}")
    assert (result.returncode, result.stderr) == (0, "")
    assert_trees_equal(pts.restore("model"), {str(i): np.full(400_000, i) for i in range(8)})


def test_a_pending_save_is_finished_after_an_uncaught_exception():
    result = run_program(f"{SLOW}\npts.Saver().save({{'w': 1}}, 'run/model', 1, block=False)\n1 / 0")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr
    assert pts.restore(pts.latest_checkpoint("run")) == {"w": 1}


def test_a_save_that_fails_while_the_program_exits_is_logged():
    result = run_program(f"{SLOW}\npts.save({{'w': 1}}, 'model')\nfuture = pts.save_async({{'w': 1}}, 'model')\n")
    assert "the save of model failed, and its result was never retrieved" in result.stderr
    assert "CheckpointExistsError" in result.stderr


def test_a_save_that_starts_while_the_program_exits_is_completed():
    result = run_program("import atexit\natexit.register(pts.save_async, {'w': 1}, 'model')")
    assert (result.returncode, result.stderr) == (0, "")
    assert pts.restore("model") == {"w": 1}


def test_a_forked_process_does_not_wait_for_saves_of_its_parent():
    slow = textwrap.indent(SLOW, " " * 8)
    result = run_program(
        f"""
        import os, warnings
        warnings.simplefilter("ignore")
        {slow}
        saver = pts.Saver()
        saver.save({{"w": 1}}, "run/model", 1, block=False)
        child = os.fork()
        if not child:
            for expected in ("of which this process is a fork", "expected no other process"):
                try:
                    saver.save({{"w": 2}}, "run/model", 2)
                except pts.CheckpointError as error:
                    if expected not in str(error):
                        os._exit(8)
                else:
                    os._exit(9)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert pts.restore(pts.latest_checkpoint("run")) == {"w": 1}
