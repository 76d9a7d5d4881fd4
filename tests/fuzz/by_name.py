"""All parsers that are fuzzed, by name."""

import importlib

NAMES = {
    "index": "native.index",
    "models": "native.models",
    "safetensors": "safetensors.file",
    "from_bytes": "safetensors.our_file",
    "hugging_face": "safetensors.hugging_face",
    "state": "runs.state",
    "state_sums": "runs.state_sums",
    "history": "runs.history",
    "record": "runs.record",
    "lock": "runs.lock",
    "lease": "runs.lease",
    "table": "tensorflow.table",
    "messages": "tensorflow.messages",
    "npz": "archives.npz",
    "equinox": "archives.equinox",
    "msgpack": "msgpack.trees",
    "orbax": "orbax.orbax",
}
"""The module and the function that makes the target."""


def target_named(name):
    """Return a target."""
    module, _, function = NAMES[name].partition(".")
    return getattr(importlib.import_module(f"fuzz.targets.{module}"), function)()
