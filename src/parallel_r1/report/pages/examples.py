"""Which saved answers a report shows: enough of every step to see how they change, in a file that stays small."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from parallel_r1.errors import UserError
from parallel_r1.evaluation.analysis import read
from parallel_r1.evaluation.analysis.paths import Judge
from parallel_r1.report.pages.pack import Shown
from parallel_r1.report.pages.run import Run
from parallel_r1.report.pages.saved import shown_file, stages_of

ANSWERS = 1200
"""Most answers of a report, about."""
TOKENS = 400_000
"""Most tokens of them, about: a token takes one to three bytes of the page."""
STEPS = 60
"""Most steps that they are taken from."""


def examples(run: Run, notes: set[str]) -> Iterator[Shown]:
    """Answers of steps that are spread evenly over the run, the first and the last included; of every step the first
    answers of its file.

    Args:
        notes: gets one line for everything that could not be read or judged.
    """
    try:
        files = read.rollout_files(run.path)
    except UserError:
        return
    if len(files) > STEPS:
        files = [files[round(index * (len(files) - 1) / (STEPS - 1))] for index in range(STEPS)]
    stages, judge = stages_of(run.metrics), Judge()
    for file in files:
        tokens = 0
        try:
            for shown in islice(shown_file(file, stages, judge, notes), max(1, ANSWERS // len(files))):
                tokens += shown.rollout.total
                if tokens > TOKENS // len(files) and tokens > shown.rollout.total:
                    break
                yield shown
        except UserError as error:
            notes.add(f"answers are left out: {error}")
    notes |= judge.notes
