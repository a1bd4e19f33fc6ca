"""Which problems of a training set are in a benchmark: the same text, the same words, or a long run of words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from parallel_r1.tasks.datasets.sources import Record
from parallel_r1.tasks.datasets.splits import words

RUN = 13
"""Words of a run that two problems share by copying only. Source: Brown et al. 2020, arXiv 2005.14165."""
COMMON = 10
"""A run that this many training problems have is a common phrase, such as how the answer of a competition is to be
written."""
_DRAWING = re.compile(r"\[asy\].*?(?:\[/asy\]|$)|\\begin\{(asy|tikzpicture)\}.*?(?:\\end\{\1\}|$)", re.DOTALL)
Kind = Literal["exact", "normalised", "13-gram"]
MEANING: dict[str, str] = {
    "exact": "the same text",
    "normalised": "the same words, numbers and operators",
    "13-gram": "a run of 13 words that is no common phrase",
}


@dataclass(frozen=True)
class Overlap:
    """A training problem that is in a benchmark.

    Attributes:
        kind: the same text, the same words, or a shared run of 13 words.
        id: of the training problem.
        benchmark, other: the benchmark, and the id of its problem.
        share: the part of the benchmark problem's runs that the training problem has.
    """

    kind: Kind
    id: str
    benchmark: str
    other: str
    share: float


def overlaps(training: Sequence[Record], benchmarks: Sequence[Record]) -> list[Overlap]:
    """All pairs that overlap, in the order of the training problems."""
    by_text, by_words, by_run = defaultdict(list), defaultdict(list), defaultdict(set)
    sizes = []
    for number, record in enumerate(benchmarks):
        by_text[record.problem].append(number)
        by_words[tuple(words(record.problem))].append(number)
        runs = _runs(record)
        sizes.append(len(runs))
        for run in runs:
            by_run[run].add(number)
    shared = [(record, _runs(record) & by_run.keys()) for record in training]
    frequent = {run for run, count in Counter(run for _, runs in shared for run in runs).items() if count >= COMMON}
    pairs = []
    for record, runs in shared:
        hits = Counter(number for run in runs - frequent for number in by_run[run])
        kinds: dict[int, Kind] = dict.fromkeys(hits, "13-gram")
        kinds |= dict.fromkeys(by_words.get(tuple(words(record.problem)), ()), "normalised")
        kinds |= dict.fromkeys(by_text.get(record.problem, ()), "exact")
        for number, kind in sorted(kinds.items()):
            share = hits[number] / sizes[number] if kind == "13-gram" else 1.0
            pairs.append(Overlap(kind, record.id, benchmarks[number].source, benchmarks[number].id, round(share, 3)))
    return pairs


def _runs(record: Record) -> set[str]:
    """The runs of a statement, without the code of its drawings."""
    text = words(_DRAWING.sub(" ", record.problem))
    return {" ".join(text[start : start + RUN]) for start in range(len(text) - RUN + 1)}
