"""A simulated disk that records file operations and enumerates the states that a power failure could leave.

It assumes no more than POSIX guarantees. Data is durable only after its file is synced, and the creation, renaming or
removal of a name only after its directory is synced. Each operation that is not durable may have reached the disk or
not, independently and in any order.
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
    names: dict = field(default_factory=dict)  # as running processes see it
    synced: dict = field(default_factory=dict)  # as it is durable on the disk
    pending: list = field(default_factory=list)  # changes since the sync: (name, the new node or None)

    def put(self, name, node):
        if node is None:
            del self.names[name]
        else:
            self.names[name] = node
        self.pending.append((name, node))


class SimulatedDisk:
    """Wraps the functions of `pytreesaver._io.filesystem` that change files, and records what they do.

    Calls `on_change` after each change, to let the test check all states at that point.
    """

    def __init__(self, monkeypatch, root: Path, *, forget_syncs_of: str = "") -> None:
        self.root = root
        self.directory = Directory()
        self.open_files: dict[int, File] = {}
        self.forget_syncs_of = forget_syncs_of
        self.on_change = lambda: None
        for name in (
            "open_new",
            "open_existing",
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
            "link",
            "rename_to_new",
        ):
            monkeypatch.setattr(filesystem, name, self._wrapped(name, getattr(filesystem, name)))

    def _wrapped(self, name, real):
        def call(*args, **options):
            result = real(*args, **options)
            getattr(self, f"_{name}")(*args, result=result)
            if name != "open_existing":
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

    def _open_existing(self, path, result):
        if path.absolute().is_relative_to(self.root):
            directory, name = self._at(path)
            self.open_files[result] = directory.names[name]

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

    def _link(self, source, target, result):
        directory, name = self._at(source)
        target_directory, target_name = self._at(target)
        target_directory.put(target_name, directory.names[name])

    def _rename(self, source, target, result):
        directory, name = self._at(source)
        target_directory, target_name = self._at(target)
        node = directory.names[name]
        if directory is target_directory:
            # A rename is atomic: both names change, or neither does.
            del directory.names[name]
            directory.names[target_name] = node
            directory.pending.append(((name, target_name), node))
        else:  # either directory may reach the disk without the other
            directory.put(name, None)
            target_directory.put(target_name, node)

    def _rename_to_new(self, source, target, result):
        if result:
            self._rename(source, target, result)

    def states(self, most=None, *, prefixes=False):
        """Yield every state that a power failure now could leave: {relative path: bytes, or None for a directory}.

        If there are more than `most`, that many. With `prefixes`, files that were not synced may be shorter too.
        """
        yield from itertools.islice(_states_of(self.directory, Path(), prefixes), most)

    def sync(self):
        """Write everything to the disk."""
        _sync(self.directory)

    def state_after_a_kill(self):
        """Return the state that a kill of the process now would leave."""
        return _visible_state(self.directory, Path())


def _sync(node):
    if isinstance(node, File):
        node.synced = bytes(node.content)
        return
    node.synced = dict(node.names)
    node.pending.clear()
    for child in node.names.values():
        _sync(child)


def _visible_state(node, where):
    if isinstance(node, File):
        return {where: bytes(node.content)}
    state = {where: None}
    for name, child in node.names.items():
        state |= _visible_state(child, where / name)
    return state


def _states_of(node, where, prefixes):
    if isinstance(node, File):
        complete = bytes(node.content)
        contents = {complete, node.synced}
        if complete != node.synced:
            half = len(complete) // 2
            contents.add(complete[:half] + bytes(len(complete) - half))
            if prefixes:
                contents |= {complete[:half], complete[:-1]}
        for content in contents:
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
        inside = [list(_states_of(child, where / n, prefixes)) for n, child in names.items()]
        for children in itertools.product(*inside):
            state = {where: None}
            for child in children:
                state |= child
            yield state


def _subsets(items):
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))


def put_on_disk(state, root: Path) -> None:
    """Write a state to `root`, an empty directory."""
    for path, content in state.items():
        if content is None:
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(content)
