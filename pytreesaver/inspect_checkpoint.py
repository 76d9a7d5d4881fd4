"""Inspect a checkpoint with the flags and output of TensorFlow's ``inspect_checkpoint``.

Run it as ``python -m pytreesaver.inspect_checkpoint --file_name=runs/a/ckpt-100``. The command ``pytreesaver`` can do
more. The exit code is 0 for success, 1 for a damaged checkpoint, and 2 for wrong usage or any other error.
Unlike TensorFlow's, it never exits with 0 after an error. Errors are printed to standard error as one line.
"""

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytreesaver._cli.program import run_program
from pytreesaver._errors import VariableNotFoundError
from pytreesaver._inspect.checkpoint import Checkpoint, load_checkpoint
from pytreesaver._inspect.printing import parse_print_options, values_text
from pytreesaver._inspect.variable import Variable
from pytreesaver._io.paths import PathLike, wrap_os_errors
from pytreesaver._run.directory import checkpoint_at
from pytreesaver._text import did_you_mean, printable
from pytreesaver.formats.registry import format_at

_USAGE = (
    "inspect_checkpoint --file_name=checkpoint_file_name [--tensor_name=tensor_to_print] [--all_tensors] "
    "[--all_tensor_names] [--count_exclude_pattern] [--printoptions]"
)

_ENUM_NAMES = {
    "bool": "DT_BOOL",
    "float16": "DT_HALF",
    "float64": "DT_DOUBLE",
    "float32": "DT_FLOAT",
    "string": "DT_STRING",
}


def print_tensors_in_checkpoint_file(
    file_name: PathLike,
    tensor_name: str | None = None,
    all_tensors: bool = False,
    all_tensor_names: bool = False,
    count_exclude_pattern: str = "",
) -> None:
    """Print the variables of a checkpoint, like the TensorFlow function of the same name.

    Prints the name, dtype and shape of every variable. With `all_tensors`, it also prints the values, formatted
    according to `numpy.set_printoptions`. With `tensor_name` alone, it prints only that variable and its values. The
    last line is the number of parameters of the checkpoint, in which a str or bytes counts as one. Unprintable
    characters in names are escaped.

    Args:
        file_name: a checkpoint, or a run directory, whose newest checkpoint is used.
        tensor_name: the variable to print; all variables if it is "" or None.
        all_tensors: whether to print the values of all variables.
        all_tensor_names: whether to print the names of all variables, one per line, in the layout of `all_tensors`.
        count_exclude_pattern: a regular expression. Variables whose names contain a match are not counted.

    Raises:
        VariableNotFoundError: if `tensor_name` does not exist; TensorFlow prints a message and returns.
        CheckpointNotFoundError: if there is no checkpoint at `file_name`.
        CorruptCheckpointError: if the checkpoint is damaged.
        ValueError: if `count_exclude_pattern` is not a regular expression.

    Example:
        >>> path = pytreesaver.save({"W": np.float32([1.5]), "b": np.float32([2.5])}, "seed")
        >>> print_tensors_in_checkpoint_file(path, all_tensors=True)
        tensor: W (float32) [1]
        [1.5]
        tensor: b (float32) [1]
        [2.5]
        # Total number of params: 2
    """
    try:
        exclude = re.compile(count_exclude_pattern) if count_exclude_pattern else None
    except re.error as error:
        raise ValueError(
            f"count_exclude_pattern: expected a regular expression, found {count_exclude_pattern!r}: {error}"
        ) from error
    with _opened(checkpoint_at(file_name)) as checkpoint:
        for line in _listing(checkpoint, tensor_name, all_tensors, all_tensor_names):
            print(line)
        excluded_variables = [each for each in checkpoint.values() if exclude is not None and exclude.search(each.name)]
        excluded_params = sum(map(_params, excluded_variables))
        if exclude is not None:
            print(
                f"# Excluding {len(excluded_variables)} tensors ({excluded_params} params) that match "
                f"{printable(count_exclude_pattern)} when counting."
            )
        print(f"# Total number of params: {sum(map(_params, checkpoint.values())) - excluded_params}")


def _opened(path: Path) -> Checkpoint:
    """Open a checkpoint. Variables of TensorFlow 2 are called by their keys, as TensorFlow's tool does."""
    open_with_keys: Any = getattr(format_at(path), "open_with_keys", None)
    if open_with_keys is None:
        return load_checkpoint(path)
    with wrap_os_errors("read", path):
        return Checkpoint(open_with_keys(path))


def _listing(
    checkpoint: Checkpoint, tensor_name: str | None, all_tensors: bool, all_tensor_names: bool
) -> Iterator[str]:
    variables = [checkpoint[name] for name in sorted(checkpoint)]
    if all_tensors or all_tensor_names:
        for variable in variables:
            yield _heading(variable)
            if all_tensors:
                yield values_text(variable, None, {})
    elif tensor_name:
        if tensor_name not in checkpoint:
            near = did_you_mean(tensor_name, list(checkpoint))
            raise VariableNotFoundError(f"Tensor {tensor_name} not found in checkpoint {checkpoint.path}{near}")
        yield _heading(checkpoint[tensor_name])
        yield values_text(checkpoint[tensor_name], None, {})
    else:
        for variable in variables:
            dtype = _dtype_name(variable)
            shape = ",".join(map(str, variable.shape))
            yield f"{printable(variable.name)} ({_ENUM_NAMES.get(dtype, f'DT_{dtype.upper()}')}) [{shape}]"
        yield ""


def _heading(variable: Variable) -> str:
    return f"tensor: {printable(variable.name)} ({_dtype_name(variable)}) {list(variable.shape)}"


def _dtype_name(variable: Variable) -> str:
    if variable.kind in ("str", "bytes") or variable.dtype.kind in "SU":
        return "string"
    return "int" if variable.dtype == object else variable.dtype.name


def _params(variable: Variable) -> int:
    return math.prod(variable.shape)


# Command line.


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "t", "1", "yes", "false", "f", "0", "no"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() in ("true", "t", "1", "yes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inspect_checkpoint",
        usage=_USAGE,
        description="Inspect a checkpoint with the flags and output of TensorFlow's inspect_checkpoint. "
        "The command `pytreesaver` can do more.",
        epilog="Example: python -m pytreesaver.inspect_checkpoint --file_name=runs/a/ckpt-100 --tensor_name=params/w",
    )
    parser.add_argument(
        "--file_name", default="", help="a checkpoint, or a run directory, whose newest checkpoint is used"
    )
    parser.add_argument("--tensor_name", default="", help="the variable to print")
    parser.add_argument(
        "--count_exclude_pattern", default="", help="a regular expression; do not count variables whose names match"
    )
    for name, text in (
        ("--all_tensors", "print the names and values of all variables"),
        ("--all_tensor_names", "print the names of all variables"),
    ):
        parser.add_argument(name, nargs="?", const=True, default=False, type=_flag, help=text)
    parser.add_argument(
        "--printoptions", nargs="*", default=[], metavar="K=V", help="NumPy print options: precision=3 sign=+"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with `arguments`, by default ``sys.argv[1:]``, and return the exit code."""

    def run() -> int:
        import numpy as np

        try:
            flags = _parser().parse_args(arguments)
        except SystemExit as wrong_usage:
            return int(wrong_usage.code or 0)
        if not flags.file_name:
            print(f"Usage: {_USAGE}", file=sys.stderr)
            return 2
        with np.printoptions(**parse_print_options(flags.printoptions)):
            print_tensors_in_checkpoint_file(
                flags.file_name, flags.tensor_name, flags.all_tensors, flags.all_tensor_names,
                flags.count_exclude_pattern,
            )  # fmt: skip
        return 0

    return run_program(run)


if __name__ == "__main__":
    sys.exit(main())
