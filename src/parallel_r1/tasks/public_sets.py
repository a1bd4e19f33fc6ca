"""Sets of problems by name: the public ones, files (`jsonl:PATH`, `parquet:PATH`; `@test` behind it makes all of its
problems test problems), and data sets of the hub (`hub:ID`, `hub:ID:CONFIG`; `@SPLIT` behind it takes one split)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from parallel_r1.errors import Missing, UserError, nearest
from parallel_r1.tasks.datasets.sources import DATA_DIR, Source
from parallel_r1.tasks.datasets.splits import Part

ALL_TEST = "@test"
"""Behind the name of a file: all of its problems are test problems."""
_MAA = "problems of the Mathematical Association of America; not for redistribution"
_ARENA = "CC-BY-NC-SA-4.0"
PUBLIC_SETS: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "gsm8k",
            {"train": "train", "test": "test"},
            "openai/gsm8k:main",
            "MIT",
            "Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv 2110.14168",
        ),
        Source(
            "math",
            {"train": "train", "test": "test"},
            "DigitalLearningGmbH/MATH-lighteval",
            "MIT",
            "Hendrycks et al. 2021, Measuring Mathematical Problem Solving, arXiv 2103.03874",
            answers=("solution", "answer"),
        ),
        Source(
            "math500",
            {"test": "test"},
            "HuggingFaceH4/MATH-500",
            "MIT",
            "500 problems of the test split of MATH, chosen by Lightman et al. 2023, arXiv 2305.20050",
        ),
        Source(
            "dapo",
            {"train": "train"},
            "open-r1/DAPO-Math-17k-Processed:all",
            "Apache-2.0",
            "Yu et al. 2025, DAPO, arXiv 2503.14476; duplicates of the first release removed",
        ),
        Source("aime24", {"test": "train"}, "HuggingFaceH4/aime_2024", _MAA, "AIME I and II of 2024"),
        Source("aime25", {"test": "test"}, "math-ai/aime25", _MAA, "AIME I and II of 2025"),
        Source("amc23", {"test": "test"}, "math-ai/amc23", _MAA, "AMC 12 of 2023, problems with integer answers"),
        Source(
            "math300",
            {"test": "test"},
            None,
            "MIT",
            "316 problems of the test split of MATH with integer answers, as the Parallel-R1 paper evaluates",
        ),
        Source("aime26", {"test": "train"}, "MathArena/aime_2026", _ARENA, "AIME I and II of 2026 (February)"),
        Source("hmmt26", {"test": "train"}, "MathArena/hmmt_feb_2026", _ARENA, "HMMT of February 2026"),
        Source(
            "arxivmath26",
            {"test": "train"},
            "MathArena/arxivmath-0426",
            "CC-BY-SA-4.0",
            "questions with one answer about papers of April 2026, ArXivMath of MathArena, arXiv 2605.00674",
        ),
    )
}
"""The public sets by name."""


def open_source(name: str, data_dir: Path | None = None) -> Source:
    """A set of problems by its name. Nothing is read yet.

    Args:
        data_dir: a folder with the files of the public sets, which are then read from nowhere else. Default: the
            environment variable PARALLEL_R1_DATA, or without it the hub.

    Raises:
        UserError: no such set, or no such file.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in ("jsonl", "parquet"):
        path = Path(rest.removesuffix(ALL_TEST))
        if not path.is_file():
            raise Missing(f"a {kind} file of problems", f"no file {rest}", "check the path")
        if path.suffix != f".{kind}":
            raise UserError(f"a file that ends with .{kind}", rest, "name it by its format")
        parts: dict[Part, str] = {"test": "test"} if rest.endswith(ALL_TEST) else {}
        return Source(name, parts, about=f"the file {path.name}", file=path)
    if colon and kind == "hub":
        return Source(name, hub=rest, about=f"the data set {rest} of the hub")
    if name not in PUBLIC_SETS:
        raise UserError(
            "a known set of problems, jsonl:PATH, parquet:PATH or hub:ID", f"'{name}'", nearest(name, PUBLIC_SETS)
        )
    if data_dir is None and (default := os.environ.get(DATA_DIR)):
        data_dir = Path(default)
    return replace(PUBLIC_SETS[name], data_dir=data_dir)
