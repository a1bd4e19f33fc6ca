"""The structure of an answer as plain numbers, which travel through verl beside its tokens.

verl keeps an answer as one row: token ids, a mask of what was sampled, log-probabilities. It has no column for which
token lies in which path, so that goes into `extra_fields`, and is never read from the text again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parallel_r1.answers.schemas import DEFAULT, Schema
from parallel_r1.answers.trace import Span, Trace
from parallel_r1.errors import UserError

FIELD = "parallel_r1"
"""The entry of verl's `extra_fields` with the structure of an answer."""


def columns(trace: Trace) -> tuple[list[int], list[int], list[float]]:
    """An answer as verl keeps it: token ids, 1 for every token that was sampled and 0 for every given one, and the
    log-probabilities that sampled tokens were sampled with (0 for given ones)."""
    ids: list[int] = []
    mask: list[int] = []
    logprobs: list[float] = []
    for span in trace.spans:
        ids += span.token_ids
        mask += [int(span.sampled)] * len(span.token_ids)
        logprobs += span.logprobs if span.sampled and span.logprobs else [0.0] * len(span.token_ids)
    return ids, mask, logprobs


def pack(trace: Trace) -> dict[str, Any]:
    """The structure of an answer, as lists and numbers."""
    spans = [
        [len(span.token_ids), int(span.sampled), int(span.aside), *(n for pair in span.address for n in pair)]
        for span in trace.spans
    ]
    schema = {} if trace.schema == DEFAULT else {"schema": trace.schema.to_dict()}
    return {"spans": spans, "sampler": trace.sampler, "finish": trace.finish, **schema}


def unpack(
    packed: Mapping[str, Any] | None,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    logprobs: Sequence[float] | None = None,
) -> Trace:
    """The trace of a row of verl; the inverse of `pack`.

    Args:
        packed: the structure; None for a row without one.
        logprobs: of every token of the response.

    Raises:
        UserError: a row without a structure, or with that of another answer.
    """
    if packed is None:
        raise UserError(
            "an answer of the agent loop of parallel_r1 in every row",
            f"a row without extra_fields['{FIELD}']",
            "set actor_rollout_ref.rollout.agent.default_agent_loop=parallel_r1",
        )
    spans, at = [], 0
    for size, sampled, aside, *address in packed["spans"]:
        ids = tuple(response_ids[at : at + size])
        known = tuple(logprobs[at : at + size]) if sampled and logprobs is not None else None
        pairs = tuple(zip(address[::2], address[1::2], strict=True))
        spans.append(Span(ids, pairs, bool(sampled), known, known, bool(aside)))
        at += size
    if at != len(response_ids):
        raise UserError(
            f"the structure of an answer of {len(response_ids)} tokens", f"one of {at} tokens", "report this as a bug"
        )
    schema = Schema.from_dict(packed["schema"], "a row of verl") if "schema" in packed else DEFAULT
    return Trace(tuple(prompt_ids), tuple(spans), packed["finish"], packed["sampler"], schema=schema)
