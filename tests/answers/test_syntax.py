"""The file `answers/schemas.py` is the only place that spells a fork."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import parallel_r1
from parallel_r1.answers.schemas import DEFAULT, SCHEMAS

SOURCE = Path(parallel_r1.__file__).parent
TAGS = {tag for schema in SCHEMAS.values() for tag in schema.tags}
FOLLOWS = """
import random
from parallel_r1.answers.convert import convert, repair
from parallel_r1.answers.parser import parse_text
from parallel_r1.answers.schemas import DEFAULT, SCHEMAS
from parallel_r1.coldstart.instruction import instruction
from parallel_r1.models.tags import sample
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.prompts import PARALLEL

SAMPLE, fork = sample(DEFAULT), DEFAULT.write(["a", "b"], "c")
join = "</Parallel>" + {gap!r} + "<Summary>"
answer = None
while answer is None:
    answer = EASY.parallel_answer(EASY.problem((3, 5, 7), 22), random.Random(), 2, 2, 20)
for text in (answer, SAMPLE, PARALLEL, instruction(), fork):
    assert join in text, text
assert not parse_text(answer).defects
assert not parse_text(SAMPLE).defects
for other in ("", " ", "\\n", "\\n\\n"):
    assert repair("<Parallel><Path>a</Path><Path>b</Path></Parallel>" + other + "<Summary>c</Summary>")[0] == fork
for schema in SCHEMAS.values():
    assert convert(convert(fork, DEFAULT, schema), schema, DEFAULT) == fork
print("ok")
"""


def test_a_fork_as_text():
    assert DEFAULT.write(["a", "b"], "c") == "<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>"
    assert DEFAULT.write(["a", "b"], None) == "<Parallel><Path>a</Path><Path>b</Path></Parallel>"


@pytest.mark.parametrize("gap", [" ", "\n\n", ""])
def test_another_way_to_open_a_summary_touches_one_file(tmp_path, gap):
    """Teachers' answers, prompts, parser, repair and formats follow a change of `schemas.py` alone."""
    shutil.copytree(SOURCE, tmp_path / "parallel_r1", ignore=shutil.ignore_patterns("__pycache__"))
    schemas = tmp_path / "parallel_r1" / "answers" / "schemas.py"
    text = schemas.read_text()
    assert text.count('gap="\\n"') == 1
    schemas.write_text(text.replace('gap="\\n"', f"gap={gap!r}"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + FOLLOWS.format(gap=gap)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr


def test_no_other_file_spells_a_tag():
    """Tags may stand in docstrings, comments and help texts, not in other strings of more than one tag."""
    for path in SOURCE.rglob("*.py"):
        if path == SOURCE / "answers" / "schemas.py":
            continue
        tree = ast.parse(path.read_text())
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        spelled = [s.value for s in strings if id(s) not in bare and sum(s.value.count(tag) for tag in TAGS) > 1]
        assert not spelled, (path, spelled)
