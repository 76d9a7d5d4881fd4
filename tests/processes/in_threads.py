"""Processes of a program that are threads of one process, with a coordinator in memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

from pytreesaver._io.processes import coordinator, meeting


class MemoryStore:
    """What the coordinators of all ranks share."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()
        self.messages = 0


class MemoryCoordinator:
    """The view of one rank, since each numbers its meetings by itself."""

    def __init__(self, store):
        self.store = store

    def put(self, key, value, *, replace=False):
        with self.store.changed:
            self.store.messages += 1
            if replace or key not in self.store.values:
                self.store.values[key] = value
            self.store.changed.notify_all()

    def get(self, key, seconds):
        with self.store.changed:
            self.store.messages += 1
            self.store.changed.wait_for(lambda: key in self.store.values, seconds)
            return self.store.values.get(key)

    def list(self, directory):
        with self.store.changed:
            self.store.messages += 1
            return {key: value for key, value in self.store.values.items() if key.startswith(directory)}

    def delete(self, key):
        with self.store.changed:
            self.store.messages += 1
            self.store.values.pop(key, None)
            for each in [each for each in self.store.values if key.endswith("/") and each.startswith(key)]:
                del self.store.values[each]


class Ranks:
    """Runs functions as if each of some threads was a process. This thread is process 0."""

    def __init__(self, count, monkeypatch):
        self.store = MemoryStore()
        self.coordinators = [MemoryCoordinator(self.store) for _ in range(count)]
        self.count = count
        self._local = threading.local()
        self._others = [ThreadPoolExecutor(1) for _ in range(count - 1)]
        monkeypatch.setattr(meeting, "current_processes", self._current)

    def _current(self):
        rank = getattr(self._local, "rank", None)
        return None if rank is None else coordinator.Processes(rank, self.count, self.coordinators[rank])

    def as_rank(self, rank, call):
        before, self._local.rank = getattr(self._local, "rank", None), rank
        try:
            return call()
        finally:
            self._local.rank = before

    def run(self, calls):
        """Call ``calls[rank]`` in each rank. Return what each returned or raised."""

        def outcome(rank):
            try:
                return self.as_rank(rank, calls[rank])
            except BaseException as error:
                return error

        futures = [each.submit(outcome, rank + 1) for rank, each in enumerate(self._others)]
        return [outcome(0), *(future.result() for future in futures)]

    def rank(self):
        """Return the rank that this thread acts as, or None."""
        return getattr(self._local, "rank", None)

    def is_nested(self):
        """Return whether this thread acts as one of the processes already."""
        return self.rank() is not None

    def run_both(self, here, there):
        return self.run([here, there])

    def close(self):
        for each in self._others:
            each.shutdown()
