"""What a recipe may say of a stage: its data, how it learns, when it stops."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from parallel_r1.answers.trace import EXACT_SCORER, Scorer
from parallel_r1.coldstart.settings import Data
from parallel_r1.generation.settings import Sampling
from parallel_r1.settings import Count, Decay, Section, Share
from parallel_r1.tasks.prompts import Prompt


class Optimizer(Section):
    """AdamW with a warm-up and a constant or cosine learning rate.

    Attributes:
        embeddings: which rows of the embedding table learn: all, or those of tokens that are used in the batch. The
            softmax pushes every row a little, and Adam makes a large step of a small push, so training on a narrow
            task wrecks the rows of tokens that it never uses; `used` keeps them.
        carry: go on with the moments that the optimiser of the stage before ended with, instead of none.
        tags: the rows of the six tags, in the embedding table and in a head of its own, learn at this multiple of `lr`.
            At a rate that suits a pretrained model, rows that are new to it hardly move.
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
    """When a stage ends before its last step: a figure of validation problems has not risen for a while. The weights
    that it hands over are those of the best validation.

    Attributes:
        task: whose validation problems; an rl stage's own if left out.
        metric: what should rise: mean@k, pass@k or the parallel ratio.
        every: steps between two validations; the last step of the stage has one too.
        patience: the stage ends after so many validations in a row without a gain.
        min_gain: how much more than at the last gain is a gain.
        problems, samples: how many problems a validation has, and answers to each.
    """

    task: str
    metric: Literal["mean", "passed", "parallel_ratio"] = "mean"
    every: Count = 20
    patience: Count = 3
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    problems: Count = 100
    samples: Count = 4


class Stage(Section):
    """What every stage has.

    Attributes:
        start: the stage whose weights it continues, or "base"; the stage before it if None.
        steps: optimiser updates.
        stop: when it ends earlier; never if None.
        hold_back: whether the validation problems of its tasks are kept out of training. All stages of a recipe with a
            stop rule do.
        scorer: how answers are scored; the sampler's exact partner if left out. Another one asks for a mismatch, which
            is then measured at every step.
        prompt: what stands around a problem, and where its final answer may stand.
        micro_tokens: padded tokens of one forward pass.
        packing: lay several answers side by side in a row, so that short ones need no padding and those to one prompt
            share it. The loss is the same.
        precision: of forward passes in training; weights and optimiser stay fp32.
        recompute: compute activations again in the backward pass instead of keeping them: less memory, a third more
            time.
    """

    start: str | None = None
    steps: Count
    stop: Stop | None = None
    hold_back: bool = False
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
    """Supervised fine-tuning."""

    kind: Literal["sft"]
    data: Data
    batch: Count = 64


class GRPO(Section):
    """Group-relative policy optimisation and its family.

    Attributes:
        clip_low, clip_high: the ratio of new to old probability counts within [1 - clip_low, 1 + clip_high].
        std: what divides rewards less their group's mean: the standard deviation of the group's rewards (GRPO), of the
            whole batch's (PAPO), or nothing (Dr. GRPO).
        average: what the loss is a mean over: all sampled tokens (DAPO), answers, each a mean over its own tokens
            (GRPO as first published), or a constant, all that `budget.total` allows (Dr. GRPO).
        minibatches: optimiser updates from one batch of answers; 1 is strictly on-policy.
        refill: how often problems whose answers all earned the same are replaced by new ones before a step goes on
            with what it has (DAPO's dynamic sampling).
        truncated: whether answers that were cut by the budget are learnt from.
        kl: weight of the divergence from the policy that the stage started from (k3 estimate); 0 keeps no reference.
        entropy: weight of a bonus for the entropy of what was sampled from.
        correction: the largest importance weight of a token whose sampler is not the scorer's exact partner; no
            weights if None.
    """

    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    std: Literal["group", "batch", "none"] = "group"
    average: Literal["tokens", "answers", "constant"] = "tokens"
    minibatches: Count = 1
    refill: Annotated[int, Field(ge=0)] = 0
    truncated: bool = True
    kl: Annotated[float, Field(ge=0)] = 0.0
    entropy: Annotated[float, Field(ge=0)] = 0.0
    correction: Annotated[float, Field(gt=0)] | None = None


class RL(Stage):
    """Reinforcement learning. `steps` counts batches of answers; each makes `grpo.minibatches` updates."""

    kind: Literal["rl"]
    task: str
    reward: str = "accuracy()"
    problems: Count = 16
    group: Annotated[int, Field(ge=2)] = 8
    grpo: GRPO = GRPO()
    save_rollouts_every: Count = 10

    @model_validator(mode="before")
    @classmethod
    def stops_by_its_own_task(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("stop"), dict) and "task" in given:
            return {**given, "stop": {"task": given["task"], **given["stop"]}}
        return given

    @model_validator(mode="after")
    def explores(self) -> RL:
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature must be above 0: greedy answers to a problem are all the same")
        if self.grpo.kl and self.sampling.filters:
            raise ValueError(
                "grpo.kl needs top_k, top_p and min_p off: what one policy filters out diverges without end"
            )
        if self.problems % self.grpo.minibatches:
            raise ValueError(
                f"problems ({self.problems}) must be divisible by grpo.minibatches ({self.grpo.minibatches})"
            )
        return self
