"""The house rules that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "parallel_r1"
FLOORS = [
    {"errors"},
    {"trace", "files", "processes", "significance", "grading"},
    {"config", "rollout", "attention", "data", "formats"},
    {"recipe_file", "tasks", "rewards", "models", "attend", "decoding", "drawing"},
    {"batch", "engines", "analysis", "adapters", "prepare"},
    {"algorithms", "fork_join", "coldstart"},
    {"learner", "evaluate", "parity", "run_folder", "monitor", "teacher"},
    {"train", "report", "plan", "tracking"},
    {"curriculum", "display"},
    {"study"},
    {"commands"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("parallel_r1"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("parallel_r1.")}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != SOURCE or p.stem != "__init__"], ids=str)
def test_a_room_imports_only_from_lower_floors(path):
    room = room_of(path)
    for other in imports(path) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"


def test_every_room_has_its_tests():
    tested = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    elsewhere = {
        "errors": "recipe_file",
        "config": "recipe_file",
        "files": "run_folder",
        "parity": "fork_join",
        "drawing": "fork_join",
        "algorithms": "grpo",
        "__main__": "command_line",
        "commands": "command_line",
        "display": "command_line",
    }
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert {elsewhere.get(room, room) for room in rooms} <= tested


def test_only_the_command_line_prints():
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printing or room_of(path) == "commands", path


def test_importing_the_package_is_light():
    code = "import sys, parallel_r1; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_checking_a_format_needs_no_torch():
    code = (
        "import sys; from parallel_r1.trace import parse_text; import parallel_r1.__main__;"
        "parse_text('<Path>'); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"
