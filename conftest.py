"""What every test starts from: eight CPU devices, an empty directory, and the names that the examples use."""

import os
import tracemalloc
import weakref
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import hypothesis
import jax
import numpy as np
import pytest

import pytreesaver
from pytreesaver._io import filesystem

# Writing files takes as long as the disk takes; a deadline would only measure the machine.
hypothesis.settings.register_profile("default", deadline=None, max_examples=100)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(jax=jax, np=np, pytreesaver=pytreesaver, pts=pytreesaver)


@pytest.fixture
def most_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many bytes of fresh buffers were alive at once; with those of NumPy while tracemalloc is tracing."""
    alive = {"now": 0, "most": 0}
    real = filesystem.new_memory

    def counted(nbytes: int) -> Any:
        memory = real(nbytes)
        alive["now"] += nbytes
        alive["most"] = max(alive["most"], alive["now"] + tracemalloc.get_traced_memory()[0])

        def gone() -> None:
            alive["now"] -= nbytes

        owner = memory if memory.base is None else memory.base
        weakref.finalize(getattr(owner, "obj", owner), gone)
        return memory

    monkeypatch.setattr(filesystem, "new_memory", counted)
    return lambda: alive["most"]
