"""Conformance tests for formats."""

import contextlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from pytreesaver._checkpoint.saving.contents import contents_of
from pytreesaver._errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError
from pytreesaver._run.record import Record, decode_record
from pytreesaver._tree.boxes import Box, box_index, box_shape
from pytreesaver._tree.kinds import Cells, cell_bytes, stored_array
from pytreesaver._tree.names.select import as_selection
from pytreesaver.formats import places
from pytreesaver.formats.protocol import Format, TreeContents
from pytreesaver.testing._strategies import pytrees, sharded_arrays

_HEALTH_CHECKS = [
    hypothesis.HealthCheck.function_scoped_fixture,
    hypothesis.HealthCheck.differing_executors,
    hypothesis.HealthCheck.too_slow,
    hypothesis.HealthCheck.filter_too_much,
]

_TREE = {
    "dense": {"kernel": np.arange(2 * 300_000, dtype=np.float32).reshape(2, 300_000), "bias": np.ones(3, np.float16)},
    "step": 7,
    "big": 2**100,
    "name": "é",
    "empty": np.zeros((0, 3)),
}


class FormatConformance:
    """Tests of a format. To run them, derive a class whose name starts with ``Test`` and set `format`.

    What the format says it cannot hold is left out. A slow format may limit the number of examples of each property:
    ``class TestMine(FormatConformance, max_examples=10)``.

    Example:
        >>> from pytreesaver.formats import native
        >>> class TestNative(FormatConformance):
        ...     format = native
    """

    format: Format

    def __init_subclass__(cls, *, max_examples: int | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        settings = hypothesis.settings(deadline=None, suppress_health_check=_HEALTH_CHECKS)
        if max_examples is not None:
            settings = hypothesis.settings(settings, max_examples=max_examples)
        for name, strategies in _PROPERTIES.items():
            test = _test_of(cls, name)
            setattr(cls, test.__name__, settings(hypothesis.given(**strategies)(test)))

    def _contents(self, metadata: Any, record: Record | None = None, tree: Any = _TREE) -> TreeContents:
        """Return a tree, or the part of it that the format holds."""
        unsupported = self.format.unsupported(contents_of(tree, None))
        if not unsupported:
            return contents_of(tree, metadata, record=record)
        selection = as_selection(lambda name: name not in unsupported)
        return contents_of(tree, metadata, only=selection, may_be_empty=True, record=record)

    def _check_round_trip(self, tmp_path: Path, tree: Any) -> None:
        """Names, types, shapes, structure, metadata and all bits are read as they were written."""
        contents = self._contents({"step": 3, "note": ("é", float("inf"))}, tree=tree)
        hypothesis.assume(not self.format.unsupported(contents))
        _remove(tmp_path / "checkpoint")
        self.format.write(tmp_path / "checkpoint", contents, overwrite=False, durable=False)
        assert_holds(self.format, tmp_path / "checkpoint", contents)

    def _check_reads_parts(self, tmp_path: Path, array: jax.Array, data: st.DataObject) -> None:
        """Reading a box equals indexing the complete array, even across shard boundaries."""
        contents = self._contents(None, tree={"sharded": array, "other": np.arange(5)})
        hypothesis.assume("sharded" in contents.names)
        _remove(tmp_path / "checkpoint")
        self.format.write(tmp_path / "checkpoint", contents, overwrite=False, durable=False)
        assert_holds(self.format, tmp_path / "checkpoint", contents)
        reader = self.format.open(tmp_path / "checkpoint")
        position = list(reader.names).index("sharded")
        boxes = [_drawn_box(data, array.shape) for _ in range(2)]
        outputs = [np.empty(box_shape(box), array.dtype) for box in boxes]
        reader.read_boxes(position, boxes, outputs, verify=True)
        mapped = reader.map([(position, box) for box in boxes], verify=True)
        reader.close()
        for box, part, view in zip(boxes, outputs, mapped, strict=True):
            expected = np.asarray(array)[box_index(box)]
            assert part.tobytes() == expected.tobytes()
            assert view is None or view.tobytes() == expected.tobytes()

    def test_writes_in_the_background(self, tmp_path: Path) -> None:
        """A background write stores the same contents."""
        contents = self._contents(None)
        self.format.write(tmp_path / "checkpoint", contents, overwrite=False, durable=True, in_background=True)
        assert_holds(self.format, tmp_path / "checkpoint", contents)

    def test_creates_parent_directories(self, tmp_path: Path) -> None:
        """Missing parent directories are created."""
        path = tmp_path / "a" / "b" / "checkpoint"
        self.format.write(path, self._contents(None), overwrite=False, durable=True)
        assert_holds(self.format, path, self._contents(None))

    def test_refuses_to_overwrite_unless_told_to(self, tmp_path: Path) -> None:
        """An existing checkpoint is kept or replaced completely, and no extra files remain."""
        path = tmp_path / "checkpoint"
        old, new = self._contents({"age": "old"}), contents_of({"w": np.arange(4)}, {"age": "new"})
        self.format.write(path, old, overwrite=False, durable=True)
        with pytest.raises(CheckpointExistsError, match="checkpoint"):
            self.format.write(path, new, overwrite=False, durable=True)
        assert_holds(self.format, path, old)
        self.format.write(path, new, overwrite=True, durable=True)
        assert_holds(self.format, path, new)
        self.format.write(tmp_path / "fresh", new, overwrite=False, durable=True)
        assert _files(tmp_path) == sorted([*_files(path), *_files(tmp_path / "fresh")])

    def test_never_replaces_what_is_not_a_checkpoint(self, tmp_path: Path) -> None:
        """A directory with other files, or a file that is not a checkpoint, is never overwritten."""
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
        (tmp_path / "notes").write_text("do not lose me")
        for path in (tmp_path / "photos", tmp_path / "notes"):
            with pytest.raises(CheckpointExistsError, match=path.name):
                self.format.write(path, self._contents(None), overwrite=True, durable=True)
        assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"
        assert (tmp_path / "notes").read_text() == "do not lose me"
        assert len(_files(tmp_path)) == 2

    def test_failed_write_leaves_no_files(self, tmp_path: Path) -> None:
        """A failed write leaves no files or directories, and an existing checkpoint unchanged."""
        bad = self._contents(None)
        bad = bad._replace(cells=[*bad.cells[:-1], Cells([_Unreadable()])])
        with pytest.raises(ZeroDivisionError):
            self.format.write(tmp_path / "new" / "checkpoint", bad, overwrite=False, durable=True)
        assert list(tmp_path.iterdir()) == []
        old = self._contents(None)
        self.format.write(tmp_path / "checkpoint", old, overwrite=False, durable=True)
        before = _files(tmp_path)
        with pytest.raises(ZeroDivisionError):
            self.format.write(tmp_path / "checkpoint", bad, overwrite=True, durable=True)
        assert _files(tmp_path) == before
        assert_holds(self.format, tmp_path / "checkpoint", old)

    def test_reports_missing_checkpoint(self, tmp_path: Path) -> None:
        """A missing path, an empty directory and another file are not recognized; the error names the path."""
        (tmp_path / "directory").mkdir()
        (tmp_path / "file").write_bytes(b"something else")
        for name in ("nothing", "directory", "file"):
            assert not self.format.recognizes(tmp_path / name)
            with pytest.raises(CheckpointNotFoundError, match=name):
                self.format.open(tmp_path / name)

    def test_recognizes_own_checkpoint(self, tmp_path: Path) -> None:
        """A checkpoint of this format is recognized."""
        self.format.write(tmp_path / "checkpoint", self._contents(None), overwrite=False, durable=False)
        assert self.format.recognizes(tmp_path / "checkpoint")

    def test_stores_the_record(self, tmp_path: Path) -> None:
        """The reader and the heading return the record, or None if there is none."""
        record = Record(100, 1.5, {"loss": math.inf, "norm": 0.25}, "checkpoint")
        with_record = self._contents(None, record=record)
        for path, contents in ((tmp_path / "with", with_record), (tmp_path / "without", self._contents(None))):
            self.format.write(path, contents, overwrite=False, durable=False)
            assert_holds(self.format, path, contents)
            heading = self.format.read_heading(path)
            assert (heading.record, heading.metadata) == (contents.record, contents.metadata)
            assert places.file_sizes(path).items() >= heading.file_sizes.items()
            assert self.format.heading_file(path).is_file()
        assert decode_record(self.format.read_heading(tmp_path / "with").record, tmp_path) == record
        with pytest.raises(CheckpointNotFoundError, match="nothing"):
            self.format.read_heading(tmp_path / "nothing")

    def test_removes_only_the_checkpoint(self, tmp_path: Path) -> None:
        """Removal is complete, and a checkpoint with other files in it is not removed. Open readers stay correct."""
        path = tmp_path / "checkpoint"
        contents = self._contents(None)
        self.format.write(path, contents, overwrite=False, durable=False)
        reader = self.format.open(path)
        self.format.remove(path)
        assert list(tmp_path.iterdir()) == []
        with contextlib.suppress(CheckpointError, OSError):  # not all formats can keep their files open
            arrays = reader.read(range(len(contents.names)), verify=True)
            assert len(arrays) == len(contents.names)
        reader.close()
        with pytest.raises(OSError, match="checkpoint"):
            self.format.remove(path)
        self.format.write(path, contents, overwrite=False, durable=False)
        if path.is_dir():
            (path / "notes").write_text("do not lose me")
            with pytest.raises(CheckpointExistsError, match="notes"):
                self.format.remove(path)
            assert_holds(self.format, path, contents)

    def _check_detects_a_flipped_bit(self, tmp_path: Path, data: st.DataObject) -> None:
        """After any single bit flip, reading returns the correct values or fails, and verifying fails."""
        path = tmp_path / "checkpoint"
        contents = self._contents({"note": "x"})
        self.format.write(path, contents, overwrite=False, durable=False)
        file = _drawn_file(data, path)
        content = bytearray(file.read_bytes())
        content[int(data.draw(_FRACTIONS) * len(content))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
        with pytest.raises(CheckpointError):
            _verify(self.format, path)
        with contextlib.suppress(CheckpointError):
            assert_holds(self.format, path, contents)
        _remove(path)

    def _check_detects_a_wrong_file_size(self, tmp_path: Path, data: st.DataObject) -> None:
        """A truncated, extended, empty or missing file is an error."""
        path = tmp_path / "checkpoint"
        contents = self._contents(None)
        self.format.write(path, contents, overwrite=False, durable=False)
        file = _drawn_file(data, path)
        content = file.read_bytes()
        match data.draw(st.sampled_from(["truncated", "extended", "missing"])):
            case "missing":
                file.unlink()
            case "extended":
                file.write_bytes(content + b"\0")
            case _:
                file.write_bytes(content[: int(data.draw(_FRACTIONS) * len(content))])
        try:
            with pytest.raises(CheckpointError, match="checkpoint"):
                _verify(self.format, path)
            with pytest.raises(CheckpointError, match="checkpoint"):
                assert_holds(self.format, path, contents)
        finally:
            _remove(path)


def _test_of(cls: type, name: str) -> Callable[..., None]:
    """Return a new function, since Hypothesis keeps its settings in the function that it is given."""

    def test(self: Any, tmp_path: Path, **drawn: Any) -> None:
        getattr(self, f"_check_{name}")(tmp_path, **drawn)

    test.__name__, test.__qualname__ = f"test_{name}", f"{cls.__qualname__}.test_{name}"
    test.__doc__ = getattr(cls, f"_check_{name}").__doc__
    return test


_PROPERTIES: dict[str, dict[str, Any]] = {
    "round_trip": {"tree": pytrees()},
    "reads_parts": {"array": sharded_arrays(), "data": st.data()},
    "detects_a_flipped_bit": {"data": st.data()},
    "detects_a_wrong_file_size": {"data": st.data()},
}


class _Unreadable:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise ZeroDivisionError("cannot read these values")


def assert_holds(format: Format, path: Path, contents: TreeContents) -> None:
    """Raise an AssertionError unless the checkpoint at `path` has exactly these contents."""
    reader = format.open(path)
    try:
        assert list(reader.names) == list(contents.names)
        assert list(reader.types) == list(contents.types)
        assert list(map(tuple, reader.shapes)) == list(map(tuple, contents.shapes))
        assert reader.structure == contents.structure
        assert reader.metadata == contents.metadata
        assert reader.record == contents.record
        reader.check()
        arrays = reader.read(range(len(contents.names)), verify=True)
    finally:
        reader.close()
    for name, leaf_type, shape, cells, array in zip(
        contents.names, contents.types, contents.shapes, contents.cells, arrays, strict=True
    ):
        expected = _joined_cells(cells, leaf_type, shape)
        assert array.shape == tuple(shape), name
        assert array.dtype == expected.dtype, name
        assert array.tobytes() == expected.tobytes(), name


def _joined_cells(cells: Cells, leaf_type: Any, shape: Any) -> np.ndarray:
    if cells.boundaries is None:
        return stored_array(cell_bytes(cells.arrays[0], leaf_type), leaf_type, shape)
    blocks = np.empty([len(axis) - 1 for axis in cells.boundaries], object)
    for position, array in zip(np.ndindex(*blocks.shape), cells.arrays, strict=True):
        blocks[position] = np.asarray(array)
    joined: np.ndarray = np.block(blocks.tolist())
    assert joined.size == math.prod(shape)
    return joined


def _verify(format: Format, path: Path) -> None:
    reader = format.open(path)
    try:
        reader.verify()
    finally:
        reader.close()


def _files(path: Path) -> list[Path]:
    beside = [] if path.exists() else places.files_beside(path)
    return sorted(file for file in [path, *path.rglob("*"), *beside] if file.is_file())


def _remove(path: Path) -> None:
    for file in _files(path):
        file.unlink()
    if path.is_dir():
        shutil.rmtree(path)


# Fractions rather than positions, since some formats write files of other sizes each time.
_FRACTIONS = st.floats(0, 1, exclude_max=True)


def _drawn_file(data: st.DataObject, path: Path) -> Path:
    files = [file for file in _files(path) if file.stat().st_size]
    return files[int(data.draw(_FRACTIONS) * len(files))]


def _drawn_box(data: st.DataObject, shape: tuple[int, ...]) -> Box:
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2))) for length in shape]
    return tuple((low, high) for low, high in bounds)
