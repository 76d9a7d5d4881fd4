"""Write all attacks anew: their files, and one table for each format.

    python -m tests.attacks.write

Nothing in them depends on the time or on chance: the same files are written each time.
"""

import importlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attacks.attack import FILES, Attack, table_of

MAKERS = {
    "native": ("native", "native_trees"),
    "safetensors": ("safetensors",),
    "hugging_face": ("hugging_face",),
    "npz": ("npz",),
    "equinox": ("npz",),
    "msgpack": ("msgpack",),
    "tensorflow": ("tensorflow",),
    "orbax": ("orbax",),
    "runs": ("runs",),
    "leases": ("leases",),
}
"""The modules that make the attacks of each format."""


def attacks_of(format: str) -> Mapping[str, Attack]:
    """Return the attacks on a format, by name."""
    found: dict[str, Attack] = {}
    for name in MAKERS[format]:
        module = importlib.import_module(f"attacks.makers.{name}")
        attacks = module.FILES_OF_EQUINOX if format == "equinox" else module.ATTACKS
        assert not found.keys() & attacks.keys(), found.keys() & attacks.keys()
        found |= attacks
    return found


def contents() -> Mapping[str, bytes]:
    """Return the contents of all files, by their paths."""
    result: dict[str, bytes] = {}
    for format in MAKERS:
        attacks = attacks_of(format)
        result[f"{format}.toml"] = table_of(attacks).encode()
        for name, attack in attacks.items():
            result |= {f"{format}/{name}{path}": content for path, content in attack.files.items()}
    return result


def main() -> None:
    """Write all files."""
    shutil.rmtree(FILES, ignore_errors=True)
    for name, content in contents().items():
        (FILES / name).parent.mkdir(parents=True, exist_ok=True)
        (FILES / name).write_bytes(content)


if __name__ == "__main__":
    main()
