"""Settings of generation: the distribution that is sampled, the budget of an answer, the engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from parallel_r1.answers.syntax import TAGS
from parallel_r1.answers.trace import Sampler
from parallel_r1.settings import Count, Section, Share


class Budget(Section):
    """What one answer may spend, in tokens with the given ones counted, and in forks. The prompt is not counted.

    Attributes:
        total: over all paths.
        critical_path: over the longest chain of tokens drawn one after the other: latency.
        path: one path, its tags included.
        forks: how many forks an answer may open; a later `<Parallel>` is plain text and the trunk goes on.
        depth: how deep forks may nest; 1 means no fork inside a path.
    """

    total: Count = 512
    critical_path: Count = 256
    path: Count = 128
    forks: Annotated[int, Field(ge=0)] = 4
    depth: Count = 1


class Sampling(Section):
    """The distribution that answers are drawn from, and how they may fork.

    Attributes:
        sampler: what a fork and a join do; see `answers.trace.Sampler`.
        paths: number of paths of every fork.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens that together have this probability.
        min_p: keep tokens that are at least this share as probable as the most probable one.
        stop: texts that end the answer once the trunk contains one; the text stays in the answer.
        budget: of one answer.
    """

    sampler: Sampler = "isolated"
    paths: Annotated[int, Field(ge=1, le=64)] = 2
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Share = 0.0
    stop: tuple[str, ...] = ()
    budget: Budget = Budget()

    @property
    def opens_forks(self) -> bool:
        """Whether an answer may have a well-formed fork, of two paths at least."""
        return self.sampler != "sequential" and self.paths > 1 and self.budget.forks > 0

    @property
    def filters(self) -> bool:
        """Whether tokens are left out that the raw policy might draw."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def reach(self) -> int:
        """The positions that an answer may take: those of its critical path, or of all its text where a join reads it
        again."""
        return self.budget.total if self.sampler == "causal_join" else min(self.budget.critical_path, self.budget.total)

    @field_validator("stop")
    @classmethod
    def stops_are_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text or any(tag in text for tag in TAGS) for text in stop):
            raise ValueError("a stop text must not be empty and must not hold one of the six tags")
        return stop


class Engine(Section):
    """What draws the answers. None of it changes what is drawn, up to rounding.

    Attributes:
        kind: "local" draws with the model in this process.
        device: "auto" is CUDA where there is one, else the CPU; or "cpu", "cuda", "cuda:1".
        rows: the largest number of answers that are drawn at once.
        memory: the largest number of tokens whose keys and values are held at once; None for no limit. When it is full,
            the answer that came last waits and is read again later.
        compile: run the model through `torch.compile` while it draws: faster steps after half a minute or more; needs a
            C++ compiler.
    """

    kind: Literal["local"] = "local"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    rows: Count = 256
    memory: Count | None = None
    compile: bool = False
