"""Judged answers as compact columns for a web page: gzip and base64, decoded there answer by answer.

A page holds one small index, with a row of figures per answer, and blocks of `BLOCK` answers each, which it reads when
one of them is shown. Everything a picture needs is computed here, by the one definition of it: positions, who sees whom
and the critical path by `answers.visibility`, tags and summaries by `report.outline`.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.answers.trace import Address, Span
from parallel_r1.answers.visibility import critical_runs, layout, strangers
from parallel_r1.report.outline import Words, words_of

BLOCK = 100
"""Number of answers of a block."""
UNKNOWN = -1
"""Surprise of a token whose probability is not known."""
Cut = Callable[[Span, str], list[int]]
"""(span, its text) -> number of characters of every token, which add up to the text; see `report.token_texts`."""
Verdicts = Mapping[Address, str]
"""Path -> `right`, `wrong` or `failed`, for paths that can be judged."""


@dataclass(frozen=True)
class Shown:
    """An answer and where it comes from.

    Attributes:
        rollout: the answer.
        step: training step that drew it; None if unknown.
        stage: its stage; empty if unknown.
        verdicts: of the paths that can be judged.
    """

    rollout: Rollout
    step: int | None = None
    stage: str = ""
    verdicts: Verdicts = field(default_factory=dict)


def pack(answers: Iterable[Shown], cut: Cut | None = None) -> tuple[str, list[str], int]:
    """Encode answers for a page; reads them one after the other.

    Args:
        cut: where tokens lie in the text of their span; None if that is unknown: the page then shows whole spans.

    Returns:
        The index and the blocks, as base64, and the number of answers.
    """
    problems: dict[tuple[str, str, str, str, int], int] = {}
    keys: dict[tuple[str, str], int] = {}
    stages: dict[str, int] = {}
    rows: list[list[Any]] = []
    best: tuple[tuple[bool, ...], int] | None = None
    blocks: list[str] = []
    block: list[dict[str, Any]] = []
    for shown in answers:
        problem = shown.rollout.problem
        same = keys.setdefault((problem.source, problem.key), len(keys))
        described = (_asked(problem), problem.answer, problem.source, problem.id, same)
        number = problems.setdefault(described, len(problems))
        rows.append([number, stages.setdefault(shown.stage, len(stages)), shown.step, *_figures(shown.rollout)])
        rank = _rank(shown)
        best = (rank, len(rows) - 1) if best is None or rank > best[0] else best
        block.append(encode(shown, cut))
        if len(block) == BLOCK:
            blocks.append(_squeeze(block))
            block = []
    if block:
        blocks.append(_squeeze(block))
    columns = {name: [row[at] for row in rows] for at, name in enumerate(COLUMNS)}
    index = {
        "block": BLOCK,
        "open": best[1] if best else 0,
        "tokens": cut is not None,
        "problems": list(problems),
        "stages": list(stages),
        "columns": columns,
    }
    return _squeeze(index), blocks, len(rows)


COLUMNS = ("problem", "stage", "step", "correct", "forks", "paths", "defects", "cut", "critical", "total", "reward")
"""Columns of the index, one entry per answer."""


def _asked(problem: Problem) -> str:
    """What the model was asked, with the messages before it."""
    return "\n\n".join([*(f"{role}: {text}" for role, text in problem.before), problem.prompt])


def _rank(shown: Shown) -> tuple[bool, ...]:
    """How well an answer shows at first sight what parallel thinking is: some of its paths are right and others not,
    and it ends right."""
    trace, verdicts = shown.rollout.trace, set(shown.verdicts.values())
    return trace.forks > 0, shown.rollout.correct, trace.well_formed, "right" in verdicts, len(verdicts) > 1


def _figures(rollout: Rollout) -> list[Any]:
    """The figures of an answer in the index, as `COLUMNS` from `correct` on."""
    trace, reward = rollout.trace, rollout.reward
    paths = len({span.address[: level + 1] for span in trace.spans for level in range(len(span.address))})
    return [
        int(rollout.correct),
        trace.forks,
        paths,
        len(trace.defects),
        int(trace.finish == "length"),
        rollout.critical_path,
        rollout.total,
        None if reward is None or not math.isfinite(reward) else round(reward, 4),
    ]


def encode(shown: Shown, cut: Cut | None = None) -> dict[str, Any]:
    """One answer as plain data. Lengths of texts are in UTF-16 units, as JavaScript counts them."""
    rollout = shown.rollout
    trace, texts = rollout.trace, rollout.texts
    sequential = trace.sampler == "sequential"
    addresses = list(dict.fromkeys(span.address for span in trace.spans))
    laid = layout(trace.runs, "causal" if sequential else "isolated")
    starts, total = [], 0
    for span in trace.spans:
        starts.append(int(laid.positions[total]))
        total += len(span.token_ids)
    pieces: list[list[int]] = [[] for _ in trace.spans]
    for index, words in words_of(trace, texts):
        pieces[index] += [units(words.text), _role(words)]
    row = {
        "addresses": addresses,
        "sees": "".join(str(int(sequential or not strangers(a, b))) for a in addresses for b in addresses),
        "verdicts": [shown.verdicts.get(address) for address in addresses],
        "at": starts,
        "address": [addresses.index(span.address) for span in trace.spans],
        "count": [len(span.token_ids) for span in trace.spans],
        "flags": [int(span.sampled) + 2 * int(span.aside) for span in trace.spans],
        "critical": critical_runs(trace.runs, "causal" if sequential else "isolated"),
        "text": texts,
        "pieces": pieces,
        "bits": [surprise(span) for span in trace.spans],
        "finish": trace.finish,
        "sampler": trace.sampler,
        "defects": [(defect.kind, defect.at, defect.message) for defect in trace.defects],
        "terms": {name: value for name, value in (rollout.terms or {}).items() if math.isfinite(value)},
    }
    if trace.schema != DEFAULT:
        row["schema"] = trace.schema.name
    if cut is not None:
        row["lengths"] = [cut(span, text) for span, text in zip(trace.spans, texts, strict=True)]
    return row


def _role(words: Words) -> int:
    """The role of a piece of text as a number: 0 text, 2 of a summary, 4 of a plan; one more if it is a tag."""
    return {None: 0, "summary": 2, "plan": 4}[words.within] + int(words.is_tag)


def surprise(span: Span) -> list[int] | None:
    """Surprise of every token in thousandths of a bit, -log2 of its probability; None if none is known."""
    if span.logprobs is None:
        return None
    return [round(-1000 * value / math.log(2)) if -1e6 < value <= 0 else UNKNOWN for value in span.logprobs]


def units(text: str) -> int:
    """Length of a text in UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _squeeze(value: Any) -> str:
    """A value as JSON, compressed, in base64. Escapes keep whatever a text may hold, half a surrogate pair too."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")
