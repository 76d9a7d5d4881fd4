"""What every test starts from: eight CPU devices, an empty directory, and the names that the examples use."""

import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import hypothesis
import jax
import numpy as np
import pytest

import pytreesaver

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
