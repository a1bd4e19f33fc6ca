"""The file `answers/syntax.py` is the only place that spells a fork."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import parallel_r1
from parallel_r1.answers.syntax import TAGS, fork_text

SOURCE = Path(parallel_r1.__file__).parent
FOLLOWS = """
import random
from parallel_r1.answers.convert import OURS, SCHEMAS, convert, repair
from parallel_r1.answers.parser import parse_text
from parallel_r1.answers.syntax import fork_text
from parallel_r1.coldstart.instruction import instruction
from parallel_r1.models.tags import SAMPLE
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.prompts import PARALLEL

join = "</Parallel>" + {gap!r} + "<Summary>"
answer = None
while answer is None:
    answer = EASY.parallel_answer(EASY.problem((3, 5, 7), 22), random.Random(), 2, 2, 20)
for text in (answer, SAMPLE, PARALLEL, instruction(), fork_text(["a", "b"], "c")):
    assert join in text, text
assert not parse_text(answer).defects
assert not parse_text(SAMPLE).defects
for other in ("", " ", "\\n", "\\n\\n"):
    assert repair("<Parallel><Path>a</Path><Path>b</Path></Parallel>" + other + "<Summary>c</Summary>")[0] == (
        fork_text(["a", "b"], "c")
    )
for name in SCHEMAS:
    assert convert(convert(fork_text(["a", "b"], "c"), OURS, name), name, OURS) == fork_text(["a", "b"], "c")
print("ok")
"""


def test_a_fork_as_text():
    assert fork_text(["a", "b"], "c") == "<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>"
    assert fork_text(iter("ab"), None) == "<Parallel><Path>a</Path><Path>b</Path></Parallel>"


@pytest.mark.parametrize("gap", [" ", "\n\n", ""])
def test_another_way_to_open_a_summary_touches_one_file(tmp_path, gap):
    """Teachers' answers, prompts, parser, repair and formats follow a change of `syntax.py` alone."""
    shutil.copytree(SOURCE, tmp_path / "parallel_r1", ignore=shutil.ignore_patterns("__pycache__"))
    syntax = tmp_path / "parallel_r1" / "answers" / "syntax.py"
    text = syntax.read_text()
    assert text.count('\nSUMMARY_GAP = "\\n"\n') == 1
    syntax.write_text(text.replace('\nSUMMARY_GAP = "\\n"\n', f"\nSUMMARY_GAP = {gap!r}\n"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + FOLLOWS.format(gap=gap)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr


def test_no_other_file_spells_a_tag():
    """Tags may stand in docstrings, comments and help texts, not in other strings of more than one tag."""
    for path in SOURCE.rglob("*.py"):
        if path == SOURCE / "answers" / "syntax.py":
            continue
        tree = ast.parse(path.read_text())
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        spelled = [s.value for s in strings if id(s) not in bare and sum(s.value.count(tag) for tag in TAGS) > 1]
        assert not spelled, (path, spelled)
