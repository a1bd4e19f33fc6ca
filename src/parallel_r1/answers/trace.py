"""An answer as spans of tokens in reading order: the one structure that everything else reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from parallel_r1.answers.schemas import DEFAULT, Schema

Address = tuple[tuple[int, int], ...]
"""Where a token lies: the (fork, path) pairs around it, outermost first; empty for the trunk. Forks are numbered in
reading order over the whole answer, the paths of a fork from 0."""

TRUNK: Address = ()

Sampler = Literal["isolated", "causal_join", "sequential"]
"""How an answer was drawn. `isolated`: paths blind to each other at shared positions; the summary attends to the
KV cache of all paths. `causal_join`: paths blind too, but their text is read again from left to right before the
summary, as any server does. `sequential`: plain decoding from left to right, without forks."""

Scorer = Literal["isolated", "replay", "causal"]
"""How an answer is scored. `isolated`: blind paths at shared positions. `replay`: blind paths where they were drawn,
and a copy of them, read from left to right, as the context of the summary. `causal`: plain text."""

EXACT_SCORER: dict[Sampler, Scorer] = {"isolated": "isolated", "causal_join": "replay", "sequential": "causal"}
"""The scorer that computes exactly the log-probabilities of a sampler."""

Finish = Literal["stop", "length", "error", "cancelled"]
"""Why an answer ended. `stop`: the trunk drew the end of text or a stop text. `length`: a budget was spent. `error`:
logits were not numbers. `cancelled`: the caller ended it."""


@dataclass(frozen=True)
class Span:
    """A run of tokens with one writer and one place in the tree.

    Attributes:
        token_ids: the tokens, at least one.
        address: where in the tree they lie.
        sampled: True if the policy drew them, False if the runtime gave them.
        logprobs: natural-log probabilities under the distribution they were drawn from, one per token; None if unknown.
        raw_logprobs: the same under the raw policy, without temperature and truncation.
        aside: whether the tokens are inside the paths of a fork that the policy wrote as text, where the settings or
            the budget allowed none. They lie where they were drawn, but are no part of the answer.
    """

    token_ids: tuple[int, ...]
    address: Address
    sampled: bool
    logprobs: tuple[float, ...] | None = None
    raw_logprobs: tuple[float, ...] | None = None
    aside: bool = False

    def part(self, start: int, stop: int) -> Span:
        """Tokens `start` to `stop - 1` as a span of their own."""
        logprobs, raw = (
            None if column is None else column[start:stop] for column in (self.logprobs, self.raw_logprobs)
        )
        return Span(self.token_ids[start:stop], self.address, self.sampled, logprobs, raw, self.aside)


@dataclass(frozen=True)
class Defect:
    """A place where an answer breaks the format.

    Attributes:
        kind: name of the defect, such as `unclosed-path`.
        at: index of a token; of a character where a text was parsed.
        message: a sentence for people.
    """

    kind: str
    at: int
    message: str


@dataclass(frozen=True)
class Trace:
    """One answer to a prompt. Its critical path is `visibility.latency(trace)`.

    Attributes:
        prompt_ids: tokens of the prompt. Tags in it are text, never structure.
        spans: the answer in reading order.
        finish: why the trunk ended.
        sampler: how it was drawn; a fact, whatever scores it later.
        policy_version: number of updates of the policy that drew it.
        defects: where the answer breaks the format, in order of place.
        schema: how its forks are written.
    """

    prompt_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    finish: Finish = "stop"
    sampler: Sampler = "sequential"
    policy_version: int = 0
    defects: tuple[Defect, ...] = ()
    schema: Schema = DEFAULT

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The answer's tokens in reading order, without the prompt."""
        return tuple(token for span in self.spans for token in span.token_ids)

    @property
    def runs(self) -> list[tuple[Address, int]]:
        """(address, number of tokens) of every span: what visibility and positions depend on."""
        return [(span.address, len(span.token_ids)) for span in self.spans]

    @property
    def trunk_ids(self) -> tuple[int, ...]:
        """The tokens outside every path: the part that a verifier reads."""
        spans = (span for span in self.spans if span.address == TRUNK and not span.aside)
        return tuple(token for span in spans for token in span.token_ids)

    def trunk_text(self, texts: Sequence[str]) -> str:
        """The text outside every path, tags included.

        Args:
            texts: text of every span; see `texts`.
        """
        pairs = zip(self.spans, texts, strict=True)
        return "".join(text for span, text in pairs if span.address == TRUNK and not span.aside)

    @property
    def forks(self) -> int:
        """Number of forks, nested ones included."""
        return len({fork for span in self.spans for fork, _ in span.address})

    @property
    def paths(self) -> int:
        """Number of paths with a token, over all forks, nested ones included."""
        return len({span.address[: depth + 1] for span in self.spans for depth in range(len(span.address))})

    @property
    def fork_at(self) -> list[int]:
        """Index of the token before the first path, such as `<Parallel>`, for every fork in reading order."""
        first: dict[int, int] = {}
        at = 0
        for span in self.spans:
            for fork, _ in span.address:
                first.setdefault(fork, at - 1)
            at += len(span.token_ids)
        return list(first.values())

    @property
    def well_formed(self) -> bool:
        """Whether the answer has no defect."""
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
