"""The examples do what they say, run as a user runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytreesaver as pts

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name):
    finished = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", EXAMPLES / name], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_linear_regression_prints_the_same_numbers_in_a_new_process():
    for _ in range(2):  # again over what the first run left
        trained, saved, restored = run("linear_regression.py").splitlines()
        numbers = trained.removeprefix("trained: ")
        assert restored == f"restored: {numbers}"
        loss, w, b = map(float, re.findall(r"[-\d.]+e?[-\d]*", numbers.replace("[", "").replace("]", "")))
        assert loss < 1e-9
        assert abs(w - 1) < 1e-4
        assert abs(b - 1) < 1e-4
        assert saved == "saved to checkpoint/saver1.ckpt"
    assert pts.list_variables("checkpoint/saver1.ckpt") == [("W", (1,)), ("b", (1,))]


def test_digits_resumes_to_the_last_bit():
    lines = run("digits.py").splitlines()
    assert lines[-1] == "parameters and optimizer state are the same to the last bit"
    at_one_go = [line for line in lines[1:7] if line.startswith("epoch")]
    assert [line for line in lines[7:] if line.startswith("epoch")] == at_one_go
    assert float(at_one_go[-1].split()[2]) > 0.8
