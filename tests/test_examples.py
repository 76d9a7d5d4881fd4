"""The examples work as described when run as a user runs them."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal

EXAMPLES = Path(__file__).parent.parent / "examples"


def command(name, *arguments):
    return [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / name), *arguments]


def run(name, *arguments, env=os.environ, **options):
    env = {name: value for name, value in env.items() if name != "PYTHONUNBUFFERED"}  # users run with buffered output
    finished = subprocess.run(
        command(name, *arguments), capture_output=True, text=True, check=False, env=env, **options
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_linear_regression_prints_the_same_numbers_in_a_new_process():
    pts.save({"old": 1}, "checkpoint/saver1.ckpt")  # a run overwrites that of an earlier one
    trained, saved, predicted, restored, predicted_again = run("linear_regression.py").splitlines()
    numbers = trained.removeprefix("trained: ")
    assert restored == f"restored: {numbers}"
    loss, w, b = map(float, re.findall(r"[-\d.]+e?[-\d]*", numbers.replace("[", "").replace("]", "")))
    assert loss < 1e-9
    assert abs(w - 1) < 1e-4
    assert abs(b - 1) < 1e-4
    assert saved == "saved to checkpoint/saver1.ckpt"
    assert predicted_again == predicted
    assert pts.list_variables("checkpoint/saver1.ckpt") == [("W", (1,)), ("b", (1,))]


def test_digits_resumes_bit_for_bit():
    lines = run("digits.py").splitlines()
    assert lines[-1] == "parameters and optimizer state are bit-for-bit identical"
    uninterrupted = [line for line in lines[1:7] if line.startswith("epoch")]
    assert [line for line in lines[7:] if line.startswith("epoch")] == uninterrupted
    assert float(uninterrupted[-1].split()[2]) > 0.8


def test_the_loop_of_orbax_resumes_with_our_engine():
    first = run("inside_orbax.py", "inside", "--steps", "150").splitlines()
    second = run("inside_orbax.py", "inside", "--steps", "600").splitlines()
    assert first[:2] == ["starting from step 0", "kept by Orbax: [100, 149]"]
    assert second[:2] == ["starting from step 150", "kept by Orbax: [500, 599]"]
    weights = [float(number) for number in re.findall(r"-?\d+\.\d+", second[2])]
    assert np.allclose(weights, [1, -2, 3], atol=0.1)
    pts.verify("inside/599")


def digest_line(output):
    (line,) = [line for line in output.splitlines() if "digest of parameters" in line]
    return line


SETTINGS = ("--steps", "1000", "--save-every", "20")


def test_train_loop_killed_at_random_times_reaches_the_same_parameters():
    compilation_cache = {"JAX_COMPILATION_CACHE_DIR": "compiled", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | compilation_cache
    uninterrupted = run("train_loop.py", "uninterrupted", *SETTINGS, env=environment)
    assert "starting from step 0" in uninterrupted
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    import optax  # must be imported to restore its state classes  # noqa: F401

    starts = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            command("train_loop.py", "killed", *SETTINGS),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        starts.append(int(process.stdout.readline().removeprefix("starting from step ")))
        time.sleep(chance.uniform(0.2, 1.0))
        process.send_signal(number)
        process.communicate(timeout=60)
    resumed = run("train_loop.py", "killed", *SETTINGS, env=environment)
    starts.append(int(re.search(r"starting from step (\d+)", resumed)[1]))
    assert starts == sorted(starts), (seed, starts)
    assert starts[-1] > 0, (seed, starts)
    assert digest_line(resumed) == digest_line(uninterrupted), (seed, starts)
    expected, killed = (pts.restore(pts.latest_checkpoint(directory)) for directory in ("uninterrupted", "killed"))
    assert_trees_equal(killed, expected)
    assert "ckpt-1000 (step 1000): kept: newest, last 3" in resumed


def test_a_checkpoint_of_tensorflow_is_trained_on():
    lines = run("tensorflow_to_jax.py").splitlines()
    assert lines[0].startswith("variables: beta1_power, beta2_power, dense/bias, dense/bias/Adam")
    restored, trained = (float(line.rpartition(" ")[2]) for line in lines[1:3])
    assert lines[1].startswith("restored: step 30, loss 0.02")
    assert trained < restored / 10
    state = pts.restore("checkpoint/from_tensorflow")
    assert state["opt"][0].count == 60
