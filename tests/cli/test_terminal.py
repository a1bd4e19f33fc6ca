"""`show`, `watch` and `generate` in terminals of 80 and 200 columns, as a person meets them."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from common import refused, run
from conftest import ROOT
from hard_answers import HARD, hard_rollouts
from pretended_run import PretendedRun
from terminals import Terminal

from parallel_r1.answers.rollout import write_jsonl

ESCAPE = b"\x1b"
PARALLEL = ROOT / "models" / "tiny-parallel"


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    file = tmp_path_factory.mktemp("hard") / "step-1.jsonl"
    write_jsonl(file, hard_rollouts())
    return file


@pytest.fixture(scope="module")
def rollouts(hard):
    from parallel_r1.answers.rollout import read_jsonl

    return list(read_jsonl(hard))


@pytest.fixture
def writing(tmp_path, hard):
    """A run that another process writes, six steps a second."""
    command = [sys.executable, ROOT / "tests" / "pretended_run.py", tmp_path / "run", "0.15", hard]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield tmp_path / "run"
    finally:
        process.kill()
        process.wait()


def started(path, rollouts, steps=12):
    """A run in the middle of its stage `hard`."""
    run = PretendedRun(path)
    run.evaluate("base")
    for number in range(1, 5):
        run.step("cold-start", "sft", number, 4)
    run.over("cold-start")
    for number in range(1, steps + 1):
        run.step("easy", "rl", number, 20)
    run.warn(
        "easy", "dead groups: in 90% of the groups all answers earn the same, at 5% accuracy. Take easier problems"
    )
    run.save(rollouts)
    return run


@pytest.mark.parametrize("width", [80, 200])
def test_show_draws_every_answer_within_the_screen(hard, width):
    with Terminal("show", hard, "--count", 99, width=width, height=700) as terminal:
        assert terminal.end() == 0
        assert terminal.fits()
        assert terminal.is_as_before()
        text = terminal.text
        for name in HARD:
            assert f"{name}: draw 7" in text
        for words in ("path 8  try 7: no", "summary: inner", "plan: 1: 計", "red ␛[31m bell ␇ back", "clear ␛[2J"):
            assert words in text
        assert text.count("correct") == 1
        assert "unclosed-summary at token" in text


TABLE = """## countdown-hard: 1000 held-out problems, k = 1 answers to each

| stage | mean@k % | 95 % interval | pass@k % | parallel % | well-formed % | critical path | tokens |
| --- | --- | --- | --- | --- | --- | --- | --- |
| cold-start-of-some-kind | 20.0 | 17.5 .. 22.5 | 20.0 | 88.6 | 86.0 | 57.4 | 181.9 |
| a\\|b | 15.5 | 13.3 .. 17.8 | 15.5 | 0.0 | - | 57.1 | 57.1 |

## Paired by problem, with 95 % intervals

* countdown-hard: hard - cold-start = +8.5 points [+5.4, +11.6], +42.5 % relative
"""


@pytest.mark.parametrize("width", [80, 200])
def test_show_draws_the_table_of_a_run_without_cutting_a_name(tmp_path, width):
    (tmp_path / "table.md").write_text(TABLE)
    with Terminal("show", tmp_path, width=width) as terminal:
        assert terminal.end() == 0
        assert terminal.fits()
        assert terminal.is_as_before()
        text = terminal.text
    for words in ("17.5 .. 22.5", "13.3 .. 17.8", "181.9", "a|b", "+42.5 %", "1000 held-out problems"):
        assert words in text
    assert "…" not in text


def test_show_of_a_run_that_goes_on_or_of_nothing(tmp_path, rollouts):
    path = started(tmp_path / "run", rollouts).path
    refused("show", path, said=f"`parallel-r1 watch {path}` shows a run that goes on")
    refused("show", path / "rollouts", said="give a run, or a rollouts file")
    file = path / "rollouts" / "step-16.jsonl"
    refused("show", file, "--first", len(rollouts), said=(f"the first {len(rollouts)}", "give a smaller --first"))
    assert run("show", file, "--first", len(rollouts) - 1, "--json").stdout.count("\n") == 1
    (tmp_path / "empty.jsonl").write_text("")
    refused("show", tmp_path / "empty.jsonl", said="give another file")
    with file.open("a") as unfinished:
        unfinished.write('{"id": ')
    done = run("show", file, "--count", 99)
    assert (done.returncode, "npr: draw 7" in done.stdout) == (2, True)
    assert f"{file}:{len(rollouts) + 1}: " in done.stderr


def test_show_in_a_pipe_has_no_escape_codes(hard):
    done = run("show", hard, "--count", 99, width="80")
    assert done.returncode == 0
    assert ESCAPE.decode() not in done.stdout
    assert "path 8  try 7: no" in done.stdout


def test_show_where_there_is_no_unicode(hard):
    command = [sys.executable, "-m", "parallel_r1", "show", str(hard), "--count", "99"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"\\u6570" in done.stdout  # the first character of the wide answer
    assert b"+-- path 1" in done.stdout


def test_no_colour_where_none_is_wanted(hard):
    with Terminal("show", hard, "--count", 99, height=700, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
        assert not re.search(rb"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-9])", terminal.raw)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_watch_follows_a_run_to_its_end(writing, width, height):
    with Terminal("watch", writing, "--every", "0.2", width=width, height=height) as terminal:
        terminal.wait("cold-start ━━", "loss ", "running for")
        terminal.wait("easy", "reward", "base", "countdown-hard 20.0 % [10.0, 30.0]")
        terminal.wait("warning: easy, step 14: dead groups")
        terminal.wait("hard", "20/20", "answers of step", "n next, p previous, q quit")
        beside = "answers of step" in terminal.lines[0]
        assert beside == (width == 200)
        assert terminal.fits()
        assert len(terminal.screen.display) == height
        assert terminal.end() == 0
        assert "the run is finished" in terminal.text
        assert terminal.is_as_before()
        assert terminal.fits()


def test_keys_turn_the_answers_and_quit(tmp_path, rollouts):
    run = started(tmp_path / "run", rollouts)
    with Terminal("watch", run.path, "--every", "0.2", width=100, height=60) as terminal:
        terminal.wait("answers of step 16, from number 1", "wide: draw 7")
        terminal.press("n")
        terminal.wait("from number 2", "long: draw 7")
        terminal.press("p")
        terminal.press("p")
        terminal.wait("wide: draw 7")
        terminal.press("\x1b[B")
        terminal.press("nn")
        terminal.wait("from number 4", "eight: draw 7")
        terminal.press("x\x1b[15~")
        run.step("easy", "rl", 13, 20, reward=0.125)
        terminal.wait("13/20", "+0.12")
        assert terminal.modes() != terminal.before
        terminal.press("q")
        assert terminal.end() == 0
        assert "which goes on" in " ".join(terminal.text.split())
        assert terminal.is_as_before()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_ended_watch_leaves_the_terminal_as_it_was(tmp_path, rollouts, number, code):
    run = started(tmp_path / "run", rollouts)
    shell = [
        "/bin/sh",
        "-c",
        f'trap : INT; "{sys.executable}" -m parallel_r1 watch "$0" --every 0.2; echo "code $?"; stty -a',
    ]
    with Terminal(run.path, program=shell) as terminal:
        terminal.wait("answers of step 16")
        if number == signal.SIGINT:
            terminal.press("\x03")
        else:
            watching = subprocess.run(["pgrep", "-P", str(terminal.child.pid)], capture_output=True, text=True)
            os.kill(int(watching.stdout), number)
        terminal.wait(f"code {code}", "icanon", " echo ")
        assert terminal.is_as_before()
        assert "Traceback" not in terminal.text


def test_a_terminal_of_another_size(tmp_path, rollouts):
    run = started(tmp_path / "run", rollouts)
    with Terminal("watch", run.path, "--every", "60") as terminal:
        terminal.wait("answers of step 16")
        for width, height in ((200, 50), (40, 15), (20, 5), (120, 30)):
            terminal.resize(width, height)
            terminal.wait("pretended")  # drawn again at once, long before the next look
            terminal.watch(0.3)
            assert terminal.fits()
            assert ("answers of step" in terminal.lines[0]) == (width == 200)
        terminal.press("q")
        assert terminal.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("terminal_type", ["dumb", None])
def test_lines_where_there_is_no_cursor(writing, tmp_path, terminal_type):
    """On a terminal that can only add lines, and in a pipe."""
    if terminal_type:
        with Terminal("watch", writing, "--every", "0.3", height=400, TERM=terminal_type) as terminal:
            assert terminal.end() == 0
            raw = terminal.raw
    else:
        raw = run("watch", writing, "--every", "0.3").stdout.encode()
    assert ESCAPE not in raw
    text = re.sub(r"\s+", " ", raw.decode())
    assert text.count("pretended running for") == 1
    for words in (
        "hard step 20/20 reward +0.00",
        "grpo step 30/30",
        "grpo countdown-hard: mean@1 20.0 %",
        "is finished",
    ):
        assert words in text


def test_watch_once_is_one_picture_without_codes(tmp_path, rollouts):
    path = started(tmp_path / "run", rollouts).path
    for width in ("80", "200"):
        done = run("watch", path, "--once", width=width)
        assert (done.returncode, done.stderr) == (0, "")
        assert ESCAPE.decode() not in done.stdout
        assert "answers of step 16, from number 1" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= int(width)
    with Terminal("watch", path, "--once", height=90, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
        assert b"\x1b[?" not in terminal.raw


def test_watch_goes_back_with_a_run_that_is_resumed(tmp_path, rollouts):
    run = started(tmp_path / "run", rollouts)
    with Terminal("watch", run.path, "--every", "0.2") as terminal:
        terminal.wait("12/20", "answers of step 16")
        run.rewind(10)
        terminal.wait("6/20")
        terminal.wait_without("answers of step")  # those of step 16 belong to what was dropped
        run.step("easy", "rl", 7, 20)
        run.step("easy", "rl", 8, 20, reward=0.5)
        terminal.wait("8/20", "reward +0.50")
        run.log({"kind": "rl"}, end="")  # half of a line
        terminal.watch(0.6)
        assert "8/20" in terminal.text
        terminal.press("q")
        assert terminal.end() == 0


def test_watch_survives_answers_that_are_being_written(tmp_path, rollouts):
    run = started(tmp_path / "run", rollouts)
    (run.path / "rollouts" / ".step-17.jsonl.part").write_text('{"id": ')
    run.step("easy", "rl", 13, 20)
    assert "answers of step 16" in once(run)
    (run.path / "rollouts" / "step-17.jsonl").write_text('{"id": ')  # as version 0.1 wrote them
    assert "step-17.jsonl:1:" in "".join(once(run).split())  # wherever the line is broken
    (run.path / "rollouts" / "step-x.jsonl").write_text("")
    assert "answers of step 17" in once(run)


def once(pretended):
    done = run("watch", pretended.path, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_is_no_run(tmp_path, rollouts):
    path = started(tmp_path / "run", rollouts).path
    refused("watch", tmp_path / "rnu", said=("no folder", f"the newest runs are {path}"))
    refused("watch", path / "metrics.jsonl", said=f"give the run that it lies in, {path}")
    refused("watch", path / "rollouts", said=f"give the run that it lies in, {path}")
    (tmp_path / "a" / "empty").mkdir(parents=True)
    refused("watch", tmp_path / "a" / "empty", said="give the command again")
    refused("watch", tmp_path / "a", said="none in")
    (tmp_path / "a" / "empty" / "recipe.toml").write_text("oops [")
    refused("watch", tmp_path / "a" / "empty", said="a recipe in")
    (tmp_path / "a" / "empty" / "recipe.toml").write_text("stages = 3")
    refused("watch", tmp_path / "a" / "empty", said="a table [stages]")
    with (path / "metrics.jsonl").open("a") as file:
        file.write("damaged\n")
    refused("watch", path, said="metrics.jsonl:19")
    for words in (("--every", "0"), ("--every", "x"), ("--twice",)):
        done = run("watch", path, *words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_metrics_that_no_run_writes(tmp_path, rollouts):
    run = started(tmp_path / "run", rollouts)
    run.step("easy", "rl", 13, 20, reward=None, accuracy="much")
    assert "13/20" in once(run)
    run.log({"kind": "rl", "stage": "easy"})
    refused("watch", run.path, said="a row of kind 'rl' without stage_step")


def test_a_run_that_goes_away(tmp_path, rollouts):
    run = started(tmp_path / "run", rollouts)
    with Terminal("watch", run.path, "--every", "0.2", height=40) as terminal:
        terminal.wait("answers of step 16")
        run.path.rename(tmp_path / "elsewhere")
        assert terminal.end() == 2
        assert terminal.is_as_before()
        assert "no recipe.toml any more" in " ".join(terminal.text.split())


def test_a_run_that_has_just_begun(tmp_path):
    run = PretendedRun(tmp_path / "run")
    assert "no step yet" in once(run)
    run.evaluate("base")
    assert "countdown-hard 20.0 %" in once(run)
    run.step("cold-start", "sft", 1, 4)
    assert "loss 4.000" in once(run)
    os.utime(run.metrics, (1e9, 1e9))
    assert "interrupted?" in once(run)


def test_watching_needs_no_torch(tmp_path, rollouts):
    path = started(tmp_path / "run", rollouts).path
    code = (
        "import sys; sys.argv = ['parallel-r1', 'watch', sys.argv[1], '--once']\n"
        "from parallel_r1.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"


GENERATE = ("generate", PARALLEL, "-e", "--prompt", "Use 4, 9, 7, 13 to make 42.\\n", "--seed", "1")


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 200])
def test_generate_grows_within_the_screen(width):
    with Terminal(*GENERATE, width=width, height=60) as terminal:
        terminal.wait("path 1")
        assert terminal.end() == 0
        assert terminal.fits()
        assert terminal.is_as_before()
        assert "critical path" in terminal.text


@pytest.mark.slow
def test_generate_shows_the_end_of_an_answer_that_is_higher_than_the_screen():
    with Terminal(*GENERATE, "--paths", "8", height=12) as terminal:
        terminal.wait("path 8", "╰")
        assert "path 1 " not in terminal.text
        assert terminal.end() == 0
        assert "critical path" in terminal.lines[-2]
        assert terminal.is_as_before()
        assert terminal.fits()
    everything = terminal.raw.decode()
    assert [everything.count(f"path {path}") > 0 for path in range(1, 9)] == [True] * 8


@pytest.mark.slow
def test_generate_on_a_terminal_without_a_cursor():
    with Terminal(*GENERATE, height=60, TERM="dumb") as terminal:
        assert terminal.end() == 0
        assert ESCAPE not in terminal.raw
        assert terminal.text.count("path 2") == 1


@pytest.mark.slow
def test_an_interrupted_generate_leaves_the_terminal_as_it_was():
    slow = ("--sampler", "sequential", "--temperature", "9", "--total", "480", "--critical-path", "480")
    with Terminal(*GENERATE, *slow, height=30) as terminal:
        terminal.wait("Use 4, 9, 7, 13")
        terminal.resize(60, 20)
        terminal.press("\x03")
        assert terminal.end() == 130
        assert terminal.is_as_before()
        assert "Traceback" not in terminal.raw.decode()
