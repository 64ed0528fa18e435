"""The table of rooms in docs/architecture.md, held against the imports of the code."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_bmdetr"


def table_of_rooms() -> dict[str, tuple[list[str], str]]:
    """Each room's files and the text of its last column, in the order of the table."""
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| room | files | holds | may import |") + 2
    rooms = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        name, files, _, allowed = (cell.strip() for cell in line.strip("|").split("|"))
        rooms[name] = (re.findall(r"`([^`]+)`", files), allowed)
    return rooms


ROOMS = table_of_rooms()


def allowed_rooms(room: str) -> set[str]:
    text = ROOMS[room][1]
    above = list(ROOMS)[: list(ROOMS).index(room)]
    if text == "every room":
        return set(above)
    if text.startswith("every room above"):
        _, _, excepted = text.partition(" but ")
        return set(above) - set(filter(None, excepted.split(", ")))
    return set() if text == "nothing" else set(text.split(", "))


def room_of(file: str) -> str:
    """The room of a file of the package; one named by itself goes before its folder's."""
    for exact in (True, False):
        for room, (places, _) in ROOMS.items():
            if any(place == file if exact else place.endswith("/") and file.startswith(place) for place in places):
                return room
    raise AssertionError(f"{file} stands in no room: add it to the table in docs/architecture.md")


def imported_files(path: Path) -> set[str]:
    """Files of the package that a file imports, inside functions and for type checkers too."""
    found: set[str] = set()
    folder = path.parent
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = folder
        for _ in range(node.level - 1):
            base = base.parent
        target = base.joinpath(*(node.module or "").split(".")) if node.module else base
        for alias in node.names:
            for candidate in (target / f"{alias.name}.py", target / alias.name / "__init__.py"):
                if candidate.exists():
                    found.add(candidate.relative_to(PACKAGE).as_posix())
                    break
            else:
                module = target.with_suffix(".py") if target.with_suffix(".py").exists() else target / "__init__.py"
                assert module.exists(), f"{path} imports {module}, which does not exist"
                found.add(module.relative_to(PACKAGE).as_posix())
    return found


FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {file: imported_files(path) for file, path in FILES.items()}


def test_every_file_has_a_room_and_every_room_its_files() -> None:
    for file in FILES:
        room_of(file)
    for room, (places, _) in ROOMS.items():
        for place in places:
            assert (PACKAGE / place).exists(), f"the room '{room}' names {place}, which does not exist"


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) != "door"])
def test_a_file_imports_only_what_its_room_may(file: str) -> None:
    room = room_of(file)
    for imported in IMPORTS[file]:
        other = room_of(imported)
        assert other == room or other in allowed_rooms(room), f"{file} ({room}) imports {imported} ({other})"


def test_rooms_import_only_rooms_above_them() -> None:
    order = list(ROOMS)
    for room in ROOMS:
        assert all(order.index(other) < order.index(room) for other in allowed_rooms(room)), room


def test_no_circle_among_files() -> None:
    graph = {file: {other for other in imported if other != file} for file, imported in IMPORTS.items()}
    # The door's lazy lists of names import their rooms for type checkers only.
    for file in graph:
        if file.endswith("__init__.py"):
            graph[file] = set() if room_of(file) == "door" else graph[file]
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' -> '.join(error.args[1])}")


def test_travelling_files_import_only_travelling_files() -> None:
    for file, imported in IMPORTS.items():
        if file.endswith("_bmdetr.py"):
            assert all(other.endswith("_bmdetr.py") and "/" not in other for other in imported), file


def test_nothing_in_the_package_imports_what_uses_it() -> None:
    for file, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] in ("examples", "dataset_scripts", "tests") for name in names), file


def equations() -> list[tuple[str, str, str]]:
    """The rows of the equation table: what the paper has, the code, its files."""
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| paper | code | file |") + 2
    rows = []
    for line in lines[start : lines.index("", start)]:
        paper, code, files = (cell.strip() for cell in line.strip("|").split("|"))
        rows.append((paper, code, files))
    return rows


@pytest.mark.parametrize(("paper", "code", "files"), equations())
def test_an_equation_stands_where_the_table_says(paper: str, code: str, files: str) -> None:
    paths = [PACKAGE / name for name in re.findall(r"`([^`]+)`", files)]
    texts = [
        file.read_text(encoding="utf-8")
        for path in paths
        for file in sorted([path, *path.glob("*.py")])
        if file.is_file()
    ]
    name = re.findall(r"`(\w+)`", code)[0]
    assert any(re.search(rf"^(def|class) {name}\b", text, re.MULTILINE) for text in texts), f"{paper}: {name}"
