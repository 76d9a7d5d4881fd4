"""Helpers for tests of several packages."""

import json
import subprocess
import sys
import textwrap

import pytest
import xxhash


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


def rewrite(path, edit):
    """Edit the index of a checkpoint as JSON and update its checksum, as an attacker would."""
    file = path / "index.json"
    index = json.loads(file.read_text())
    del index["checksum"]
    edit(index)
    body = json.dumps(index)[:-1] + ","
    file.write_text(f'{body}"checksum":"{xxhash.xxh3_64_hexdigest(body.encode())}"}}\n')
