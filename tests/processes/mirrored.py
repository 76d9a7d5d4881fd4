"""Savers that are one in each of two processes: every call is made in both."""

import copy

import pytreesaver as pts

TIMEOUT = 20


def mirrored(kind, ranks, methods, compared):
    """Return a subclass of a saver, of which every object has a mirror in process 1, for which it calls the same."""

    class Mirrored(kind):
        def __init__(self, *arguments, **options):
            self._mirror = None
            options.setdefault("timeout", TIMEOUT)
            super().__init__(*arguments, **options)
            self._mirror = kind(*arguments, **options)

        def __exit__(self, error_type, error, traceback):
            try:
                return super().__exit__(error_type, error, traceback)
            finally:
                self._mirror = None

        def __getstate__(self):
            return super().__getstate__()

        def __deepcopy__(self, memo):
            return copy.copy(self)

    def both(name):
        def call(self, *arguments, **options):
            own, mirror = getattr(kind, name), getattr(self, "_mirror", None)
            if mirror is None or ranks.is_nested():
                return own(self, *arguments, **options)
            here, there = ranks.run_both(
                lambda: own(self, *arguments, **options), lambda: own(mirror, *arguments, **options)
            )
            if isinstance(here, BaseException):
                raise here
            assert not isinstance(there, BaseException), there
            if name in compared:
                assert there == here
            return here

        call.__name__ = call.__qualname__ = name
        return call

    for name in methods:
        setattr(Mirrored, name, both(name))
    Mirrored.__name__ = Mirrored.__qualname__ = kind.__name__
    return Mirrored


def mirrored_manager(ranks):
    methods = ["save", "should_save", "restore", "restore_or_init", "latest_step", "pin", "unpin"]
    methods += ["wait_until_finished", "close"]
    return mirrored(pts.CheckpointManager, ranks, methods, ["save", "should_save", "latest_step"])


def mirrored_saver(ranks):
    return mirrored(pts.Saver, ranks, ["save", "wait", "close"], ["save"])
