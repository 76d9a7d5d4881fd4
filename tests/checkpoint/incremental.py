"""What several tests of incremental saves need."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np


def array(seed, count=40_000):
    return jnp.asarray(np.random.default_rng(seed).random(count, np.float32))


def shared_files(path):
    return sorted(file.name for file in Path(path).glob("data-*") if file.stat().st_nlink > 1)


def written_nbytes(path):
    files = json.loads((Path(path) / "index.json").read_text())["files"]
    return sum(file["nbytes"] for file in files if not file.get("shared"))


def nbytes_of(path):
    return sum(file.stat().st_size for file in Path(path).iterdir())


def refuse(number):
    def link(source, target):
        raise OSError(number, os.strerror(number))

    return link
