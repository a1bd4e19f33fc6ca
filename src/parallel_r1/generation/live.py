"""`LiveBatch`: answers that are generated side by side, to which others may be added while they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from parallel_r1.answers.syntax import Tags
from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.request import OnTrace, Request
from parallel_r1.generation.threads import Answer, Decode


class LiveBatch(Protocol):
    """A batch that answers join and leave while it runs. One thread alone calls `step` and `close`.

    Attributes:
        counts: work done so far.
    """

    @property
    def counts(self) -> Counts: ...

    @property
    def is_busy(self) -> bool:
        """Whether an answer waits or is being generated."""
        ...

    def submit(self, request: Request) -> Answer:
        """Put one answer at the end of the queue, from the next step on. May be called at any moment, from `on_token`
        and from other threads too.

        Raises:
            UserError: a request that can never be answered, such as one with an empty prompt.
        """
        ...

    def cancel(self, answer: Answer) -> None:
        """End an answer at the start of the next step. May be called at any moment, as `submit`. Does nothing if the
        answer has ended by then."""
        ...

    def step(self) -> list[Answer]:
        """Go on with the answers, by a token for each or by what the engine has ready. Returns the answers that have
        ended since the last step."""
        ...

    def close(self) -> None:
        """Give back all memory. Answers that have not ended never will."""
        ...


def draw_all(batch: LiveBatch, answers: Sequence[Answer], policy_version: int, on_trace: OnTrace | None) -> list[Trace]:
    """Go on until all answers of a batch have ended.

    Args:
        answers: what was submitted, in order.

    Returns:
        Their traces, in the same order.
    """
    while batch.is_busy:
        for answer in batch.step():
            if on_trace:
                on_trace(answer.index, answer.trace(policy_version))
    return [answer.trace(policy_version) for answer in answers]


def check_request(request: Request, index: int, tags: Tags, decode: Decode | None) -> None:
    """Refuse a request that no engine can answer.

    Args:
        index: names the request in the error.

    Raises:
        UserError: an empty prompt; stop texts or `branches.agree` without `decode`; spare paths in a schema with a
            plan; numbers of paths that the tokenizer has no token for.
    """
    sampling = request.sampling
    if not request.prompt_ids:
        raise UserError("prompts of at least one token", f"prompt {index} is empty", "give it some text")
    for wanted, name in ((sampling.stop, "stop texts"), (sampling.branches.agree is not None, "branches.agree")):
        if wanted and decode is None:
            raise UserError(f"a decode function for {name}", "none", "pass decode, such as policy.decode")
    if sampling.branches.spare and tags.schema.plan:
        raise UserError(
            "a schema without a plan for branches.spare",
            "one with a plan, which has no item for a spare path",
            "leave spare out",
        )
    if sampling.least < sampling.most and not tags.schema.plan:
        numbers = set(tags.counts.values())
        lacking = [number for number in range(sampling.least, sampling.most + 1) if number not in numbers]
        if lacking:
            raise UserError(
                f"a token for every number of paths from {sampling.least} to {sampling.most}",
                f"none for {lacking[0]}",
                "give a smaller range of paths",
            )
