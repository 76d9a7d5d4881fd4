"""Vocabularies of embeddings: maps the rows of a new variable to rows of the old one. Reads the vocabulary files."""

import codecs
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointNotFoundError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import wrap_os_errors

Vocabulary = str | os.PathLike[str] | Sequence[str]


@dataclass(frozen=True)
class VocabInfo:
    """How to initialize the rows or columns of a variable from an old one with another vocabulary.

    After `tf.estimator.VocabInfo`. Each row of the new variable is copied from the row of the old one with the same
    token. The rows of new tokens, and those of the out-of-vocabulary buckets at the end, come from
    `backup_initializer`.

    Args:
        new_vocab: the new vocabulary, in the order of the rows: the path of a file with one token per line, or a list
            of tokens.
        new_vocab_size: the number of its tokens to use, from the first on.
        num_oov_buckets: the number of out-of-vocabulary rows after those of the tokens.
        old_vocab: the old vocabulary.
        old_vocab_size: the number of its tokens to use, from the first on; -1 uses all. As in TensorFlow, all tokens
            are used on axis 1.
        backup_initializer: called with the shape and dtype of the complete new variable. An initializer of JAX needs a
            key: ``functools.partial(jax.nn.initializers.normal(0.02), key)``. None means zeros.
        axis: 0 if the tokens are the rows, 1 if they are the columns.

    Raises:
        ValueError: if `axis` is neither 0 nor 1, or a number is too small.

    Example:
        >>> info = VocabInfo(["a", "c", "d"], 3, 1, ["a", "b", "c"])
        >>> old_positions(info)
        (array([ 0,  2, -1, -1]), 3)
    """

    new_vocab: Vocabulary
    new_vocab_size: int
    num_oov_buckets: int
    old_vocab: Vocabulary
    old_vocab_size: int = -1
    backup_initializer: Callable[[tuple[int, ...], Any], Any] | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        if self.axis not in (0, 1):
            raise ValueError(
                f"The only supported values for the axis argument are 0 and 1.  Provided axis: {self.axis}"
            )
        for name, least in (("new_vocab_size", 1), ("num_oov_buckets", 0), ("old_vocab_size", -1)):
            number = getattr(self, name)
            if isinstance(number, bool) or not hasattr(number, "__index__") or operator.index(number) < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, found {number!r}")
        if self.old_vocab_size == 0:
            raise ValueError("old_vocab_size: expected a positive number, or -1 for all tokens, found 0")

    @property
    def length(self) -> int:
        """The length of the new variable along the axis of the tokens."""
        return self.new_vocab_size + self.num_oov_buckets


def old_positions(info: VocabInfo) -> tuple[np.ndarray, int]:
    """Return the old row of each new row, an int64[n] with -1 for rows to initialize, and the least number of old rows.

    Raises:
        ValueError: if a vocabulary has fewer tokens than are used, or the old one has a token twice.
        OSError: if a vocabulary file cannot be read.
    """
    new, old = _tokens("new_vocab", info.new_vocab), _used_old_tokens(info)
    if len(new) < info.new_vocab_size:
        raise ValueError(f"new_vocab: expected at least {info.new_vocab_size} tokens, found {len(new)}")
    positions = {token: i for i, token in enumerate(old)}
    if len(positions) < len(old):
        again = next(token for i, token in enumerate(old) if positions[token] != i)
        raise ValueError(f"old_vocab: expected distinct tokens, found {again.decode(errors='replace')!r} twice")
    found = [positions.get(token, -1) for token in new[: info.new_vocab_size]]
    return np.array(found + [-1] * info.num_oov_buckets, np.int64), len(old)


def _used_old_tokens(info: VocabInfo) -> list[bytes]:
    tokens = _tokens("old_vocab", info.old_vocab)
    if info.axis == 1 or info.old_vocab_size == -1:
        return tokens
    if len(tokens) < info.old_vocab_size:
        raise ValueError(f"old_vocab: expected at least {info.old_vocab_size} tokens, found {len(tokens)}")
    return tokens[: info.old_vocab_size]


def _tokens(what: str, vocabulary: Vocabulary) -> list[bytes]:
    if not isinstance(vocabulary, str | os.PathLike):
        if not isinstance(vocabulary, Sequence):
            raise ValueError(f"{what}: expected the path of a file or a list of str, found {vocabulary!r}")
        tokens: list[Any] = list(vocabulary)
        wrong = [token for token in tokens if not isinstance(token, str)]
        if wrong:
            raise ValueError(f"{what}: expected the path of a file or a list of str, found a list with {wrong[0]!r}")
        return [token.encode("utf-8", "surrogatepass") for token in tokens]
    # As TensorFlow does, remove line ends and carriage returns.
    path = Path(vocabulary).expanduser()
    with wrap_os_errors("read", path):
        if filesystem.status(path) is None:
            raise CheckpointNotFoundError(f"{what}: expected a file of tokens, found no such file: {path}")
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [line.replace(b"\r", b"") for line in (lines if lines[-1] else lines[:-1])]
