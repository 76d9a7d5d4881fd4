"""Helpers for tests of several packages."""

import subprocess
import sys
import textwrap

import pytest


def message_of(error, call):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def run_program(program, *, returncode):
    """Run a program in a new process and return its stderr."""
    imports = "import os, signal, sys, time, numpy as np, pytreesaver as pts\n"
    command = [sys.executable, "-c", imports + textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == returncode, result.stderr
    assert "not reached" not in result.stderr
    return result.stderr
