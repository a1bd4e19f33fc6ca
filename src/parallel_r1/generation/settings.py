"""Settings of generation: the distribution to sample, the budget of an answer, and the engine."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from parallel_r1.answers.schemas import DEFAULT, MOST_PATHS, SCHEMAS
from parallel_r1.answers.trace import Sampler
from parallel_r1.settings import Count, Section, Share

PATH, JOIN = 3, 2 + len(DEFAULT.gap)
"""The fewest tokens of a path with text, and of what the runtime writes after a fork, in the schema with the fewest."""
COLD = 0.01
"""A temperature below this is greedy for any logits that differ, and likewise for top-p and min-p."""
SIZE = re.compile(r"\d+(\.\d+)? ?[KMGT]i?B|(100|[1-9]?\d(\.\d+)?) ?%")
"""How `Engine.memory` is written in bytes or as a share."""


class Budget(Section):
    """Limits of one answer. Sampled and given tokens count, the tokens of the prompt do not.

    Attributes:
        total: number of tokens over all paths: the cost.
        critical_path: length of the longest chain of tokens generated one after the other: the latency.
        path: number of tokens of one path, its tags included.
        forks: number of forks that an answer may open. After that `<Parallel>` is plain text and the trunk goes on.
        depth: nesting depth of forks; 1 means no fork inside a path.
    """

    total: Count = 512
    critical_path: Count = 256
    path: Count = 128
    forks: Annotated[int, Field(ge=0)] = 4
    depth: Count = 1


class Branches(Section):
    """Which paths the runtime closes before the policy does; by default none. What a closed path has written stays in
    the answer, and the summary reads it. A path whose own fork or summary is open is left until that has ended.

    Attributes:
        spare: every fork opens so many more paths than `Sampling.paths`, or as many of them as the budget has room for,
            and once all but these have ended, it closes the others.
        straggler: once at least half of the paths of a fork have ended, those longer than so many times the median
            length of these are closed.
        agree: once so many paths of a fork have ended with the same conclusion, the others are closed. A path that was
            cut concludes nothing.
    """

    spare: Annotated[int, Field(ge=0)] = 0
    straggler: Annotated[float, Field(ge=1)] | None = None
    agree: Count | None = None


class Sampling(Section):
    """The distribution that answers are sampled from, and how they may fork.

    Attributes:
        sampler: what a fork and a join do; see `answers.trace.Sampler`.
        paths: number of paths of every fork; or the smallest and the largest, such as `[1, 8]`: then the policy writes
            the number after `<Parallel>`. Where the schema has a plan, as many paths open as it has items, at most
            this number.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose probabilities sum to at least this.
        min_p: keep tokens with at least this share of the largest probability.
        stop: texts that end the answer once the trunk contains one. The text stays in the answer.
        budget: limits of one answer.
        branches: which paths the runtime closes early.
    """

    sampler: Sampler = "isolated"
    paths: int | tuple[int, int] = 2
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Share = 0.0
    stop: tuple[str, ...] = ()
    budget: Budget = Budget()
    branches: Branches = Branches()

    @property
    def least(self) -> int:
        """The smallest number of paths that a fork may have, without a plan."""
        return self.paths if isinstance(self.paths, int) else self.paths[0]

    @property
    def most(self) -> int:
        """The largest number of paths that a fork may have."""
        return self.paths if isinstance(self.paths, int) else self.paths[1]

    @property
    def widest(self) -> int:
        """The largest number of paths that a fork opens, with the spare ones."""
        return self.most + self.branches.spare

    @property
    def counts(self) -> bool:
        """Whether the policy writes the number of paths, where the schema has no plan."""
        return self.sampler != "sequential" and not isinstance(self.paths, int)

    @property
    def opens_forks(self) -> bool:
        """Whether an answer may have a well-formed fork, one with at least two paths that have text."""
        budget = self.budget
        if self.sampler == "sequential" or self.widest < 2 or budget.forks < 1:
            return False
        # <Parallel>, then in every path <Path>, a token and </Path>, then the join and a token of the summary.
        chain = 1 + PATH + JOIN + 1
        total = 1 + max(2, self.least) * PATH + JOIN + 1
        return budget.path >= PATH and budget.critical_path >= chain and budget.total >= total

    @property
    def certain(self) -> str | None:
        """The setting that leaves only the most probable token to choose from; None if there is none."""
        limits = {
            "temperature": self.temperature < COLD,
            "top_k": self.top_k == 1,
            "top_p": self.top_p < COLD,
            "min_p": self.min_p > 1 - COLD,
        }
        return next((name for name, reached in limits.items() if reached), None)

    @property
    def filters(self) -> bool:
        """Whether top-k, top-p or min-p removes tokens that the raw policy could sample."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def reach(self) -> int:
        """The largest number of positions that an answer takes: its critical path, or all its tokens under
        `causal_join`, which reads the paths again one after the other."""
        return self.budget.total if self.sampler == "causal_join" else min(self.budget.critical_path, self.budget.total)

    @field_validator("paths", mode="before")
    @classmethod
    def is_a_number_or_two(cls, paths: Any) -> int | tuple[int, int]:
        pair = list(paths) if isinstance(paths, list | tuple) else [paths, paths]
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in pair)
        if not whole or len(pair) != 2 or not 1 <= pair[0] <= pair[1] <= MOST_PATHS:
            raise ValueError(
                f"must be a number from 1 to {MOST_PATHS}, or the smallest and the largest, such as [1, 8]"
            )
        return paths if isinstance(paths, int) else (pair[0], pair[1])

    @model_validator(mode="after")
    def branches_fit(self) -> Sampling:
        branches = self.branches
        if branches == Branches():
            return self
        if self.sampler == "sequential":
            raise ValueError("branches needs paths: the sampler 'sequential' opens none")
        if branches.spare and self.counts:
            raise ValueError("branches.spare needs one number of paths: in a range the policy chooses how many open")
        if self.widest > MOST_PATHS:
            raise ValueError(f"paths and branches.spare must be at most {MOST_PATHS} together, not {self.widest}")
        if branches.agree is not None and branches.agree > self.most:
            raise ValueError(f"branches.agree must be at most {self.most}, the number of paths, not {branches.agree}")
        return self

    @model_serializer(mode="wrap")
    def leave_out_branches(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `branches` where they are off, so that recipes and cards stay equal to those of earlier versions."""
        fields: dict[str, Any] = write(self)
        if self.branches == Branches():
            fields.pop("branches", None)
        return fields

    @field_validator("stop")
    @classmethod
    def stops_are_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        tags = {tag for schema in SCHEMAS.values() for tag in schema.tags}
        if any(not text or any(tag in text for tag in tags) for text in stop):
            raise ValueError("a stop text must not be empty and must not hold a tag of a fork")
        return stop


class Engine(Section):
    """How the model is run. These settings change speed and memory; up to rounding, they do not change the answers.

    Attributes:
        kind: "local" runs the model that learns; "vllm" gives its weights to vLLM, in this process or on `servers`,
            which draws the samplers causal_join and sequential.
        servers: addresses of running vLLM servers, such as "http://10.0.0.7:8000". All calls of an answer go to one of
            them. Empty: vLLM in this process.
        weights: a folder that this process writes and the servers read, for new weights; a temporary one if None.
        patience: how long to wait for a server that cannot be reached or has no room, in seconds.
        device: "cpu", "cuda", "cuda:1", or "auto" for CUDA if there is a GPU and the CPU otherwise.
        dtype: in which the model draws, "fp32" or "bf16"; "auto" for that of its weights. Weights in another one are
            copied for drawing. What is scored is then not quite what was sampled: training measures the mismatch.
        rows: largest number of answers generated at the same time.
        memory: the most that the KV cache may hold: a number of tokens; bytes, such as "20GB" or "512MiB"; a share of
            the device, such as "80%", of which it gets what weights and others have not taken; None for no limit. When
            it is full, the answer that started last is removed, and its tokens are read again later. vLLM takes 30 % of
            the device for None, and counts its weights in a share.
        compile: run the model through `torch.compile`. Steps are faster, after half a minute or more of compiling;
            needs a C++ compiler.
    """

    kind: Literal["local", "vllm"] = "local"
    servers: tuple[Annotated[str, Field(pattern=r"^https?://[^/]+/?$")], ...] = ()
    weights: str | None = None
    patience: Annotated[float, Field(gt=0)] = 600
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    rows: Count = 256
    memory: int | str | None = None
    compile: bool = False

    @field_validator("memory", mode="before")
    @classmethod
    def is_a_size(cls, memory: Any) -> Any:
        if isinstance(memory, str) and memory.isdecimal():
            memory = int(memory)
        tokens = isinstance(memory, int) and not isinstance(memory, bool) and memory > 0
        if memory is None or tokens or (isinstance(memory, str) and SIZE.fullmatch(memory)):
            return memory
        raise ValueError("must be a number of tokens above 0, bytes such as '20GB', or a share such as '80%'")
