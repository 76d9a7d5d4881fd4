"""Tests of `inspect_checkpoint`: its output matches that of TensorFlow, and errors have nonzero exit codes.

The expected outputs were recorded with TensorFlow 2.
"""

import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings

import pytreesaver as pts
from pytreesaver.inspect_checkpoint import main
from pytreesaver.testing import pytrees

SEED = {"W": np.float32([1.9907261]), "b": np.float32([0.50778466])}

DEFAULT = """\
W (DT_FLOAT) [1]
b (DT_FLOAT) [1]

# Total number of params: 2
"""
ALL_TENSORS = """\
tensor: W (float32) [1]
[1.9907261]
tensor: b (float32) [1]
[0.50778466]
# Total number of params: 2
"""
TENSOR_NAME = """\
tensor: W (float32) [1]
[1.9907261]
# Total number of params: 2
"""
EXCLUDED = """\
tensor: _CHECKPOINTABLE_OBJECT_GRAPH (string) []
tensor: model/layer_with_weights-0/bias/.ATTRIBUTES/VARIABLE_VALUE (float32) [8]
tensor: model/layer_with_weights-0/bias/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE (float32) [8]
tensor: model/layer_with_weights-0/bias/.OPTIMIZER_SLOT/optimizer/v/.ATTRIBUTES/VARIABLE_VALUE (float32) [8]
tensor: model/layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE (float32) [4, 8]
tensor: model/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE (float32) [4, 8]
tensor: model/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/v/.ATTRIBUTES/VARIABLE_VALUE (float32) [4, 8]
tensor: model/layer_with_weights-1/bias/.ATTRIBUTES/VARIABLE_VALUE (float32) [2]
tensor: model/layer_with_weights-1/bias/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE (float32) [2]
tensor: model/layer_with_weights-1/bias/.OPTIMIZER_SLOT/optimizer/v/.ATTRIBUTES/VARIABLE_VALUE (float32) [2]
tensor: model/layer_with_weights-1/kernel/.ATTRIBUTES/VARIABLE_VALUE (float32) [8, 2]
tensor: model/layer_with_weights-1/kernel/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE (float32) [8, 2]
tensor: model/layer_with_weights-1/kernel/.OPTIMIZER_SLOT/optimizer/v/.ATTRIBUTES/VARIABLE_VALUE (float32) [8, 2]
tensor: optimizer/beta_1/.ATTRIBUTES/VARIABLE_VALUE (float32) []
tensor: optimizer/beta_2/.ATTRIBUTES/VARIABLE_VALUE (float32) []
tensor: optimizer/decay/.ATTRIBUTES/VARIABLE_VALUE (float32) []
tensor: optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE (int64) []
tensor: optimizer/learning_rate/.ATTRIBUTES/VARIABLE_VALUE (float32) []
tensor: save_counter/.ATTRIBUTES/VARIABLE_VALUE (int64) []
# Excluding 8 tensors (116 params) that match OPTIMIZER_SLOT when counting.
# Total number of params: 65
"""


class Done(NamedTuple):
    """The exit code and the output of a call."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys):
    def call(*arguments):
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return call


def keras_tree():
    """Return a tree with the variables of the recorded output."""
    tree = {"_CHECKPOINTABLE_OBJECT_GRAPH": b"\x0a\x02"}
    for line in EXCLUDED.splitlines()[1:-2]:
        name, dtype, shape = line.removeprefix("tensor: ").split(" ", 2)
        *above, last = name.split("/")
        node = tree
        for component in above:
            node = node.setdefault(component, {})
        node[last] = np.zeros([int(length) for length in shape.strip("[]").split(",") if length], dtype.strip("()"))
    return tree


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], DEFAULT),
        (["--all_tensors"], ALL_TENSORS),
        (["--all_tensors=true"], ALL_TENSORS),
        (["--all_tensors=false"], DEFAULT),
        (["--all_tensors", "False", "--all_tensor_names", "f"], DEFAULT),
        (["--tensor_name=W"], TENSOR_NAME),
        (["--tensor_name", "W"], TENSOR_NAME),
    ],
)
def test_the_recorded_outputs(call, flags, expected):
    pts.save(SEED, "seed")
    assert call("--file_name=seed", *flags) == (0, expected, "")


def test_the_recorded_output_with_an_exclusion(call):
    pts.save(keras_tree(), "keras")
    flags = ["--all_tensor_names", "--count_exclude_pattern=OPTIMIZER_SLOT"]
    assert call("--file_name", "keras", *flags) == (0, EXCLUDED, "")


def test_it_runs_as_a_module():
    pts.save(SEED, "seed")
    command = [sys.executable, "-m", "pytreesaver.inspect_checkpoint", "--file_name=seed", "--tensor_name=W"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, TENSOR_NAME, "")
    done = subprocess.run([*command[:-1], "--tensor_name=nope"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Tensor nope not found in checkpoint seed")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Usage: inspect_checkpoint --file_name=checkpoint_file_name"),
        (["--file_name=nowhere"], "error: nowhere: expected a checkpoint"),
        (["--file_name=seed", "--tensor_name=w"], "error: Tensor w not found in checkpoint seed"),
        (
            ["--file_name=seed", "--count_exclude_pattern=("],
            "error: count_exclude_pattern: expected a regular",
        ),
        (["--file_name=seed", "--printoptions", "precision"], "error: print options: expected KEY=VALUE"),
        (["--file_name=seed", "--all_tensors=perhaps"], "expected true or false, found 'perhaps'"),
        (["--file_name=seed", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_errors_exit_with_2(call, flags, message):
    pts.save(SEED, "seed")
    done = call(*flags)
    assert done.code == 2
    assert message in done.err
    assert "Total number" not in done.out


def test_damage_exits_with_1(call):
    path = pts.save({"w": np.arange(50.0)}, "model")
    (data,) = path.glob("*.safetensors")
    content = bytearray(data.read_bytes())
    content[-3] ^= 1
    data.write_bytes(content)
    done = call("--file_name=model", "--all_tensors")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert call("--file_name=model").code == 0


def test_print_options_are_restored_after_the_call(call):
    pts.save(SEED, "seed")
    before = np.get_printoptions()
    done = call("--file_name=seed", "--tensor_name=W", "--printoptions", "precision=2", "sign=+")
    assert "[+1.99]" in done.out
    assert np.get_printoptions() == before


def test_dtype_names_match_tensorflow(call):
    tree = {
        "a": np.float64(1), "b": np.float16([1]), "c": jax.numpy.ones((2, 3), "bfloat16"), "d": True, "e": 7,
        "f": "text", "g": b"bytes", "h": np.complex64([1]), "i": np.uint8([1]), "k": jax.random.key(0),
        "l": np.array(["x", "y"]),
    }  # fmt: skip
    pts.save(tree, "model")
    assert call("--file_name=model").out.splitlines() == [
        "a (DT_DOUBLE) []", "b (DT_HALF) [1]", "c (DT_BFLOAT16) [2,3]", "d (DT_BOOL) []", "e (DT_INT64) []",
        "f (DT_STRING) []", "g (DT_STRING) []", "h (DT_COMPLEX64) [1]", "i (DT_UINT8) [1]", "k (DT_UINT32) [2]",
        "l (DT_STRING) [2]", "", "# Total number of params: 18",
    ]  # fmt: skip


def test_the_newest_checkpoint_of_a_run(call):
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"w": np.zeros(1)})
        manager.save(2, {"w": np.zeros(1), "v": np.zeros(4)})
    assert call("--file_name=run").out.endswith("# Total number of params: 5\n")


def test_a_hostile_name_is_escaped(call):
    pts.save({"\x1b[31mred": np.zeros(2), "text": "\x1b[2J"}, "model")
    for flags in ([], ["--all_tensors"], ["--tensor_name=\x1b[31mred"], ["--tensor_name=\x1b[0m"]):
        done = call("--file_name=model", *flags)
        assert "\x1b" not in done.out + done.err


@settings(max_examples=30)
@given(pytrees())
def test_every_tree_can_be_printed(tree):
    path = pts.save(tree, "any", overwrite=True)
    pts.print_tensors_in_checkpoint_file(path, all_tensors=True)


def test_the_function_raises():
    pts.save(SEED, "seed")
    with pytest.raises(pts.VariableNotFoundError, match="Tensor nope not found in checkpoint"):
        pts.print_tensors_in_checkpoint_file("seed", "nope")
    with pytest.raises(pts.CheckpointNotFoundError):
        pts.print_tensors_in_checkpoint_file("nowhere")
