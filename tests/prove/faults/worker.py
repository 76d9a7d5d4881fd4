"""Runs scenarios in processes that are forked from one in which everything has been imported already."""

import gc
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax._src import xla_bridge

import pytreesaver as pts
from tests.injection import open_files_below
from tests.prove.faults.shim import Action, Fault, Shim, library

ROOT = Path(__file__).parents[3]
DEADLINE = 120
"""Seconds after which a process counts as one that hangs."""


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        status: "done", "error" for a `CheckpointError`, "raised" for any other, "killed", "crashed" or "hung".
        text: the error as text, with its traceback.
        codes: the errno of the error and of what caused it.
        call: the call that failed, and its file; empty if there were fewer calls.
        leaks: files below the root that are still open, and threads that still run.
        value: what the last step returned.
        warnings: the names of the classes of the warnings.
    """

    status: str
    text: str = ""
    codes: tuple[int, ...] = ()
    call: str = ""
    leaks: tuple[str, ...] = ()
    value: Any = None
    warnings: tuple[str, ...] = ()


class Worker:
    """A process that runs functions in children of its own.

    Functions are given by their position in a table, which the worker imports: ``module:name`` of a dict.
    """

    def __init__(self, table: str) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(library()), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", f"from {__name__} import serve; serve({table!r})"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # In a session of its own, so that Ctrl-C does not end it in the middle of a use: it ends with the pipe.
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, name: str, root: Path, *steps: str, fault: Fault | None = None, disk: Path | None = None) -> Outcome:
        """Run the steps of the entry `name` in a child whose working directory is `root`. A fault is for "act".

        Args:
            name: the key in the table.
            root: an existing directory.
            steps: the names of methods, and arguments of theirs: ``("before", "act")``.
            fault: the fault.
            disk: a directory of the disk whose power is cut.
        """
        pickle.dump((name, str(root), steps, fault, disk), self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)


def serve(table: str) -> None:
    """Run what the parent asks for until it closes the pipe."""
    module, name = table.split(":")
    entries = getattr(importlib.import_module(module), name)
    warnings.simplefilter("ignore")
    import_everything()
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the results
    gc.freeze()
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(in_child(entries, *request), results)
        results.flush()


def import_everything() -> None:
    """Import what is imported when it is used, so that children need not."""
    for name in dir(pts):
        getattr(pts, name)
    for name in ("orbax.checkpoint", "tensorstore", "safetensors"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as directory:
        for name in ("native", "model.npz", "model.msgpack", "model.safetensors"):
            pts.restore(pts.save({"w": np.ones(3), "step": 1}, Path(directory, name), durable=False))
    assert not xla_bridge.backends_are_initialized()  # its threads do not survive a fork


def in_child(
    entries: dict[str, Any], name: str, root: str, steps: tuple[str, ...], fault: Fault | None, disk: Path | None
) -> Outcome:
    """Fork, run the steps in the child, and return how that ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # other libraries write their errors there
        try:
            try:
                outcome = outcome_of(entries[name], root, steps, fault, disk)
                answer = pickle.dumps(outcome)
            except BaseException:
                answer = pickle.dumps(Outcome("crashed", traceback.format_exc(), call="?"))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.alarm(DEADLINE)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    left = signal.alarm(0)
    _, status = os.waitpid(child, 0)
    if answer:
        return pickle.loads(answer)
    was_meant = fault is not None and fault.action in (Action.KILL, Action.CUT_POWER)
    is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if was_meant and is_killed and left:
        return Outcome("killed", call="?")
    return Outcome("crashed" if left else "hung", text=f"ended with the status {status}", call="?")


def outcome_of(entry: Any, root: str, steps: tuple[str, ...], fault: Fault | None, disk: Path | None) -> Outcome:
    """Run the steps in this process."""
    shim, failed, leaks = Shim(), "", ()
    os.chdir(root)
    descriptor = -1 if disk is None else os.open(disk, os.O_RDONLY)
    value, error, text = None, None, ""
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        for step in steps:
            method, *arguments = step.split(":")
            function: Callable[..., Any] = getattr(entry, method)
            is_armed = method == "act" and fault is not None
            try:
                if is_armed:
                    shim.arm(Path(root).resolve(), fault, descriptor)
                value = function(*arguments)
            except BaseException as caught:
                error, text = caught, traceback.format_exc()
            finally:
                if is_armed:
                    shim.disarm()
                    failed = shim.failed
            if error is not None:
                break
    codes = tuple(each.errno for each in causes(error) if isinstance(each, OSError) and each.errno)
    if "act" in steps:
        leaks = what_leaks(root)
    if descriptor >= 0:
        os.close(descriptor)
    status = "done" if error is None else "error" if isinstance(error, pts.CheckpointError) else "raised"
    names = tuple(each.category.__name__ for each in issued)
    return Outcome(status, text, codes, failed, leaks, value, names)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def what_leaks(root: str) -> tuple[str, ...]:
    """Return the files below a directory that are open, and the threads that run although nothing is pending."""
    if open_files_below(root):
        gc.collect()
    running = [thread.name for thread in threading.enumerate() if thread.name.startswith("pytreesaver")]
    return (*(file for _, file in open_files_below(root)), *running)
