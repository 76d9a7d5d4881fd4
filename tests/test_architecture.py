"""The rooms stand on floors: a file imports its own room and the floors below it, and rooms and files stay small.

ARCHITECTURE.md says what each room is for.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pytreesaver"
FLOORS = [
    ["_errors", "_text"],
    ["_io"],
    ["_progress"],
    ["_tree"],
    ["formats"],
    ["_run"],
    ["_checkpoint"],
    ["_savers", "_inspect"],
    ["_cli", "testing"],
    ["inspect_checkpoint"],
    ["__init__", "__main__"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}


def room_of(module):
    return module.split(".")[1]


def imported(file):
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            for alias in node.names:
                yield from module_of(f"{node.module}.{alias.name}") or module_of(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from module_of(alias.name)


def module_of(name):
    """The module of a dotted name in a list, if it is one of the package's below its top."""
    found = [each for each in (name, f"{name}.__init__") if each in MODULES]
    return [each for each in found if each != "pytreesaver.__init__"]


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} == FLOOR_OF.keys()


def test_a_file_imports_its_own_room_and_the_floors_below():
    wrong = [
        f"{module} imports {other}"
        for module, file in MODULES.items()
        for other in imported(file)
        if room_of(other) != room_of(module) and FLOOR_OF[room_of(other)] >= FLOOR_OF[room_of(module)]
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    edges = {module: set(imported(file)) for module, file in MODULES.items()}
    while leaves := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert edges == {}


def test_only_the_registry_knows_which_formats_there_are():
    for module, file in MODULES.items():
        others = {each.split(".")[2] for each in imported(file) if each.startswith("pytreesaver.formats.")}
        rooms = {each.stem for each in (PACKAGE / "formats").iterdir() if each.is_dir() and each.name[0] != "_"}
        if not module.startswith(tuple(f"pytreesaver.formats.{room}." for room in rooms)):
            assert not others & rooms, module


@pytest.mark.parametrize("room", [PACKAGE, *(each for each in PACKAGE.rglob("[!_]*") if each.is_dir())], ids=str)
def test_a_room_has_at_most_ten_files(room):
    files = [each.name for each in room.glob("*.py") if each.name != "__init__.py"]
    assert len(files) <= 10, sorted(files)
