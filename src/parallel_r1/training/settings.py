"""The settings of a stage in a recipe: its data, how it learns, when it stops."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from parallel_r1.answers.trace import EXACT_SCORER, Scorer
from parallel_r1.coldstart.settings import Data
from parallel_r1.generation.settings import Sampling
from parallel_r1.settings import Count, Decay, Section, Share
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.algorithms.base import PolicyGradient, from_table
from parallel_r1.training.algorithms.grpo import GRPO

DEFAULT_ALGORITHM = GRPO.name
"""The algorithm of an rl stage that names none."""


class Optimizer(Section):
    """AdamW with a warm-up and a constant or cosine learning rate.

    Attributes:
        clip: upper limit of the gradient's norm.
        embeddings: which rows of the embedding table learn: all, or only rows of tokens used in the batch. The softmax
            gives every row a small gradient, and Adam makes a large step of it, so training on a narrow task ruins the
            rows of tokens that it never uses; `used` leaves them as they are.
        carry: start with the moments that the optimiser of the stage before ended with, instead of none.
        tags: multiple of `lr` for the rows of the tags, in the embedding table and in an untied head. At a rate
            that suits a pretrained model, rows that are new to it hardly move.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] = 1.0
    embeddings: Literal["all", "used"] = "all"
    carry: bool = False
    tags: Annotated[float, Field(gt=0)] = 1.0


class Stop(Section):
    """When a stage ends before its last step: a metric on validation problems has stopped rising. The stage then hands
    over the weights of the best validation.

    Attributes:
        task: the task whose validation problems are used; an rl stage's own if left out.
        metric: what should rise: mean@k, pass@k or the parallel ratio.
        every: steps between two validations; the last step of the stage has one too.
        patience: the stage ends after this many validations in a row without a gain.
        min_gain: a gain is a value more than this above that of the last gain.
        problems: number of validation problems.
        samples: number of answers to every problem.
    """

    task: str
    metric: Literal["mean", "passed", "parallel_ratio"] = "mean"
    every: Count = 20
    patience: Count = 3
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    problems: Count = 100
    samples: Count = 4


class Stage(Section):
    """The settings that all stages share.

    Attributes:
        start: the stage whose weights it continues, or "base"; the stage before it if None.
        steps: number of steps.
        stop: when it ends earlier; never if None.
        scorer: how answers are scored; the sampler's exact partner if left out. Another one asks for a mismatch, which
            is then measured at every step.
        prompt: text around every problem, and where its final answer may stand.
        micro_tokens: most padded tokens in one forward pass.
        packing: put several answers side by side in a row, so that short ones need no padding and answers to one
            prompt share it. The loss is the same.
        precision: of forward passes in training; weights and optimiser stay in fp32.
        recompute: compute activations again in the backward pass instead of keeping them: less memory, about a third
            more time.
    """

    start: str | None = None
    steps: Count
    stop: Stop | None = None
    scorer: Scorer = "isolated"
    sampling: Sampling = Sampling()
    prompt: Prompt = Prompt()
    optimizer: Optimizer = Optimizer()
    micro_tokens: Count = 4096
    packing: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the scorer repeats what the sampler did."""
        return EXACT_SCORER[self.sampling.sampler] == self.scorer

    @model_validator(mode="before")
    @classmethod
    def exact_by_default(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "scorer" in values:
            return values
        sampling = values.get("sampling", Sampling())
        sampler = sampling.get("sampler", "isolated") if isinstance(sampling, dict) else sampling.sampler
        return {**values, "scorer": EXACT_SCORER.get(sampler, "isolated")}


class SFT(Stage):
    """Supervised fine-tuning; every step is one update.

    Attributes:
        data: the answers to imitate.
        batch: number of answers in a step.
    """

    kind: Literal["sft"]
    data: Data
    batch: Count = 64

    @property
    def updates(self) -> int:
        """Optimiser updates over all steps."""
        return self.steps


class RL(Stage):
    """Reinforcement learning. A step samples one batch of answers and makes `algorithm.minibatches` updates.

    Attributes:
        task: where problems come from and who judges the answers.
        reward: an expression of the reward language.
        problems: number of problems in a step.
        group: number of answers to every problem.
        algorithm: advantages and loss; `algorithm.name` is one that `@algorithm` registered.
        save_rollouts_every: steps after which the answers of a step are saved.
    """

    kind: Literal["rl"]
    task: str
    reward: str = "accuracy()"
    problems: Count = 16
    group: Annotated[int, Field(ge=2)] = 8
    algorithm: SerializeAsAny[PolicyGradient] = GRPO()
    save_rollouts_every: Count = 10

    @property
    def updates(self) -> int:
        """Optimiser updates over all steps."""
        return self.steps * self.algorithm.minibatches

    @field_validator("algorithm", mode="before")
    @classmethod
    def algorithm_by_name(cls, table: Any) -> Any:
        return from_table(table, DEFAULT_ALGORITHM)

    @model_validator(mode="before")
    @classmethod
    def stops_by_its_own_task(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("stop"), dict) and "task" in given:
            return {**given, "stop": {"task": given["task"], **given["stop"]}}
        return given

    @model_validator(mode="after")
    def explores(self) -> RL:
        if name := self.sampling.certain:
            raise ValueError(
                f"sampling.{name} leaves one token to choose from: all answers to a problem are the same, and no group "
                f"can learn"
            )
        if "reference" in self.algorithm.needs and self.sampling.filters:
            raise ValueError(
                "algorithm.kl needs top_k, top_p and min_p off: the divergence from a reference policy is infinite "
                "where one of the two filters a token out"
            )
        minibatches = self.algorithm.minibatches
        if self.problems % minibatches:
            raise ValueError(f"problems ({self.problems}) must be divisible by algorithm.minibatches ({minibatches})")
        return self
