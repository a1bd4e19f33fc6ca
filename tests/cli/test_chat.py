"""`parallel-r1 chat` as a person meets it: in a terminal of its own, and in a pipe."""

import json
import re
import subprocess
import sys

import pytest
from common import ROOT, refused, run
from terminals import Terminal

import parallel_r1 as pr

QUESTION = "Use 4, 9, 7, 13 to make 42."
ESCAPE = b"\x1b"


@pytest.mark.parametrize(("width", "across"), [(200, 8), (80, 3), (40, 1)])
def test_enter_alone_shows_a_fork_in_columns(width, across):
    with Terminal("chat", "--mode", "parallel", width=width, height=100) as terminal:
        terminal.wait("Enter alone asks: Use ")
        terminal.press("\r")
        terminal.wait("critical path", "tokens/s")
        first = next(line for line in terminal.lines if "path 1 " in line)
        assert [f"path {path} " in first for path in range(1, 9)] == [path <= across for path in range(1, 9)]
        assert terminal.fits()
        terminal.press("\x04")  # Ctrl-D
        assert terminal.end() == 0
        assert terminal.is_as_before()


def test_commands_and_mistakes():
    """One conversation: every command, and what is said to a wrong one. Nothing ends it but the end."""
    with Terminal("chat", width=120, height=200) as terminal:
        terminal.wait("Enter alone asks")
        for typed, said in [
            ("/paths 3", "3 paths"),
            ("/seed 5", "seed 5"),
            ("/temperature 0", "temperature 0"),
            ("/mode sequential", "mode sequential"),
            (QUESTION, "0 forks; critical path"),
            ("/mode parallel", "mode parallel"),
            ("/again", "1 fork; critical path"),
            ("/compare", "times the critical path and"),
            ("/help", "Ctrl-C stops an answer"),
            ("/paths many", "expected /paths with a number; found 'many'"),
            ("/paths 900", "expected another value for /paths; found 900"),
            ("/mode fast", "expected /mode auto, parallel, sequential; found 'fast'"),
            ("/tempertaure 1", "did you mean 'temperature'?"),
            ("x" * 1500, "positions"),
            ("/clear", "forgotten"),
            ("/again", "expected a question before /again"),
        ]:
            terminal.press(typed + "\r")
            terminal.wait(said)
            terminal.watch(0.1)
        terminal.press("/quit\r")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.raw.decode()


def test_ctrl_c_stops_an_answer_and_keeps_it():
    """At this temperature no answer ends by itself."""
    hot = ("--mode", "sequential", "--temperature", "9", "--total", "500", "--critical-path", "500")
    with Terminal("chat", *hot, height=200) as terminal:
        terminal.wait("Enter alone asks")
        terminal.press(QUESTION + "\r")
        while b"\x1b[39m" not in terminal.raw:  # the first token, in the colour of the trunk
            assert terminal.read()
        terminal.press("\x03")
        terminal.wait("ended by cancelled")
        tokens = int(re.search(r"(\d+) tokens;", terminal.text)[1])
        assert 0 < tokens < 500
        terminal.press("\x03")  # and at the prompt it leaves
        assert terminal.end() == 0
        assert terminal.is_as_before()


def test_a_pipe_gets_plain_text():
    done = run("chat", "--seed", "3", stdin=f"{QUESTION}\n\n{QUESTION}\n")
    assert done.returncode == 0, done.stderr
    assert ESCAPE.decode() not in done.stdout
    assert len(done.stdout) > 20
    assert "<" not in done.stdout


def test_json_is_the_python_api():
    done = run("chat", "--json", "--seed", "3", stdin=f"{QUESTION}\n{QUESTION}\n")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    (expected,) = pr.generate(pr.load(ROOT / "models" / "tiny-parallel"), QUESTION + "\n", seed=3)
    assert (first["trace"], first["critical_path"], first["forks"]) == (
        expected.text,
        expected.critical_path,
        expected.forks,
    )
    assert second["trace"] != first["trace"]  # the seed grows


def test_what_a_person_types_is_no_structure():
    done = run("chat", "--json", stdin="<Parallel><Path>a</Path></Parallel> Use 3, 5, 7 to make 22.\n")
    assert json.loads(done.stdout)["question"].startswith("<Parallel>")
    assert done.returncode == 0


def test_mistakes_on_the_command_line():
    refused("chat", "--mode", "fast", said="--mode auto, parallel, sequential")
    refused("chat", "models/nope", stdin="x\n", said="no folder models/nope")


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['parallel-r1', 'chat', '--help']\n"
        "from parallel_r1.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"
