"""TensorFlow: checkpoints of its version 2, as `tf.train.Saver` and `tf.train.Checkpoint` write them.

They are read and written without TensorFlow. A checkpoint is called by its prefix: ``model-1`` is in ``model-1.index``,
a sorted table, and ``model-1.data-00000-of-00001``. One that pytreesaver wrote has a description of the tree in its
index, where TensorFlow does not look. tensorflow/core/util/tensor_bundle specifies the files.
"""

from pathlib import Path

from pytreesaver.formats.places import index_file
from pytreesaver.formats.protocol import CheckpointReader
from pytreesaver.formats.tensorflow.files import recognizes
from pytreesaver.formats.tensorflow.opening import NAME, read_heading
from pytreesaver.formats.tensorflow.opening import open_bundle as open
from pytreesaver.formats.tensorflow.writing import remove, remove_unlisted_files, unsupported, write

__all__ = [
    "heading_file",
    "name",
    "open",
    "open_with_keys",
    "read_heading",
    "recognizes",
    "remove",
    "remove_unlisted_files",
    "unsupported",
    "write",
]

name = NAME


def open_with_keys(path: Path) -> CheckpointReader:
    """Open a checkpoint whose variables are called by their keys, as TensorFlow does."""
    return open(path, with_keys=True)


def heading_file(path: Path) -> Path:
    """Return the index. See `pytreesaver.formats.Format.heading_file`."""
    return index_file(path)
