"""Writing of npz archives."""

import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.files import map_or_read
from pytreesaver._io.parallel import advance
from pytreesaver._tree.kinds import joined_bytes, storage_dtype
from pytreesaver.formats.description import described, encode_description
from pytreesaver.formats.npz.reading import ENTRY, recognizes
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.single_file import write_single_file

_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows, so that equal trees give equal files


def write(path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False) -> None:
    """Write an archive. See `pytreesaver.formats.Format.write`."""
    write_single_file(
        path,
        lambda descriptor, synced: _write_archive(descriptor, contents),
        what="an npz archive",
        recognizes=recognizes,
        overwrite=overwrite,
        durable=durable,
    )


def _write_archive(descriptor: int, contents: TreeContents) -> None:
    keys = _entry_names(contents.names)
    checksums = []
    with os.fdopen(os.dup(descriptor), "r+b") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            columns = zip(keys, contents.types, contents.shapes, contents.cells, strict=True)
            for key, leaf_type, shape, cells in columns:
                content = joined_bytes(cells, leaf_type, shape)
                checksums.append(f"{checksum(content):016x}")
                with archive.open(zipfile.ZipInfo(key, _DATE), "w", force_zip64=content.nbytes > 1 << 30) as entry:
                    entry.write(npy_header(storage_dtype(leaf_type), shape))
                    entry.write(memoryview(content))  # type: ignore[arg-type]
                advance(content.nbytes)
            text = encode_description(described(contents, keys, checksums))
            begin = archive.start_dir
            file.seek(begin)
            file.write(text)
            archive.start_dir = file.tell()
            archive.comment = b"pytreesaver description=%019d+%019d xxh3=%016x" % (begin, len(text), 0)
        file.flush()
        size = filesystem.file_size(descriptor)
        whole = map_or_read(descriptor, size)
        digits = b"%016x" % checksum(whole[: size - 16])
        del whole
        file.seek(size - 16)
        file.write(digits)


def _entry_names(names: Sequence[str]) -> list[str]:
    """Return names of entries, which zip ends at a NUL, each different."""
    taken: set[str] = set()
    result = []
    for each in names:
        entry = each.replace("\0", "\\0")
        while f"{entry}{ENTRY}" in taken:
            entry += "'"
        taken.add(f"{entry}{ENTRY}")
        result.append(f"{entry}{ENTRY}")
    return result


def npy_header(dtype: np.dtype[Any], shape: Sequence[int]) -> bytes:
    """Return the header of an array, as `numpy.save` writes it: types that NumPy does not know are void there."""
    descr = f"|V{dtype.itemsize}" if dtype.isbuiltin == 2 else dtype.str
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {tuple(shape)!r}, }}".encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
