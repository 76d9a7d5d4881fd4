"""Processes of one JAX program for tests: they run functions of the tests together, and stay for the next one."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent
START_SECS = 90


class DeadProcessError(Exception):
    """A process ended, or did not answer in time."""


class Failed:
    """An exception that a function raised in a process: its class names, its message and its attributes."""

    def __init__(self, error):
        self.kinds = [kind.__name__ for kind in type(error).__mro__]
        self.message = str(error)
        self.missing = getattr(error, "missing", None)

    def __repr__(self):
        return f"{self.kinds[0]}: {self.message}"


class Member:
    def __init__(self, rank, count, devices, address):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]),
        }
        command = [sys.executable, str(HERE / "member.py"), str(rank), str(count), address]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.errors = bytearray()
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self):
        while chunk := self.process.stderr.read1():
            self.errors += chunk

    def send(self, message):
        pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()

    def receive(self, timeout):
        result = []

        def read():
            try:
                result.append(pickle.load(self.process.stdout))
            except (EOFError, pickle.UnpicklingError):
                result.append(DeadProcessError("it ended"))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(timeout)
        return result[0] if result else DeadProcessError(f"no answer in {timeout} s")

    def end(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                pipe.close()
            except OSError:
                pass


class Team:
    """Some processes of one program.

    ``team.run(function, *arguments)`` calls a function of a test module in all of them. It returns what it returned in
    each, a `Failed` for an exception, or a `DeadProcessError`, after which `ensure` starts new processes.
    """

    def __init__(self, count=2, devices=2):
        self.count, self.devices = count, devices
        self.members = []

    def ensure(self):
        if self.members and all(member.process.poll() is None for member in self.members):
            return
        self.close()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.members = [Member(rank, self.count, self.devices, address) for rank in range(self.count)]
        for member in self.members:
            answer = member.receive(START_SECS)
            assert answer == "ready", f"{answer!r}\n{member.errors.decode(errors='replace')[-3000:]}"

    def run(self, function, *arguments, timeout=60, kill_others=True):
        self.ensure()
        message = (function.__code__.co_filename, function.__name__, arguments)
        for member in self.members:
            member.send(message)
        results = [member.receive(timeout) for member in self.members]
        if kill_others and any(isinstance(result, DeadProcessError) for result in results):
            self.close()
        return results

    def signal(self, rank, number=signal.SIGKILL):
        self.members[rank].process.send_signal(number)

    def close(self):
        for member in self.members:
            member.end()
        self.members = []
