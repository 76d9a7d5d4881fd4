"""Check the wheel and the sdist in a directory, and try the wheel in an environment that has nothing else.

``python -m tests.release.check_dist dist build/bare`` makes the environment in ``build/bare``.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path

from packaging.utils import parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

from tests.release.changelog import CHANGELOG, notes_to_release

ROOT = Path(__file__).parents[2]

IN_SDIST = ["pytreesaver", "tests", "examples", "benchmarks", "docs"]
FILES_IN_SDIST = [
    "pyproject.toml",
    "Makefile",
    "constraints.txt",
    "conftest.py",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
]
NOT_IN_EITHER = re.compile(r"(^|/)(__pycache__|\.git|\.venv[^/]*|\.hypothesis|\.[a-z]+_cache|crashes|build|dist)(/|$)")
MAX_WHEEL_NBYTES, MAX_SDIST_NBYTES = 2 << 20, 20 << 20

# Run in the bare environment: what a user does first.
FIRST_USE = """
import importlib.util
import jax.numpy as jnp
import numpy as np
import pytreesaver as pts

assert importlib.util.find_spec("pytest") is None, "the environment is not bare"
tree = {"w": jnp.arange(6.0).reshape(2, 3), "half": np.ones(2, np.float16), "step": 3, "names": ("a", "b")}
pts.save(tree, "model")
pts.verify("model")
restored = pts.restore("model")
assert restored["names"] == ("a", "b") and restored["step"] == 3, restored
assert np.array_equal(restored["w"], tree["w"]) and restored["half"].dtype == np.float16, restored
print(pts.__file__)
"""


def main(dist: Path, bare: Path) -> None:
    """Check everything, and print what was checked."""
    wheel, sdist = only(dist, "*.whl"), only(dist, "*.tar.gz")
    version = parse_wheel_filename(wheel.name)[1]
    expect(parse_sdist_filename(sdist.name)[1] == version, f"{sdist.name}: expected version {version}")
    if not (version.is_devrelease or version.local):
        notes_to_release(CHANGELOG.read_text(encoding="utf-8"), str(version))
    check_wheel(wheel, version)
    check_sdist(sdist, version)
    try_wheel(wheel, version, bare)


def check_wheel(wheel: Path, version: Version) -> None:
    """Check that a wheel has every file of the package, typing and assets included, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"pytreesaver-{version}.dist-info"
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    package = {name for name in names if name.startswith("pytreesaver/")}
    same(package, source_files(["pytreesaver"]), wheel)
    others = {name for name in names - package if not name.startswith(f"{info}/")}
    expect(not others, f"{wheel.name}: expected only the package, found {sorted(others)}")
    for kind in ("pytreesaver/py.typed", "pytreesaver/__init__.pyi", f"{info}/licenses/LICENSE"):
        expect(kind in names, f"{wheel.name}: expected {kind}")
    for suffix in (".html", ".css", ".js"):
        found = [name for name in package if name.startswith("pytreesaver/_inspect/report/") and name.endswith(suffix)]
        expect(bool(found), f"{wheel.name}: expected the report's {suffix} files")
    expect("pytreesaver = pytreesaver._cli:main" in scripts, f"{wheel.name}: expected the command, found {scripts!r}")
    expect(metadata["License-Expression"] == "Apache-2.0", f"{wheel.name}: expected the licence in the metadata")
    small_and_clean(wheel, names, MAX_WHEEL_NBYTES)


def check_sdist(sdist: Path, version: Version) -> None:
    """Check that an sdist has the sources, the tests, the examples and the documentation."""
    with tarfile.open(sdist) as archive:
        root = f"pytreesaver-{version}/"
        names = {member.name.removeprefix(root) for member in archive.getmembers() if member.isfile()}
    same({name for name in names if name.split("/")[0] in IN_SDIST}, source_files(IN_SDIST), sdist)
    missing = set(FILES_IN_SDIST) - names
    expect(not missing, f"{sdist.name}: expected {sorted(missing)}")
    small_and_clean(sdist, names, MAX_SDIST_NBYTES)


def try_wheel(wheel: Path, version: Version, bare: Path) -> None:
    """Install a wheel in a new environment without pip, and use it there, away from the sources."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", bare], check=True)
    scripts = bare / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", wheel], check=True)
    subprocess.run([*pip, "check"], check=True)
    with tempfile.TemporaryDirectory() as empty:
        for command in ([python, "-m", "pytreesaver"], [scripts / "pytreesaver"]):
            printed = output([*command, "--version"], empty)
            expect(printed == f"pytreesaver {version}", f"{command}: expected version {version}, found {printed!r}")
        used = output([python, "-c", FIRST_USE], empty)
        expect(Path(used).is_relative_to(bare), f"expected the installed package, found {used}")
        listed = output([scripts / "pytreesaver", "ls", "model"], empty)
        expect("float32[2,3]" in listed, f"pytreesaver ls: expected a list of variables, found {listed!r}")
    nbytes = sum(file.stat().st_size for file in bare.rglob("*") if file.is_file() and not file.is_symlink())
    packages = len(list(bare.rglob("*.dist-info")))
    print(f"{wheel.name} works in an environment of {packages} packages, {nbytes / 1e6:.0f} MB")


def output(command: list[str | Path], directory: str) -> str:
    """Return what a command prints, run in a directory without the paths of this environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    finished = subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return finished.stdout.strip()


def source_files(directories: list[str]) -> set[str]:
    """Return the files that git knows, or would add, in directories of the source tree."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *directories]
    listed = subprocess.run(git, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")
    return {name for name in listed if name and (ROOT / name).is_file()}


def same(found: set[str], expected: set[str], archive: Path) -> None:
    """Check that an archive has exactly the files of the source tree."""
    missing, added = sorted(expected - found), sorted(found - expected)
    expect(not missing and not added, f"{archive.name}: missing {missing}, unexpected {added}")


def small_and_clean(archive: Path, names: Iterable[str], max_nbytes: int) -> None:
    """Check that nothing that a program generates is in an archive, and that it is not larger than it should be."""
    generated = sorted(name for name in names if NOT_IN_EITHER.search(name))
    expect(not generated, f"{archive.name}: unexpected {generated}")
    nbytes = archive.stat().st_size
    expect(nbytes <= max_nbytes, f"{archive.name}: expected at most {max_nbytes} bytes, found {nbytes}")
    print(f"{archive.name}: {len(set(names))} files, {nbytes / 1e6:.1f} MB")


def only(directory: Path, pattern: str) -> Path:
    """Return the one file that matches."""
    found = sorted(directory.glob(pattern))
    expect(len(found) == 1, f"{directory}: expected one {pattern}, found {[each.name for each in found]}")
    return found[0]


def expect(holds: bool, message: str) -> None:
    """End the program with a message unless something holds."""
    if not holds:
        sys.exit(message)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).absolute())
