"""Common test setup: eight CPU devices, an empty working directory, and the names that doctests use."""

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
from pytreesaver.formats import registry

# A deadline would only measure the speed of the disk.
hypothesis.settings.register_profile("default", deadline=None, max_examples=100)
hypothesis.settings.load_profile("default")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use one process more than there are cores: several tests only wait for other processes."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def registered_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the formats that a test registers."""
    for name in ("_registered", "_registered_endings"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(jax=jax, np=np, pytreesaver=pytreesaver, pts=pytreesaver)


@pytest.fixture
def peak_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that returns the peak size of all buffers, including those of NumPy while tracemalloc is tracing."""
    alive = {"now": 0, "peak": 0}
    real = filesystem.new_memory

    def counting_new_memory(nbytes: int) -> Any:
        memory = real(nbytes)
        alive["now"] += nbytes
        alive["peak"] = max(alive["peak"], alive["now"] + tracemalloc.get_traced_memory()[0])

        def released() -> None:
            alive["now"] -= nbytes

        owner = memory if memory.base is None else memory.base
        weakref.finalize(getattr(owner, "obj", owner), released)
        return memory

    monkeypatch.setattr(filesystem, "new_memory", counting_new_memory)
    return lambda: alive["peak"]
