"""The picture of a run: it fits, whatever the run and the size."""

import math
from io import StringIO

import pytest
from common import judged
from hypothesis import given
from hypothesis import strategies as some
from pretended_run import PretendedRun
from rich.console import Console

from parallel_r1.report import bars
from parallel_r1.report.watch import Picture, curves, duration
from parallel_r1.runs.follow import RunSoFar

NUMBER = some.floats(-10, 10) | some.just(math.nan)


@given(values=some.lists(NUMBER, min_size=1, max_size=300), width=some.integers(1, 90), more=some.integers(0, 200))
def test_columns_are_means_of_neighbours(values, width, more):
    steps = len(values) + more
    columns = bars.columns(values, width, steps)
    assert len(columns) <= width
    present = [value for value in values if not math.isnan(value)]
    for value in columns:
        assert math.isnan(value) or min(present) - 1e-9 <= value <= max(present) + 1e-9
    if steps <= width:
        assert [str(value) for value in columns] == [str(value) for value in values]


@given(values=some.lists(NUMBER, min_size=1, max_size=40), rows=some.integers(1, 4))
@pytest.mark.parametrize("characters", [bars.BLOCKS, bars.ASCII])
def test_bars_grow_with_their_values(values, rows, characters):
    present = [value for value in values if not math.isnan(value)] or [0.0]
    lines = bars.bars(values, min(present), max(present), rows, characters)
    assert [len(line) for line in lines] == [len(values)] * rows
    heights = [sum(characters.index(line[at]) for line in lines) for at in range(len(values))]
    for value, height in zip(values, heights, strict=True):
        assert (height == 0) == math.isnan(value)
        for other, its_height in zip(values, heights, strict=True):
            assert not value < other or height <= its_height
    if len(set(present)) > 1:
        assert max(heights) == rows * (len(characters) - 1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (101, "2 min"), (5940, "99 min"), (7500, "2 h 05 min"), (2e5, "2 d 7 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def pictured(run, width, height=None, encoding="utf-8"):
    file = StringIO()
    console = Console(width=width, height=height or 50, file=file, force_terminal=False)
    options = console.options.update(width=width, height=height)
    options.encoding = encoding
    lines = console.render_lines(Picture(run, fits=height is not None), options, pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A run with many stages, branches, warnings, evaluations and answers."""
    path = tmp_path_factory.mktemp("big") / "run"
    pretended = PretendedRun(path)
    recipe = (path / "recipe.toml").read_text()
    stages = "".join(f'[stages.a-stage-with-a-long-name-{n}]\nkind="rl"\nsteps=9\nstart="easy"\n' for n in range(15))
    (path / "recipe.toml").write_text(recipe + stages)
    for name in ("easy", *(f"a-stage-with-a-long-name-{number}" for number in range(5))):
        for number in range(1, 120):
            pretended.step(name, "rl", number, 120)
        pretended.warn(name, "a warning that is long enough to be folded, " * 5)
        pretended.evaluate(name, task="jsonl:a/long/path/to/a/file/of/problems.jsonl")
    pretended.save([judged(f"problem {number}", number % 2 == 0, forked=True) for number in range(30)])
    run = RunSoFar(path)
    run.read()
    return run


@pytest.mark.parametrize("width", [10, 20, 40, 79, 80, 139, 140, 200, 500])
@pytest.mark.parametrize("height", [1, 2, 5, 12, 24, 36, 50, 100, None])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_picture_fits(big, width, height, encoding):
    lines = pictured(big, width, height, encoding)
    assert max(map(len, lines)) <= width
    assert height is None or len(lines) <= height
    if encoding == "ascii":
        "".join(lines).encode("ascii")
    if width >= 79 and (height is None or height >= 24):
        text = "\n".join(lines)
        for words in ("pretended", "of 19", "reward", "surprise", "warning", "answers of step 714", "problem 0"):
            assert words in text


def test_curves_of_branches_share_scale_and_steps(tmp_path):
    pretended = PretendedRun(tmp_path / "run")
    for number in range(1, 5):
        pretended.step("easy", "rl", number, 4, accuracy=0.0)
    for number in range(1, 5):
        pretended.step("hard", "rl", number, 4, accuracy=1.0)
    for number in range(1, 3):
        pretended.step("grpo", "rl", number, 4, accuracy=0.5)
    run = RunSoFar(tmp_path / "run")
    run.read()
    lines = [line.plain for line in curves(run, 80, 12)]
    at = next(number for number, line in enumerate(lines) if line.startswith("accuracy"))
    assert lines[at].split() == ["accuracy", "hard", "▁" * 16 + "█" * 16, "1.00"]
    assert lines[at + 1].split() == ["0.00", "..", "1.00", "grpo", "▅" * 8, "0.50"]
    assert [line.split() for line in lines[-2:]] == [["|easy", "|hard"], ["|grpo"]]
    assert lines[-2].index("|hard") - lines[-2].index("|easy") == 16
    short = [line.plain for line in curves(run, 80, 6)]  # the current branch alone
    assert len(short) == 6
    assert not any("easy" in line for line in short)
    assert len(curves(run, 80, 3)) == 3
    assert curves(run, 80, 0) == []


def test_before_the_first_rl_step_the_loss_is_drawn(tmp_path):
    pretended = PretendedRun(tmp_path / "run")
    run = RunSoFar(tmp_path / "run")
    assert curves(run, 80, 20) == []
    for number in range(1, 4):
        pretended.step("cold-start", "sft", number, 4)
    run.read()
    assert curves(run, 80, 20)[0].plain.startswith("loss")


def test_validations_of_a_stop_rule(tmp_path):
    pretended = PretendedRun(tmp_path / "run")
    pretended.step("easy", "rl", 1, 10)
    pretended.evaluate("easy", kind="validation", stage_step=1, stage_steps=10, best_step=1)
    run = RunSoFar(tmp_path / "run")
    run.read()
    assert any("[10.0, 30.0]  parallel 90 %  validation, best at step 1" in line for line in pictured(run, 100))
