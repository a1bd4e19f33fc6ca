"""How fast data are made ready: loading, checking and packing DAPO, its overlap with the benchmarks, the splits of
100,000 problems, the format of traces, and gradings of MATH answers.

These are times, not ratios, because there is nothing to compare with; each stands beside the time that it may take. The
files are those of `--data`: dapo_train, math_train, math_benchmarks and parallel_gsm8k_traces, as parquet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import MODELS, ROOT, TINY, report

from parallel_r1 import models
from parallel_r1.answers.parser import parse_text
from parallel_r1.coldstart.examples import Example, to_trace
from parallel_r1.evaluation.measure import held_out
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.datasets.damage import find
from parallel_r1.tasks.datasets.overlap import overlaps
from parallel_r1.tasks.datasets.rows import read_file
from parallel_r1.tasks.datasets.splits import SPLITS
from parallel_r1.tasks.grading.extract import final_answer
from parallel_r1.tasks.grading.grader import Grader
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.prompts import PARALLEL
from parallel_r1.tasks.public_sets import open_source
from parallel_r1.training.batch import split

Work = Callable[[], int]
"""Does something and says how many items it took."""
ROW = 4096
"""Tokens of a packed row."""


def ready(policy: Policy, folder: Path, quick: bool) -> int:
    """Load the problems, look for damage, and pack them with their answers into rows."""
    records = open_source("dapo", folder).records("train", "validation")[: 200 if quick else None]
    find(records)
    examples = [Example(PARALLEL.format(problem=each.problem), f"Final Answer: {each.answer}") for each in records]
    traces = [to_trace(example, policy, "isolated") for example in examples]
    rows = list(split(traces, "isolated", ROW, packing=True))
    assert sum(len(row) for chunk in rows for row in chunk) == len(records)
    return len(records)


def decontaminate(folder: Path, quick: bool) -> int:
    """Compare the problems with every benchmark."""
    records = open_source("dapo", folder).records("train", "validation")[: 200 if quick else None]
    benchmarks = [
        record
        for name in ("aime24", "aime25", "amc23", "math300")
        for record in open_source(name, folder).records("test")
    ]
    found = overlaps(records, benchmarks)
    assert quick or found
    return len(records)


def split_generated(quick: bool) -> int:
    """Tabulate the problems of a countdown family with their difficulty, divide them, and hold 1,000 out."""
    # A family that no run before has tabulated: a little blunter each time.
    family = replace(EASY, distance=EASY.distance + time.perf_counter() / 1e9, high=8 if quick else EASY.high)
    held_out(family, 10 if quick else 1000, 0)
    return sum(family.size(part) for part in SPLITS)


def split_file(path: Path) -> int:
    """Read problems from a file, divide them, and hold 1,000 out."""
    task = load_task(f"jsonl:{path}")
    held_out(task, 1000, 0)
    return sum(1 for _ in path.open())


def check(texts: Sequence[str], quick: bool) -> int:
    """Find every defect of traces."""
    times = 1 if quick else 20
    for _ in range(times):
        for text in texts:
            parse_text(text)
    return times * len(texts)


def grade(pairs: Sequence[tuple[str, str]]) -> int:
    """Judge answers by a grader that has seen none of them; its processes start anew."""
    Grader().grade(pairs)
    return len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the folder of the files")
    parser.add_argument("--runs", type=int, default=5, help="rounds that count")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: does it work at all?")
    parser.add_argument("--out", type=Path, help="a folder for the JSON; printed if none is given")
    parser.set_defaults(model=MODELS, seed=0)  # neither is chosen here: nothing is drawn
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"expected a folder with data sets; found none at {options.data}; give it with --data")
    policy = models.load(str(TINY))
    texts = [row["trace"] for row in read_file(options.data / "parallel_gsm8k_traces.parquet")]
    rows = read_file(options.data / "math_train.parquet")[: 20 if options.quick else None]
    answers = [row["answer"] for row in rows]
    solutions = [final_answer(row["solution"]) for row in rows]
    pairs = [*zip(solutions, answers, strict=True), *zip(solutions[1:], answers[:-1], strict=True)]
    folder = TemporaryDirectory()
    sums = Path(folder.name) / "sums.jsonl"
    numbers = range(2000 if options.quick else 100_000)
    sums.write_text("".join(f'{{"problem": "What is {one} + 7?", "answer": {one + 7}}}\n' for one in numbers))
    works: dict[str, tuple[Work, str]] = {
        "load, check and pack DAPO": (lambda: ready(policy, options.data, options.quick), "20 s"),
        "overlap of DAPO with 4 benchmarks": (lambda: decontaminate(options.data, options.quick), "60 s"),
        "divide a countdown family": (lambda: split_generated(options.quick), "2 s"),
        "read and divide a file of sums": (lambda: split_file(sums), "2 s"),
        "check the format of traces, one core": (lambda: check(texts, options.quick), "20,000 a second"),
        "grade answers of MATH-train, half of them right": (lambda: grade(pairs), "1,200 a second"),
    }
    table: list[dict[str, Any]] = []
    details = []
    for name, (work, asked) in works.items():
        times, count = [], 0
        for run in range(options.runs + 1):
            started = time.perf_counter()
            count = work()
            times += [time.perf_counter() - started][: bool(run)]
        middle = statistics.median(times)
        table.append({"what": name, "items": count, "seconds": middle, "a second": count / middle, "asked for": asked})
        details.append({"what": name, "seconds": times})
    report(options, "data", "Data made ready", table, details=details)


if __name__ == "__main__":
    main()
