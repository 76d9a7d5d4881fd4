"""What importing pytreesaver costs and brings along."""

import subprocess
import sys

USE_ALL = "[getattr(pts, name) for name in pts.__all__]"


def run(code):
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_heavy_packages_are_not_imported():
    heavy = ["orbax", "tensorstore", "rich", "flax", "hypothesis", "pytest", "safetensors"]
    imported = run(f"import sys, pytreesaver as pts; {USE_ALL}; print(*sys.modules)").split()
    assert not {name.partition(".")[0] for name in imported} & set(heavy)


def test_import_alone_imports_little_of_pytreesaver():
    imported = run("import sys, jax; before = set(sys.modules); import pytreesaver; print(*set(sys.modules) - before)")
    assert imported.split() == ["pytreesaver"]
    assert run("import pytreesaver as pts; print(pts.save.__name__, 'restore' in dir(pts))") == "save True"
    assert "no attribute 'sav'" in run("import pytreesaver as pts\ntry: pts.sav\nexcept AttributeError as e: print(e)")


def test_import_touches_no_device():
    assert (
        run(f"import jax, pytreesaver as pts; {USE_ALL}; print(jax._src.xla_bridge.backends_are_initialized())")
        == "False"
    )


def test_everything_public_has_a_docstring_and_is_listed():
    import pytreesaver as pts

    assert sorted(pts.__all__) == pts.__all__
    for name in pts.__all__:
        assert getattr(pts, name).__doc__, name


def test_checkpoints_are_looked_at_without_importing_jax():
    looking = """
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
    assert run(looking).splitlines()[-1] == "False"
