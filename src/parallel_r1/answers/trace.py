"""One answer as spans in reading order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Address = tuple[tuple[int, int], ...]


Sampler = Literal["isolated", "causal_join", "sequential"]
"""How an answer was drawn: `isolated` runs the paths blind to each other, and what follows the join sees what they have
read; `causal_join` runs them blind too, and then reads their text again from left to right, as any server does;
`sequential` decodes from left to right and forks nothing."""


Scorer = Literal["isolated", "replay", "causal"]
"""How an answer is scored: `isolated` with blind paths at shared positions; `replay` with blind paths where they were
drawn and a copy of them, read from left to right, as the context of what follows; `causal` as plain text."""


EXACT_SCORER: dict[Sampler, Scorer] = {"isolated": "isolated", "causal_join": "replay", "sequential": "causal"}
"""The scorer that repeats what a sampler did."""


Finish = Literal["stop", "length", "error", "cancelled"]
"""Why an answer ended: the trunk drew the end of text or wrote a stop text, a budget ran out, the logits were
not numbers, or nobody wanted it any more."""


TRUNK: Address = ()


@dataclass(frozen=True)
class Span:
    """A run of tokens with one writer and one place in the tree.

    Attributes:
        token_ids: the tokens, at least one.
        address: where they lie.
        sampled: True if the policy drew them, False if they were given to it.
        logprobs: natural-log probabilities under the distribution they were drawn from, one per token; None if unknown.
        raw_logprobs: the same under the raw policy.
    """

    token_ids: tuple[int, ...]
    address: Address
    sampled: bool
    logprobs: tuple[float, ...] | None = None
    raw_logprobs: tuple[float, ...] | None = None

    def part(self, start: int, stop: int) -> Span:
        """The span of tokens start .. stop - 1 of this one."""
        cut = [None if each is None else each[start:stop] for each in (self.logprobs, self.raw_logprobs)]
        return Span(self.token_ids[start:stop], self.address, self.sampled, *cut)


@dataclass(frozen=True)
class Defect:
    """One place where a text breaks the format. `at` is a character of the text, or a token of the answer."""

    kind: str
    at: int
    message: str


@dataclass(frozen=True)
class Trace:
    """One answer.

    Attributes:
        prompt_ids: the prompt. Tags in it are text, never structure.
        spans: the answer in reading order.
        finish: why the trunk ended.
        sampler: how it was drawn; a fact, whatever scores it later.
        policy_version: the number of updates the policy had seen.
        defects: where the answer breaks the format.
    """

    prompt_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    finish: Finish = "stop"
    sampler: Sampler = "sequential"
    policy_version: int = 0
    defects: tuple[Defect, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The answer's tokens in reading order, without the prompt."""
        return tuple(token for span in self.spans for token in span.token_ids)

    @property
    def runs(self) -> list[tuple[Address, int]]:
        """The answer as (address, number of tokens) runs in reading order; what `attention` reads."""
        return [(span.address, len(span.token_ids)) for span in self.spans]

    @property
    def trunk_ids(self) -> tuple[int, ...]:
        """The tokens outside every path: what a reader of the answer alone is told."""
        return tuple(token for span in self.spans if span.address == TRUNK for token in span.token_ids)

    @property
    def forks(self) -> int:
        """How many forks the answer opened, nested ones included."""
        return len({pair[0] for span in self.spans for pair in span.address})

    @property
    def well_formed(self) -> bool:
        """Whether nothing is wrong with the format."""
        return not self.defects

    def texts(self, decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
        """The text of every span. Joined they are `decode(self.token_ids)`, to the character.

        A tokenizer may decode a span alone differently: a byte-level one splits a character between tokens, and a
        SentencePiece one drops the space before the first word. Such a character belongs to the span that completes it.

        Args:
            decode: token ids to text, such as `policy.decode`.
        """
        text, parts = decode(self.token_ids), [decode(span.token_ids) for span in self.spans]
        if "".join(parts) == text:
            return tuple(parts)
        ends, read = [0], 0
        for span in self.spans[:-1]:
            read += len(span.token_ids)
            ends.append(max(ends[-1], _shared(text, decode(self.token_ids[:read]))))
        return tuple(text[start:stop] for start, stop in zip(ends, [*ends[1:], len(text)], strict=True))


def _shared(a: str, b: str) -> int:
    """How many characters two texts have in common at their start."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
