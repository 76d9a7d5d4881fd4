"""Damages checkpoints, bit by bit and file by file: every way to read one gives the original or an error by name."""

import os
import random
import shutil
import signal
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal

_SECONDS = 30
"""After which a use counts as one that hangs."""


def tree(number, rows):
    """Return a tree that every format can hold."""
    return {"w": np.arange(rows * 8, dtype=np.float32).reshape(rows, 8) + number, "b": np.full(5, number, np.int16)}


class Written(NamedTuple):
    """How a format is written: the name of the checkpoint, and more arguments of `save`."""

    name: str
    options: Mapping[str, Any] = {}


FORMATS = {
    "native": Written("ckpt-2"),
    "native, several files": Written("ckpt-2", {"shard_nbytes": 40}),
    "safetensors": Written("ckpt-2.safetensors"),
    "safetensors, several files": Written("ckpt-2", {"format": "safetensors", "shard_nbytes": 40}),
    "npz": Written("ckpt-2.npz"),
    "msgpack": Written("ckpt-2.msgpack"),
    "TensorFlow": Written("ckpt-2", {"format": "tensorflow"}),
    "Orbax": Written("ckpt-2", {"format": "orbax"}),
}


def sharded(path, rows):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("x",)), PartitionSpec("x"))
    like = {"w": jax.ShapeDtypeStruct((rows, 8), jnp.float32, sharding=sharding)}
    return {"w": np.asarray(pts.restore(path, like, only="w")["w"])}


def sliced(path):
    with pts.load_checkpoint(path) as checkpoint:
        return checkpoint["w"][1:3, 2:4]


def through(make: Callable[[Path], Any], target: str) -> Any:
    """Return the tree that is restored from what `make` makes at the target."""
    shutil.rmtree(target, ignore_errors=True)
    Path(target).unlink(missing_ok=True)
    try:
        make(Path(target))
        return pts.restore(target)
    finally:
        shutil.rmtree(target, ignore_errors=True)
        Path(target).unlink(missing_ok=True)


def is_equal_to_original(path):
    return not pts.diff(path, Path("original")).changed


def uses_of(path: Path, rows: int) -> Mapping[str, tuple[Callable[[], Any], Any]]:
    """Return the ways to read a checkpoint with the tree 2, and the value that each gives."""
    whole = tree(2, rows)
    return {
        "restore": (lambda: pts.restore(path), whole),
        "only": (lambda: pts.restore(path, only="b"), {"b": whole["b"]}),
        "template": (lambda: pts.restore(path, whole), whole),
        "mmap": (lambda: pts.restore(path, mmap=True), whole),
        "slices": (lambda: sliced(path), whole["w"][1:3, 2:4]),
        "load_variable": (lambda: pts.load_variable(path, "w"), whole["w"]),
        "sharded": (lambda: sharded(path, rows), {"w": whole["w"]}),
        "cast": (lambda: pts.restore(path, only="w", cast="bfloat16"), {"w": whole["w"].astype(jnp.bfloat16)}),
        "diff": (lambda: is_equal_to_original(path), True),
        "copy": (lambda: through(lambda to: pts.copy_checkpoint(path, to), "copy"), whole),
        "convert": (lambda: through(lambda to: pts.convert(path, to), "converted.npz"), whole),
        "names": (lambda: dict(pts.list_variables(path)), {"w": (rows, 8), "b": (5,)}),
    }


RUN = "run of a manager"
_STEPS = (1, 2)
_INFORMATION = (".pytreesaver.history", ".pytreesaver.lock")
"""Files of a run that say nothing of its checkpoints, and have no checksums."""


def newest_or_told(restore: Callable[[], Any], rows: int) -> Any:
    """Return the tree that is restored of a run. If an older one is, with a warning that says so, return the newest."""
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        found = restore()
    is_told = any(issubclass(each.category, pts.RetentionWarning) for each in issued)
    is_older = any(np.array_equal(found["w"], tree(step, rows)["w"]) for step in _STEPS[:-1])
    return tree(_STEPS[-1], rows) if is_told and is_older else found


def restored_by_manager(directory: Path) -> Any:
    with pts.CheckpointManager(directory, read_only=True) as manager:
        return manager.restore()


def uses_of_run(directory: Path, rows: int) -> Mapping[str, tuple[Callable[[], Any], Any]]:
    """Return the ways to read a run with the trees of two steps, and the value that each gives."""
    newest = tree(_STEPS[-1], rows)
    return {
        "restore": (lambda: newest_or_told(lambda: pts.restore(directory), rows), newest),
        "manager": (lambda: newest_or_told(lambda: restored_by_manager(directory), rows), newest),
        "latest_checkpoint": (
            lambda: newest_or_told(lambda: pts.restore(pts.latest_checkpoint(directory)), rows),
            newest,
        ),
        "list_checkpoints": (lambda: _listed_or_told(directory), True),
    }


def _listed_or_told(directory: Path) -> bool:
    """Return whether both steps are listed, or a warning or a problem says why not."""
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        listed = pts.list_checkpoints(directory)
    return [each.step for each in listed] == list(_STEPS) or bool(issued) or any(each.problem for each in listed)


class HungError(BaseException):
    """A use did not end."""


@contextmanager
def deadline() -> Iterator[None]:
    """Raise a HungError in the block after `_SECONDS`."""

    def hang(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem_of(use: Callable[[], Any], expected: Any) -> str:
    """Return what is wrong with the outcome of a use of a damaged checkpoint, or nothing."""
    try:
        with deadline(), warnings.catch_warnings():
            warnings.simplefilter("error")
            found = use()
    except pts.CheckpointError:
        return ""
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    try:
        assert_trees_equal(found, expected)
    except AssertionError as error:
        return f"silently wrong: {error}"
    return ""


class Checkpoints:
    """An intact checkpoint, one of another tree, and a copy that is damaged, in the working directory."""

    def __init__(self, format_name: str, rows: int = 6) -> None:
        self.format_name, self.rows = format_name, rows
        pts.save(tree(2, rows), "original", overwrite=True)
        for directory in ("intact", "other", "damaged"):
            shutil.rmtree(directory, ignore_errors=True)
        for directory, number in (("intact", 2), ("other", 3)):
            self._write(Path(directory), number)
        shutil.copytree("intact", "damaged")
        found = [path.relative_to("intact") for path in sorted(Path("intact").rglob("*")) if path.is_file()]
        self.files = [path for path in found if path.name not in _INFORMATION]
        self.uses = self._uses()
        for name, (use, expected) in self.uses.items():
            assert problem_of(use, expected) == "", name
            assert_trees_equal(use(), expected)

    def _write(self, directory: Path, number: int) -> None:
        if self.format_name == RUN:
            with pts.CheckpointManager(directory) as manager:
                for step in _STEPS:
                    manager.save(step, tree(step + number - _STEPS[-1], self.rows))
        else:
            written = FORMATS[self.format_name]
            pts.save(tree(number, self.rows), directory / written.name, durable=False, **written.options)

    def _uses(self) -> Mapping[str, tuple[Callable[[], Any], Any]]:
        if self.format_name == RUN:
            return uses_of_run(Path("damaged"), self.rows)
        return uses_of(Path("damaged") / FORMATS[self.format_name].name, self.rows)

    def repair(self, file: Path) -> None:
        """Put the intact file in the place of what is there."""
        damaged = Path("damaged") / file
        if damaged.is_dir() and not damaged.is_symlink():
            shutil.rmtree(damaged)
        damaged.unlink(missing_ok=True)
        shutil.copyfile(Path("intact") / file, damaged)

    def outcomes(self, what: str, names: Iterable[str]) -> Iterator[str]:
        """Yield for each of these uses what is wrong with it, or nothing."""
        for name in names:
            problem = problem_of(*self.uses[name])
            yield f"{self.format_name}, {what}, {name}: {problem}" if problem else ""


def flip_bits(checkpoints: Checkpoints, bits: Iterable[tuple[Path, int]]) -> Iterator[str]:
    """Flip one bit at a time. Restore, and use the checkpoint in one other way, in turns."""
    others = [name for name in checkpoints.uses if name != "restore"]
    for turn, (file, bit) in enumerate(bits):
        damaged = Path("damaged") / file
        content = damaged.read_bytes()
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(changed)
        yield from checkpoints.outcomes(f"bit {bit} of {file}", ["restore", others[turn % len(others)]])
        damaged.write_bytes(content)


def every_bit(checkpoints: Checkpoints, step: int = 1) -> Iterator[tuple[Path, int]]:
    """Yield every bit, or each `step`-th, of every file."""
    for file in checkpoints.files:
        for bit in range(0, (Path("intact") / file).stat().st_size * 8, step):
            yield file, bit


def random_bits(checkpoints: Checkpoints, count: int, seed: int = 0) -> Iterator[tuple[Path, int]]:
    """Yield random bits of random files, large ones more often."""
    chance = random.Random(seed)
    sizes = [(Path("intact") / file).stat().st_size for file in checkpoints.files]
    for file in chance.choices(checkpoints.files, weights=sizes, k=count):
        yield file, chance.randrange((Path("intact") / file).stat().st_size * 8)


def truncate(checkpoints: Checkpoints, step: int = 1) -> Iterator[str]:
    """Truncate each file to every length, or each `step`-th."""
    others = [name for name in checkpoints.uses if name != "restore"]
    for file in checkpoints.files:
        content = (Path("intact") / file).read_bytes()
        for length in range(0, len(content), step):
            (Path("damaged") / file).write_bytes(content[:length])
            uses = ["restore", others[length // step % len(others)]]
            yield from checkpoints.outcomes(f"{file} of {length} bytes", uses)
        checkpoints.repair(file)


def _replaced_by_socket(file: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # since the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


REPLACEMENTS: Mapping[str, Callable[[Path], Any]] = {
    "nothing": lambda file: None,
    "an empty file": lambda file: file.touch(),
    "a directory": lambda file: file.mkdir(),
    "a pipe": os.mkfifo,
    "a socket": _replaced_by_socket,
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to /dev/zero": lambda file: file.symlink_to("/dev/zero"),
    "a link to /dev/null": lambda file: file.symlink_to("/dev/null"),
    "a file without permission": lambda file: [file.write_bytes(b"x" * 100), file.chmod(0)],
    "the file of another checkpoint": lambda file: shutil.copyfile(Path("other") / file.relative_to("damaged"), file),
    "a link to the file of another checkpoint": lambda file: file.symlink_to(
        Path.cwd() / "other" / file.relative_to("damaged")
    ),
    "twice its contents": lambda file: file.write_bytes(
        (Path("intact") / file.relative_to("damaged")).read_bytes() * 2
    ),
    "zeros": lambda file: file.write_bytes(bytes((Path("intact") / file.relative_to("damaged")).stat().st_size)),
}


def replace_files(checkpoints: Checkpoints) -> Iterator[str]:
    """Replace each file by something else, and use the checkpoint in every way.

    Another checkpoint in the place of one that is a single file is intact, and not tried.
    """
    for file in checkpoints.files:
        for what, replace in REPLACEMENTS.items():
            is_other = "another checkpoint" in what
            if is_other and (len(checkpoints.files) == 1 or not (Path("other") / file).exists()):
                continue
            damaged = Path("damaged") / file
            damaged.unlink()
            replace(damaged)
            yield from checkpoints.outcomes(f"{what} in place of {file}", checkpoints.uses)
            checkpoints.repair(file)


NAMES = (*FORMATS, RUN)


def run(names: Iterable[str] = NAMES, step: int = 1) -> dict[str, list[str]]:
    """Return what was wrong at each damage of each format, or ""."""
    here, found = Path.cwd(), {}
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            try:
                small = Checkpoints(name)
                found[name] = [*flip_bits(small, every_bit(small, step)), *truncate(small, step), *replace_files(small)]
                large = Checkpoints(name, rows=40_000)
                found[name] += flip_bits(large, random_bits(large, 12_500 // step))
            finally:
                os.chdir(here)
    return found
