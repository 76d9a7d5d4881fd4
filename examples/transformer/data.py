"""Two texts that ship with Python, as batches of bytes. A batch depends only on the number of the step."""

import argparse
import inspect
from pydoc_data.topics import topics

import numpy as np

from model import CONTEXT


def prose() -> bytes:
    """Return the text of ``help()``: chapters of Python's language reference."""
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def code() -> bytes:
    """Return the source of a module of the standard library."""
    return inspect.getsource(argparse).encode()


def batch_of(text: bytes, step: int, size: int = 16) -> np.ndarray:
    """Return random excerpts of a text: int32[size, CONTEXT + 1]."""
    starts = np.random.default_rng(step).integers(len(text) - CONTEXT, size=size)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(text, np.uint8), CONTEXT + 1)
    return windows[starts].astype(np.int32)
