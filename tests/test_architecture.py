"""The packages form layers: a module imports from its own package and lower layers only, and packages stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pytreesaver"
LAYERS = [
    ["_errors", "_text"],
    ["_io"],
    ["_progress"],
    ["_tree"],
    ["formats"],
    ["_run"],
    ["_checkpoint"],
    ["_savers", "_inspect"],
    ["_cli", "testing"],
    ["inspect_checkpoint", "orbax"],
    ["__init__", "__main__"],
]
LARGE_CLASSES = ["_savers/manager.py"]
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}


def package_of(module):
    return module.split(".")[1]


def imported(file):
    """Yield the modules of pytreesaver that a file imports, at any level of nesting."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            for alias in node.names:
                yield from module_of(f"{node.module}.{alias.name}") or module_of(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from module_of(alias.name)


def module_of(name):
    """Return a list with the module of a dotted name, or an empty list if it is not inside of pytreesaver."""
    found = [each for each in (name, f"{name}.__init__") if each in MODULES]
    return [each for each in found if each != "pytreesaver.__init__"]


def test_every_package_has_a_layer():
    assert {package_of(module) for module in MODULES} == LAYER_OF.keys()


def test_imports_are_from_the_same_package_or_lower_layers():
    wrong = [
        f"{module} imports {other}"
        for module, file in MODULES.items()
        for other in imported(file)
        if package_of(other) != package_of(module) and LAYER_OF[package_of(other)] >= LAYER_OF[package_of(module)]
    ]
    assert wrong == []


def test_there_are_no_import_cycles():
    edges = {module: set(imported(file)) for module, file in MODULES.items()}
    while leaves := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert edges == {}


def test_other_modules_do_not_import_formats_directly():
    for module, file in MODULES.items():
        others = {each.split(".")[2] for each in imported(file) if each.startswith("pytreesaver.formats.")}
        formats = {each.stem for each in (PACKAGE / "formats").iterdir() if each.is_dir() and each.name[0] != "_"}
        if not module.startswith(tuple(f"pytreesaver.formats.{name}." for name in formats)):
            assert not others & formats, module


OS_FUNCTIONS = ("stat", "lstat", "fstat", "access", "scandir", "listdir", "readlink", "walk")
OS_PATH_FUNCTIONS = ("exists", "lexists", "isdir", "isfile", "islink", "getsize", "getmtime", "realpath", "samefile")
PATH_METHODS = (
    *("exists", "is_dir", "is_file", "is_symlink", "stat", "lstat", "iterdir", "glob", "rglob", "resolve", "samefile"),
    *("unlink", "rmdir", "mkdir", "touch", "readlink", "owner", "is_mount", "is_fifo"),
)


def file_system_calls(file):
    """Yield the lines of a file that ask the file system something, without `pytreesaver._io.filesystem`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            known = {"os": OS_FUNCTIONS, "os.path": OS_PATH_FUNCTIONS}.get(owner, PATH_METHODS)
            if name in known and owner not in ("filesystem", "places"):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}: {owner}.{name}"


def test_only_one_module_asks_the_file_system():
    files = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "_io" / "filesystem.py"]
    calls = [call for file in files if "testing" not in file.parts for call in file_system_calls(file)]
    # os.path.exists and the methods of pathlib answer "no" to every error.
    assert calls == []


def test_calls_of_the_file_system_are_found():
    calls = list(file_system_calls(PACKAGE / "_io" / "filesystem.py"))
    assert [call for call in calls if "os.stat" in call]
    assert [call for call in calls if "os.path.realpath" in call]


ROOMS = [PACKAGE, *sorted(each.parent for each in PACKAGE.rglob("*/__init__.py"))]


@pytest.mark.parametrize("package", ROOMS, ids=str)
def test_a_package_has_at_most_ten_files(package):
    files = [each.name for each in package.glob("*.py") if each.name != "__init__.py"]
    assert len(files) <= 10, sorted(files)


@pytest.mark.parametrize("folder", ["pytreesaver", "tests"])
def test_a_file_has_at_most_400_lines(folder):
    lines = {
        file.relative_to(ROOT / folder).as_posix(): len(file.read_text().splitlines())
        for file in (ROOT / folder).rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > (500 if name in LARGE_CLASSES else 400)} == {}
