"""A disk that forgets: records what a program does to files, and gives every state that a power cut could leave.

The model is the pessimistic reading of POSIX. What was written to a file is certain only after the file was synced; a
name that was created, changed or removed only after its directory was. Whatever is not certain may have reached the
disk or not, each piece by itself and in any order.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from pytreesaver._io import filesystem


@dataclass
class File:
    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass
class Directory:
    names: dict = field(default_factory=dict)  # as the running system sees it
    synced: dict = field(default_factory=dict)  # as it is certain to be on disk
    pending: list = field(default_factory=list)  # changes in between: (name, what it stands for now, or None)

    def put(self, name, node):
        if node is None:
            del self.names[name]
        else:
            self.names[name] = node
        self.pending.append((name, node))


class SimulatedDisk:
    """Takes the place of `pytreesaver._io.filesystem` for what changes files; really does it too.

    After each change `on_change` is called, so that the states at that moment can be looked at.
    """

    def __init__(self, monkeypatch, root: Path, *, forget_syncs_of: str = "") -> None:
        self.root = root
        self.directory = Directory()
        self.open_files: dict[int, File] = {}
        self.forget_syncs_of = forget_syncs_of
        self.on_change = lambda: None
        for name in (
            "open_new",
            "open_or_create",
            "open_direct",
            "truncate",
            "reserve",
            "write",
            "sync_file",
            "sync_directory",
            "make_directory",
            "remove_directory",
            "rename",
            "remove_file",
        ):
            monkeypatch.setattr(filesystem, name, self._wrapped(name, getattr(filesystem, name)))

    def _wrapped(self, name, real):
        def call(*args, **options):
            result = real(*args, **options)
            getattr(self, f"_{name}")(*args, result=result)
            self.on_change()
            return result

        return call

    def _at(self, path: Path) -> tuple[Directory, str]:
        *parents, name = path.absolute().relative_to(self.root).parts or (".",)
        directory = self.directory
        for parent in parents:
            directory = directory.names[parent]
        return directory, name

    def _open_new(self, path, result):
        directory, name = self._at(path)
        self.open_files[result] = File()
        directory.put(name, self.open_files[result])

    def _open_or_create(self, path, result):
        directory, name = self._at(path)
        if name not in directory.names:
            directory.put(name, File())
        self.open_files[result] = directory.names[name]

    def _open_direct(self, descriptor, result):
        if descriptor in self.open_files and result is not None:
            self.open_files[result] = self.open_files[descriptor]

    def _truncate(self, descriptor, result):
        self.open_files[descriptor].content.clear()

    def _reserve(self, descriptor, nbytes, result):
        content = self.open_files[descriptor].content
        content.extend(bytes(max(0, nbytes - len(content))))

    def _write(self, descriptor, buffers, offset, result):
        data = b"".join(bytes(buffer) for buffer in buffers)[:result]
        content = self.open_files[descriptor].content
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data

    def _sync_file(self, descriptor, result):
        if self.forget_syncs_of != "file":
            file = self.open_files[descriptor]
            file.synced = bytes(file.content)

    def _sync_directory(self, path, result):
        if not path.absolute().is_relative_to(self.root):
            return
        if self.forget_syncs_of != "directory":
            directory = self.directory
            for part in path.absolute().relative_to(self.root).parts:
                directory = directory.names[part]
            directory.synced = dict(directory.names)
            directory.pending.clear()

    def _make_directory(self, path, result):
        directory, name = self._at(path)
        directory.put(name, Directory())

    def _remove_directory(self, path, result):
        self._remove_file(path, result)

    def _remove_file(self, path, result):
        directory, name = self._at(path)
        directory.put(name, None)

    def _rename(self, source, target, result):
        directory, name = self._at(source)
        target_directory, target_name = self._at(target)
        node = directory.names[name]
        if directory is target_directory:
            # One step for the file system: both names change, or neither does.
            del directory.names[name]
            directory.names[target_name] = node
            directory.pending.append(((name, target_name), node))
        else:
            raise NotImplementedError("no rename between directories is expected")

    def states(self):
        """Every state that a power cut now could leave, as {relative path: bytes} with None for a directory."""
        yield from _states_of(self.directory, Path())

    def state_after_a_kill(self):
        """What is there if only the process dies."""
        return _as_it_runs(self.directory, Path())


def _as_it_runs(node, where):
    if isinstance(node, File):
        return {where: bytes(node.content)}
    state = {where: None}
    for name, child in node.names.items():
        state |= _as_it_runs(child, where / name)
    return state


def _states_of(node, where):
    if isinstance(node, File):
        whole = bytes(node.content)
        torn = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
        for content in {whole, node.synced, torn if whole != node.synced else whole}:
            yield {where: content}
        return
    seen = set()
    for kept in _subsets(node.pending):
        names = dict(node.synced)
        for name, child in kept:
            if isinstance(name, tuple):
                names.pop(name[0], None)
                names[name[1]] = child
            elif child is None:
                names.pop(name, None)
            else:
                names[name] = child
        identity = tuple(sorted((name, id(child)) for name, child in names.items()))
        if identity in seen:
            continue
        seen.add(identity)
        for children in itertools.product(*(list(_states_of(child, where / n)) for n, child in names.items())):
            state = {where: None}
            for child in children:
                state |= child
            yield state


def _subsets(items):
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))


def put_on_disk(state, root: Path) -> None:
    """Make a state real below `root`, which must be an empty directory."""
    for path, content in state.items():
        if content is None:
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(content)
