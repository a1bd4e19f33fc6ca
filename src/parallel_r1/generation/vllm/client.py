"""`Client`, what continues texts for a `VllmBatch`: an engine in this process, or servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from parallel_r1.generation.settings import Sampling


@dataclass(frozen=True)
class Call:
    """A text to continue for a thread: up to its next tag, or to the end of its budget.

    Attributes:
        key: names the call; no other has the same.
        home: index of its answer. All calls of an answer go to one server, whose cache has what they share.
        context: token ids of the prompt and of all that the thread sees, in reading order.
        sampling: the distribution to sample.
        seed: of the sampled tokens.
        stops: token ids after which to stop.
        most: largest number of tokens.
        forbidden: token ids that are never drawn.
        at_once: whether every token is wanted as soon as it is there, and not several together.
    """

    key: str
    home: int
    context: Sequence[int]
    sampling: Sampling
    seed: int
    stops: Sequence[int]
    most: int
    forbidden: Sequence[int] = ()
    at_once: bool = False

    @property
    def params(self) -> dict[str, Any]:
        """The call as sampling parameters of vLLM. The policy's own stop tokens are among `stops`, so vLLM shall not
        look for those of the model's configuration."""
        sampling = self.sampling
        return {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "seed": self.seed,
            "stop_token_ids": list(self.stops),
            "max_tokens": self.most,
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
            "skip_special_tokens": False,
            "stream_interval": 1 if self.at_once else TOGETHER,
            **({"logit_bias": dict.fromkeys(self.forbidden, -100.0)} if self.forbidden else {}),
        }


TOGETHER = 16
"""So many tokens of a text arrive together where nobody watches. What is drawn beyond the end of a budget that several
paths share is thrown away: at most so many tokens of each."""


@dataclass(frozen=True)
class Piece:
    """Tokens with which a text goes on.

    Attributes:
        key: of the call.
        tokens: token ids.
        logprobs: natural-log probability of each, as the engine reports them.
        ended: whether no more will come: after one of `stops`, or `most` tokens.
        read, cached: number of tokens of the context that were read for it, and that the engine's cache had; given once
            for every call.
    """

    key: str
    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    ended: bool = False
    read: int = 0
    cached: int = 0


class Client(Protocol):
    """Continues many texts at a time."""

    processed: bool
    """Whether log-probabilities are those of the distribution that was sampled, whatever the settings. Otherwise they
    are those of the raw policy, or nobody knows."""

    places: int
    """Number of engines: a call goes to number `home` modulo this."""

    def start(self, call: Call) -> None:
        """Begin to continue a text."""
        ...

    def stop(self, key: str) -> None:
        """No more of this text is wanted. Pieces may still come."""
        ...

    def poll(self) -> list[Piece]:
        """Wait until there is something new, at most a short while, and return it.

        Raises:
            UserError: a text cannot be continued any more.
        """
        ...
