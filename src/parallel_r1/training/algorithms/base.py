"""What an algorithm is: the seam between the training loops and the formulas of papers.

A new algorithm is one file with one class: a subclass of `PolicyGradient` under `@algorithm("name")`, that a recipe
then names: `algorithm = { name = "name", .. }`. Most need only `advantages` and `gain`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_serializer
from pydantic_core import PydanticCustomError
from torch import Tensor

from parallel_r1.answers.rollout import Group
from parallel_r1.errors import UserError, nearest
from parallel_r1.registry import Registry, where
from parallel_r1.settings import Count, Section
from parallel_r1.training.batch import Batch
from parallel_r1.training.sample import Sample

Need = Literal["old", "reference", "entropy"]
"""Inputs of a loss beside the log-probabilities of the policy: `old` ones from before the step (`batch.old`),
`reference` ones of the policy that the stage started from (`batch.reference`), the `entropy` of the distributions."""
UNKNOWN_NAME = "unknown_name"
"""The type of the validation error for a name that is not registered."""


class Objective(Protocol):
    """A loss and the inputs it needs: all that the learner uses of an algorithm."""

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs of the loss beside the log-probabilities of the policy."""

    @property
    def learns_without_advantage(self) -> bool:
        """Whether a sample with advantage 0 has a gradient, as with a KL penalty. If not, it is not computed."""

    def loss(
        self,
        logprobs: Float[Tensor, "b n"],
        batch: Batch,
        tokens: int,
        entropies: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of one micro-batch and its metrics, such that the sum over micro-batches is that of the update.

        Args:
            logprobs: of the policy, from `batch.score`.
            batch: the micro-batch.
            tokens: number of sampled tokens of the whole update.
            entropies: of the distribution that every token was sampled from, in nats, if the algorithm needs them.
        """


class Algorithm(Objective, Protocol):
    """All that the loops and the estimate of a run use of a reinforcement-learning algorithm."""

    @property
    def minibatches(self) -> int:
        """Number of updates from one batch of answers."""

    @property
    def refill(self) -> int:
        """How often groups whose answers all earned the same are replaced by new ones."""

    def credit(self, groups: Sequence[Group]) -> list[list[Sample]]:
        """Samples with their advantages, one list per group of judged and rewarded answers."""

    def updates(self, credited: Sequence[Sequence[Sample]], longest: int) -> Iterator[list[Sample]]:
        """The samples of every update of the step, with their weights; `longest` is the most tokens of an answer."""


class PolicyGradient(Section):
    """The base of all algorithms that a recipe can name: their common settings, and a policy-gradient loss.

    A subclass adds settings as pydantic fields, implements `advantages`, and may override `ratio` and `gain`. It has no
    state: results depend on its settings and arguments only, so that a run can go on where it was interrupted.

    Attributes:
        minibatches: optimiser updates from one batch of answers; 1 is strictly on-policy.
        refill: how often problems whose answers all earned the same are replaced by new ones before the step goes on
            with what it has (DAPO's dynamic sampling).
        truncated: whether to learn from answers that the budget cut off.
        average: what the loss is a mean over: all sampled tokens (DAPO); answers, with a mean over the tokens of an
            answer (GRPO as first published); or a constant length, `budget.total` (Dr. GRPO).
        kl: weight of the divergence from the policy that the stage started from (k3 estimate); 0 keeps no reference.
        entropy: weight of a bonus for the entropy of the distributions that tokens are sampled from.
        correction: upper limit of the importance weight of a token whose sampler is not the scorer's exact partner; no
            weights if None.

    Sources: DAPO (arXiv 2503.14476), Dr. GRPO (arXiv 2503.20783), PPO (arXiv 1707.06347) for several updates from one
    batch, DeepSeekMath (arXiv 2402.03300) for the divergence from a reference, DeepSeek-V3.2 (arXiv 2512.02556) for the
    ratio in the divergence, A3C (arXiv 1602.01783) for the entropy bonus; for `correction` truncated importance
    sampling, as in "Your efficient RL framework secretly brings you off-policy RL training".
    """

    name: ClassVar[str] = ""
    """The name that recipes use, set by `@algorithm`."""

    minibatches: Count = 1
    refill: Annotated[int, Field(ge=0)] = 0
    truncated: bool = True
    average: Literal["tokens", "answers", "constant"] = "tokens"
    kl: Annotated[float, Field(ge=0)] = 0.0
    entropy: Annotated[float, Field(ge=0)] = 0.0
    correction: Annotated[float, Field(gt=0)] | None = None

    @model_serializer(mode="wrap")
    def _with_name(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {"name": self.name, **dump(self)}

    @property
    def needs(self) -> frozenset[Need]:
        needs: set[Need] = {"old"}
        if self.kl:
            needs.add("reference")
        if self.entropy:
            needs.add("entropy")
        return frozenset(needs)

    @property
    def learns_without_advantage(self) -> bool:
        return self.kl > 0 or self.entropy > 0

    def advantages(self, groups: Sequence[Sequence[float]]) -> list[list[float]]:
        """The advantage of every answer, from the rewards of all groups of a step."""
        raise UserError(
            f"a method advantages in {type(self).__name__}",
            f"none at {where(type(self))}",
            "see examples/my_algorithm.py",
        )

    def ratio(
        self, log_ratio: Float[Tensor, "b n"], counted: Bool[Tensor, "b n"], batch: Batch
    ) -> Float[Tensor, "b n"]:
        """The ratio of new to old probability of every token; or of the whole answer, at all its tokens.

        Args:
            log_ratio: of every token; 0 where it is not counted.
            counted: sampled tokens that the scorer's distribution did not leave out.
            batch: the micro-batch.
        """
        return log_ratio.exp()

    def gain(self, ratio: Float[Tensor, "b n"], batch: Batch) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """What every token adds to the objective, and whether its ratio was clipped; nothing is clipped here."""
        return ratio * batch.advantages, torch.zeros_like(batch.sampled)

    def credit(self, groups: Sequence[Group]) -> list[list[Sample]]:
        """Samples with their advantages, one list per group."""
        advantages = self.advantages_of(groups)
        return [
            [Sample(rollout.trace, advantage) for rollout, advantage in zip(group.rollouts, values, strict=True)]
            for group, values in zip(groups, advantages, strict=True)
        ]

    def advantages_of(self, groups: Sequence[Group]) -> list[list[float]]:
        """The advantage of every answer of a step, from its reward."""
        rewards = [[rollout.reward or 0.0 for rollout in group.rollouts] for group in groups]
        return self._check_advantages(self.advantages(rewards), rewards)

    def _check_advantages(self, advantages: Any, rewards: Sequence[Sequence[float]]) -> list[list[float]]:
        """The advantages that a subclass returned, as floats.

        Raises:
            UserError: they are not one finite number for every reward.
        """
        try:
            values = [[float(value) for value in members] for members in advantages]
        except (TypeError, ValueError):
            values = []
        sizes, expected = list(map(len, values)), list(map(len, rewards))
        if sizes != expected or not all(math.isfinite(value) for members in values for value in members):
            raise UserError(
                f"one finite number for every reward from advantages of {type(self).__name__}, in groups of {expected}",
                f"{advantages!r:.80} from {where(type(self))}",
                "return a list of lists, as rewards come in",
            )
        return values

    def updates(self, credited: Sequence[Sequence[Sample]], longest: int) -> Iterator[list[Sample]]:
        """The samples of every update: whole groups dealt out in turn, weighed as `average` says.

        Args:
            credited: samples of every group.
            longest: the most tokens that an answer may have.
        """
        for part in range(self.minibatches):
            samples = [
                sample
                for group in credited[part :: self.minibatches]
                for sample in group
                if self.truncated or sample.trace.finish != "length"
            ]
            weights = self.weights([sample.sampled for sample in samples], longest)
            yield [
                replace(sample, weight=weight * sample.weight) for sample, weight in zip(samples, weights, strict=True)
            ]

    def weights(self, lengths: Sequence[int], longest: int) -> list[float]:
        """The factor on the loss of every answer's tokens, relative to a mean over all sampled tokens.

        Args:
            lengths: number of sampled tokens of every answer.
            longest: the most tokens that an answer may have, the constant of `average = "constant"`.
        """
        mean = sum(lengths) / max(1, len(lengths))
        if self.average == "answers":
            return [mean / length if length else 0.0 for length in lengths]
        return [mean / longest if self.average == "constant" else 1.0] * len(lengths)

    def loss(
        self,
        logprobs: Float[Tensor, "b n"],
        batch: Batch,
        tokens: int,
        entropies: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Minus the gain of every token with the penalties of the settings, as a weighted mean over the sampled tokens
        of the whole update.

        Ratios are to `batch.old`. Where the sampler is not the scorer's exact partner, that is another distribution
        than the tokens were sampled from; `correction` multiplies the gain of every token by exp(old - behaviour), at
        most the correction, as a constant. A token that the scorer's distribution left out has no ratio and is not
        learnt from.

        Args:
            logprobs: of the policy, from `batch.score`.
            batch: a micro-batch with advantages, weights, old log-probabilities, and reference ones if `kl`.
            tokens: number of sampled tokens of the whole update, so that micro-batch losses add up to the mean.
            entropies: of the distribution that every token was sampled from, if `entropy`.

        Returns:
            The loss, and means over the sampled tokens of the update, where samples that are not computed count as 0:
            `loss`; `clip_fraction`; `kl`, the k3 estimate of the divergence from the behaviour policy; `mismatch_mean`,
            the absolute log-ratio to it, whose largest is `mismatch_max`; `reference_kl` and `entropy` if in use.
        """
        counted = batch.sampled & ~batch.old.isneginf()
        ratio = self.ratio(torch.where(counted, logprobs - batch.old, 0.0), counted, batch)
        gain, clipped = self.gain(ratio, batch)
        if not ratio.shape == gain.shape == clipped.shape == batch.sampled.shape:
            raise UserError(
                f"a ratio, a gain and what was clipped of the shape {tuple(batch.sampled.shape)}, one for every token",
                f"{tuple(ratio.shape)}, {tuple(gain.shape)}, {tuple(clipped.shape)} from {where(type(self))}",
                "see PolicyGradient.ratio and PolicyGradient.gain",
            )
        if self.correction is not None:
            gain = gain * (batch.old - batch.behaviour).exp().clamp(max=self.correction)
        more = {}
        if self.kl:
            # With the ratio as a factor the gradient of the divergence is unbiased.
            divergence = ratio * k3(torch.where(batch.sampled, batch.reference - logprobs, 0.0))
            gain = gain - self.kl * divergence
            more["reference_kl"] = divergence.sum().item() / tokens
        if self.entropy:
            assert entropies is not None
            gain = gain + self.entropy * entropies
            more["entropy"] = (entropies * batch.sampled).sum().item() / tokens
        value = -torch.where(counted, gain * batch.weights, 0.0).sum() / tokens
        metrics = {"loss": value.item(), "clip_fraction": (clipped & batch.sampled).sum().item() / tokens}
        drift = torch.where(counted & ~logprobs.isneginf(), logprobs - batch.behaviour, 0.0).detach()
        return value, {**metrics, **_drift_metrics(drift, tokens), **more}


def _drift_metrics(drift: Float[Tensor, "b n"], tokens: int) -> dict[str, float]:
    """How far the policy is from the one that tokens were sampled with, from the log-ratio of every token."""
    return {
        "kl": k3(drift).sum().item() / tokens,
        "mismatch_mean": drift.abs().sum().item() / tokens,
        "mismatch_max": drift.abs().max().item(),
    }


def clip(
    ratio: Float[Tensor, "b n"], advantages: Float[Tensor, "b n"], low: float, high: float
) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """The clipped surrogate of PPO (arXiv 1707.06347): the smaller of ratio x advantage and the same with the ratio
    kept in [1 - low, 1 + high]; and where the clip took the gradient away."""
    kept = ratio.clamp(1 - low, 1 + high)
    gain = torch.minimum(ratio * advantages, kept * advantages)
    below = (ratio < 1 - low) & (advantages < 0)
    above = (ratio > 1 + high) & (advantages > 0)
    return gain, below | above


def k3(log_ratio: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """exp(x) - 1 - x: an unbiased estimate of a divergence that is never negative. Source: Schulman, "Approximating KL
    divergence"."""
    return log_ratio.exp() - 1 - log_ratio


ALGORITHMS: Registry[type[PolicyGradient]] = Registry("algorithm")
"""Algorithms by the names that recipes use."""
A = TypeVar("A")


def algorithm(name: str) -> Callable[[A], A]:
    """Class decorator: register a subclass of `PolicyGradient` under a name that recipes can use.

    Raises:
        UserError: it is no such class, or another file has registered this name.
    """

    if not isinstance(name, str):
        raise UserError('@algorithm("name") with a name', f"{name!r:.60}", "write the name in parentheses")

    def register(definition: A) -> A:
        if not (isinstance(definition, type) and issubclass(definition, PolicyGradient)):
            raise UserError(
                f"a subclass of PolicyGradient under @algorithm('{name}')",
                repr(definition),
                "derive it from parallel_r1.training.algorithms.base.PolicyGradient",
            )
        ALGORITHMS.add(name, definition, definition)
        definition.name = name
        return definition

    return register


def from_table(table: Any, default: str) -> Any:
    """The algorithm that a table of a recipe describes, `{ name = .., settings .. }`, or its name alone; an object is
    returned unchanged.

    Args:
        default: the name if the table has none.

    Raises:
        PydanticCustomError: no algorithm has this name.
        ValidationError: a setting that the algorithm does not have, or a value out of range.
    """
    if isinstance(table, str):
        table = {"name": table}
    if not isinstance(table, dict):
        return table
    settings = dict(table)
    name = settings.pop("name", default)
    if name not in ALGORITHMS:
        advice = nearest(str(name), ALGORITHMS)
        raise PydanticCustomError(
            UNKNOWN_NAME,
            "{kind} '{name}' is not registered",
            {"kind": "algorithm", "name": str(name), "advice": advice},
        )
    return ALGORITHMS[name].model_validate(settings)
