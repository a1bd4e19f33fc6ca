"""Rollout files of earlier versions: their rows have the text of the answer, but not of its spans; in version 0.1 they
have a reward without terms."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from parallel_r1.answers.parser import pieces
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.answers.trace import TRUNK, Trace

FORK_OPEN, (PATH_OPEN, PATH_CLOSE) = DEFAULT.opener, DEFAULT.path  # as all of these files have it


def terms_of(row: dict[str, Any]) -> dict[str, float] | None:
    """The terms of the reward in a row; where a row has the sum only, as one term."""
    terms: dict[str, float] | None = row["terms"] if "terms" in row else {"reward": row["reward"]}
    return None if terms == {"reward": None} else terms


def texts_of_spans(text: str, trace: Trace) -> tuple[str, ...]:
    """Cut the text of an answer at its tags, without a tokenizer. Where the text cannot come from these spans, the
    first span gets all of it."""
    parts = tuple(_written(text) if trace.sampler == "sequential" else _drawn(text, trace))
    if len(parts) == len(trace.spans) and "".join(parts) == text:
        return parts
    return (text, *[""] * (len(trace.spans) - 1))


def _written(text: str) -> Iterator[str]:
    """An answer that the policy wrote alone has the structure that the parser reads."""
    for _, run in groupby(pieces(text), key=lambda piece: piece.address):
        yield "".join(piece.text for piece in run)


def _drawn(text: str, trace: Trace) -> Iterator[str]:
    """Where the runtime forked, the addresses of the neighbouring spans say which tag a span is or ends with. A tag
    without meaning, such as a `<Parallel>` beyond the fork budget, stays text."""
    addresses = [span.address for span in trace.spans]
    at = 0
    for before, span, after in zip([TRUNK, *addresses[:-1]], trace.spans, [*addresses[1:], None], strict=True):
        own = span.address
        if not span.sampled:
            tag = DEFAULT.join if len(before) > len(own) else PATH_CLOSE if before == own else PATH_OPEN
            stop = at + len(tag)
        elif after is None:
            stop = len(text)
        elif len(after) > len(own):
            stop = text.find(FORK_OPEN + PATH_OPEN, at) + len(FORK_OPEN)
        elif after == own:  # the path was cut, and its last tag is given
            stop = text.find(PATH_CLOSE, at)
        else:
            stop = text.find(PATH_CLOSE, at) + len(PATH_CLOSE)
        yield text[at : max(at, stop)]
        at = max(at, stop)
