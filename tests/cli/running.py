"""Run commands in new processes, and checkpoints for them."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import pytreesaver as pts
from pytreesaver._cli import main

ESCAPE = "\x1b"


HOSTILE = "evil\x1b[31m\x1b[2J\r\u202etxt"


CODES = re.compile(r"\x1b\[[0-9;]*m")


class Result(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def environment(**extra):
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return {**kept, "TERM": "xterm-256color", **extra}


def command(*arguments, module="pytreesaver"):
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(*arguments, columns=None, module="pytreesaver", **extra):
    """Run a command whose output goes to pipes."""
    if columns is not None:
        extra["COLUMNS"] = str(columns)
    result = subprocess.run(
        command(*arguments, module=module), capture_output=True, env=environment(**extra), check=False, timeout=120
    )
    return Result(result.returncode, result.stdout.decode(), result.stderr.decode())


def run_here(*arguments):
    """Run a command in this process, which takes a fraction of the time."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(each) for each in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def run_on_terminal(*arguments, columns, **extra):
    """Run a command whose stdout and stderr are terminals with `columns` columns."""
    texts = [bytearray(), bytearray()]
    pairs = [pty.openpty() for _ in texts]
    for _, slave in pairs:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        command(*arguments), stdin=subprocess.DEVNULL, stdout=pairs[0][1], stderr=pairs[1][1], env=environment(**extra)
    )

    def drain(master, text):
        try:
            while part := os.read(master, 1 << 16):
                text += part
        except OSError:  # the other end is closed
            pass

    for _, slave in pairs:
        os.close(slave)
    readers = [threading.Thread(target=drain, args=(master, text)) for (master, _), text in zip(pairs, texts)]
    for reader in readers:
        reader.start()
    code = process.wait(120)
    for reader in readers:
        reader.join()
    for master, _ in pairs:
        os.close(master)
    out, err = (text.decode().replace("\r\n", "\n") for text in texts)
    return Result(code, out, err)


def layers(count, scale):
    return {f"layer_{i}": {"kernel": jnp.full((4, 8), scale + i), "bias": np.zeros(8)} for i in range(count)}


def save_run(count=5):
    with pts.CheckpointManager("run", max_to_keep=None, block=True) as manager:
        for step in range(count):
            manager.save(step, {"w": np.full(3, step), "b": {"c": 1.0}}, metrics={"loss": float(step)})


def remaining_steps():
    return [each.step for each in pts.list_checkpoints("run")]
