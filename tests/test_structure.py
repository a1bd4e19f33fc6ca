"""The rules about the structure of the code that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "parallel_r1"
ORDER = [
    "errors",
    "files",
    "table",
    "shipped",
    "distributed",
    "settings",
    "registry",
    "answers",
    "models",
    "tasks",
    "generation",
    "coldstart",
    "training",
    "evaluation",
    "runs",
    "report",
    "serve",
    "api",
    "integrations",
    "cli",
    "__main__",
]
"""The parts of the package; each imports only from itself and from those before it."""
FILES = sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The parts of the package that a file imports from, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "parallel_r1":
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("parallel_r1.")}
    return names - {"__version__"}


@pytest.mark.parametrize("path", [p for p in FILES if p != SOURCE / "__init__.py"], ids=lambda p: str(p.name))
def test_a_file_imports_only_from_earlier_parts(path):
    part = part_of(path)
    for other in imports(path) - {part}:
        assert ORDER.index(other) < ORDER.index(part), f"{path.relative_to(SOURCE)} imports {other}"


def test_answers_need_no_torch():
    for path in (SOURCE / "answers").glob("*.py"):
        top = {node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)}
        assert "torch" not in {name.split(".")[0] for node in top for name in [getattr(node, "module", "") or ""]}, path


def test_every_part_has_its_tests():
    tests = Path(__file__).parent
    for part in {part_of(path) for path in FILES} - {"__init__", "__main__", "errors", "files", "settings"}:
        assert list(tests.glob(f"{part}/**/test_*.py")) or (tests / f"test_{part}.py").is_file(), part


def test_only_the_command_line_prints():
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printing or part_of(path) == "cli", path


def calls_of(path: Path) -> set[str]:
    """The names that a file calls: `f` for `f(..)` and for `module.f(..)`."""
    functions = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {getattr(function, "id", getattr(function, "attr", "")) for function in functions}


def test_only_make_generator_constructs_a_generator():
    """Outside generation/ no code constructs a generator, a scheduler or an engine: everything calls `make_generator`,
    which is the only function that imports one."""
    classes = {"LocalEngine", "LocalGenerator", "Scheduler"}
    calls = {path: calls_of(path) for path in FILES}
    outside = [path for path in FILES if part_of(path) != "generation"]
    assert not {str(path): calls[path] & classes for path in outside if calls[path] & classes}
    assert {part_of(path) for path in outside if "make_generator" in calls[path]} >= {"api", "cli", "training", "runs"}
    constructing = {path.relative_to(SOURCE).as_posix() for path in FILES if calls[path] & classes}
    assert constructing == {"generation/generator.py", "generation/local/generator.py"}


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    long = {
        f"{path.relative_to(SOURCE)}: {node.name}": lines
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := length_of(node)) > 50
    }
    assert not long


def test_files_are_short():
    long = {str(path.relative_to(SOURCE)): lines for path in FILES if (lines := path.read_text().count("\n")) > 400}
    assert not long


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_is_light():
    code = "import sys, parallel_r1; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert python(code) == "False False"


def test_checking_a_format_needs_no_torch():
    code = (
        "import sys; from parallel_r1.answers.parser import parse_text; import parallel_r1.__main__;"
        "parse_text('<Path>'); print('torch' in sys.modules)"
    )
    assert python(code) == "False"
