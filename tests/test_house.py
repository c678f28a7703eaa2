"""The house: imports point one way, and the examples in docstrings are true."""

import ast
import doctest
from importlib import import_module

import pytest
from helpers.paths import REPOSITORY


# From the cellar up. A room may import from the rooms before it, never from those behind it. `models` stands below
# `samples`, because a processor must know its model's version, while a model knows nothing of samples.
FLOORS = ("common", "data", "models", "samples", "reading", "report", "training", "doctor", "cli", "lab")
MODULES = sorted(path for path in (REPOSITORY / "dsocr").rglob("*.py"))


def room_of(path) -> str:
    parts = path.relative_to(REPOSITORY / "dsocr").parts
    return parts[0] if len(parts) > 1 else ""


def imports_of(path) -> set[str]:
    """Names of this project's modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "dsocr"}


def test_every_room_has_a_floor_and_one_file_stands_at_the_top():
    rooms = {room_of(path) for path in MODULES} - {""}
    assert rooms == set(FLOORS)
    assert [path.name for path in (REPOSITORY / "dsocr").glob("*.py")] == ["__init__.py"]


def test_no_import_runs_up():
    """Also no product code imports the lab: it is the last floor."""
    up = []
    for path in MODULES:
        room = room_of(path)
        for name in imports_of(path):
            target = name.split(".")[1] if "." in name else ""
            if room and target in FLOORS and FLOORS.index(target) > FLOORS.index(room):
                up.append(f"{path.relative_to(REPOSITORY)} imports {name}")
    assert up == []


def test_no_circle_of_modules():
    names = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
    }
    arrows = {
        name: {target for target in imports_of(path) if target in names and target != name}
        for name, path in names.items()
    }
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle of imports: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for target in sorted(arrows[name]):
                walk(target, (*above, name))
            done.add(name)

    for name in sorted(names):
        # A package's __init__ imports its own modules, which is how a package offers its names.
        if names[name].name != "__init__.py":
            walk(name, ())


def test_no_test_imports_another():
    tests = REPOSITORY / "tests"
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.split(".")[-1].startswith("test_"), f"{path}: {node.module}"
                assert node.module != "conftest", path


@pytest.mark.parametrize("path", [p for p in MODULES if ">>> " in p.read_text(encoding="utf-8")], ids=lambda p: p.stem)
def test_the_examples_of_docstrings_are_true(path):
    module = import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0
