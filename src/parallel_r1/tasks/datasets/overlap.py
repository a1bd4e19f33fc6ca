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
"""A run that so many training problems have is a phrase of competitions, such as how an answer is to be written."""
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
    texts, spoken, runs = defaultdict(list), defaultdict(list), defaultdict(set)
    sizes = []
    for number, record in enumerate(benchmarks):
        texts[record.problem].append(number)
        spoken[tuple(words(record.problem))].append(number)
        mine = _runs(record)
        sizes.append(len(mine))
        for run in mine:
            runs[run].add(number)
    shared = [(record, _runs(record) & runs.keys()) for record in training]
    frequent = {run for run, count in Counter(run for _, mine in shared for run in mine).items() if count >= COMMON}
    found = []
    for record, mine in shared:
        hits = Counter(number for run in mine - frequent for number in runs[run])
        kinds: dict[int, Kind] = dict.fromkeys(hits, "13-gram")
        kinds |= dict.fromkeys(spoken.get(tuple(words(record.problem)), ()), "normalised")
        kinds |= dict.fromkeys(texts.get(record.problem, ()), "exact")
        for number, kind in sorted(kinds.items()):
            share = hits[number] / sizes[number] if kind == "13-gram" else 1.0
            found.append(Overlap(kind, record.id, benchmarks[number].source, benchmarks[number].id, round(share, 3)))
    return found


def _runs(record: Record) -> set[str]:
    """The runs of a statement; the code of a drawing says nothing."""
    said = words(_DRAWING.sub(" ", record.problem))
    return {" ".join(said[start : start + RUN]) for start in range(len(said) - RUN + 1)}
