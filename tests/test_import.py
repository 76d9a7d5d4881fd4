"""What `import pytreesaver` imports."""

import subprocess
import sys

import numpy as np

import pytreesaver as pts

USE_ALL = "[getattr(pts, name) for name in pts.__all__]"


def run(code):
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_heavy_packages_are_not_imported():
    heavy = ["orbax", "tensorstore", "rich", "flax", "hypothesis", "pytest", "safetensors"]
    imported = run(f"import sys, pytreesaver as pts; {USE_ALL}; print(*sys.modules)").split()
    assert not {name.partition(".")[0] for name in imported} & set(heavy)


NOT_TO_INSPECT = {
    *("jax", "jaxlib", "orbax", "tensorstore", "obstore", "treescope", "cramjam", "google_crc32c"),
    *("flatbuffers", "rapidfuzz", "rich", "asyncio", "multiprocessing", "ssl", "http", "email", "pytest"),
}


def test_inspecting_on_the_command_line_imports_little():
    with pts.CheckpointManager("run", block=True) as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.arange(3), "b": 1.5}, metrics={"loss": 1.0})
    program = """
import sys
from pytreesaver._cli import main
for line in sys.stdin.read().splitlines():
    print(main(line.split()), *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""
    lines = ["ls run", "ls run/ckpt-1", "show run w", "show run --stats", "diff run run", "info run", "verify run"]
    finished = subprocess.run(
        [sys.executable, "-c", program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    for line, printed in zip(lines, finished.stderr.splitlines(), strict=True):
        code, *imported = printed.split()
        assert (line, code, set(imported) & NOT_TO_INSPECT) == (line, "0", set())


def test_submodules_are_imported_lazily():
    imported = run("import sys, jax; before = set(sys.modules); import pytreesaver; print(*set(sys.modules) - before)")
    assert [name for name in imported.split() if name.startswith("pytreesaver")] == ["pytreesaver"]
    assert run("import pytreesaver as pts; print(pts.save.__name__, 'restore' in dir(pts))") == "save True"
    assert "attribute sav" in run("import pytreesaver as pts\ntry: pts.sav\nexcept AttributeError as e: print(e)")


def test_import_does_not_initialize_devices():
    assert (
        run(f"import jax, pytreesaver as pts; {USE_ALL}; print(jax._src.xla_bridge.backends_are_initialized())")
        == "False"
    )


def test_public_names_are_sorted_and_documented():
    assert sorted(pts.__all__) == pts.__all__
    aliases = {"PathLike", "Progress", "Rename", "Selection", "ShardingRule"}
    for name in set(pts.__all__) - aliases:
        assert getattr(pts, name).__doc__, name


def test_inspecting_checkpoints_does_not_import_jax():
    program = """
import sys, pytreesaver as pts
print(pts.latest_checkpoint("run"), pts.list_variables("run/ckpt-2"), pts.load_variable("run/ckpt-2", "w"))
pts.verify("run/ckpt-2"), pts.diff("run/ckpt-1", "run/ckpt-2"), pts.get_checkpoint_state("run"), pts.glob("w")
pts.remove_checkpoint("run/ckpt-1")
print("jax" in sys.modules)
"""
    run(
        "import numpy as np, pytreesaver as pts\nwith pts.CheckpointManager('run') as manager:\n"
        "    for step in (1, 2): manager.save(step, {'w': np.arange(step), 'key': 1.5, 'text': 'a'})"
    )
    assert run(program).splitlines()[-1] == "False"
