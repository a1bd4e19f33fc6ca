"""From samples to an update of the weights: micro-batches, gradient clipping, the learning rate."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from parallel_r1 import distributed as processes
from parallel_r1.answers.trace import Trace
from parallel_r1.generation.distribution import RAW, Decoding
from parallel_r1.models import attention as attend
from parallel_r1.models import lora as adapters
from parallel_r1.training.algorithms.base import Objective
from parallel_r1.training.batch import Batch, collate, score, score_with_entropy, split
from parallel_r1.training.optimizer import build_optimizer, learning_rate, parameter_indices
from parallel_r1.training.sample import Sample
from parallel_r1.training.settings import Stage

PATIENCE = 5
"""A stage ends with an error when this many updates in a row were skipped."""


class Scoring(torch.nn.Module):
    """`score_with_entropy` as a module: DDP and FSDP gather weights and gradients around a module's forward pass."""

    def __init__(self, model: PreTrainedModel, shape: Decoding) -> None:
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, batch: Batch, entropy: bool) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"] | None]:
        return score_with_entropy(self.model, batch, self.shape, entropy=entropy)


class Learner:
    """Updates a model from samples; the same for every algorithm.

    Every process is given all samples, computes the gradient of its part of them, and makes the same update.

    Args:
        model: the whole model in every process, on the device where it learns; changed in place. All weights learn, or
            its adapter.
        stage: the settings.
        updates: number of updates that the learning-rate schedule spans.
        shape: temperature and filters of the distribution that is scored.
        tag_ids: tokens whose rows learn at `optimizer.tags` times the rate.
        shard: give every process only a share of the learning weights. `model` is then a copy that receives the whole
            weights after every update.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stage: Stage,
        updates: int,
        shape: Decoding = RAW,
        *,
        tag_ids: Collection[int] = (),
        shard: bool = False,
    ) -> None:
        self.device = model.device
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", device_placement=False)
        self.stage, self.shape, self.model = stage, shape, model
        shard = shard and processes.count() > 1
        self.learning = copy.deepcopy(self.model) if shard else self.model
        attend.recompute(self.learning, on=stage.recompute)
        self.skipped = 0  # updates in a row that were skipped
        self.scoring: Any = Scoring(self.learning, shape)
        if shard:
            processes.divide(self.scoring, model._no_split_modules or ())
        optimizer = build_optimizer(self.learning, stage.optimizer, tag_ids)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(stage.optimizer, updates))
        self.optimizer = self.accelerator.prepare(optimizer)
        if not shard:
            self.scoring = self.accelerator.prepare(self.scoring)

    def update(self, samples: Sequence[Sample], objective: Objective) -> dict[str, float]:
        """Make one optimiser update on all samples.

        The loss is a mean over the sampled tokens of all samples, however they are cut into micro-batches. A sample
        with advantage 0 counts in that mean, but is not computed unless the objective learns without an advantage.
        Without a sample to compute, or without a sampled token, the weights stay and there is no loss to report. An
        update whose loss or gradient is not finite is skipped and reported as `skipped`.

        Returns:
            The metrics of the loss that are finite, added up over micro-batches (`*_max`: the largest).

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        tokens = sum(sample.sampled for sample in samples)
        useful = [i for i, sample in enumerate(samples) if sample.advantage or objective.learns_without_advantage]
        if not tokens:
            useful = []
        self.scoring.train()
        metrics = add_up(processes.gather([*self.backward(samples, useful, objective, tokens)]))
        self.scoring.eval()
        metrics["lr"] = float(self.scheduler.get_last_lr()[0])
        if useful:
            metrics |= self.step(samples, metrics.get("loss", 0.0))
        with warnings.catch_warnings():  # torch warns when the optimiser made no step before the scheduler's
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def backward(
        self, samples: Sequence[Sample], useful: Sequence[int], objective: Objective, tokens: int
    ) -> Iterator[dict[str, float]]:
        """Accumulate the gradient of all useful samples in the model; yields the metrics of this process's
        micro-batches."""
        mine = self.cut(samples, self.deal(samples, useful))
        rounds = max(processes.gather([len(mine)]))  # every pass synchronises all processes
        for turn in range(rounds):
            batch = self.batch(samples, mine[turn]) if turn < len(mine) else self.blank(samples, useful)
            # Gradients that every process has whole are averaged once, after the last micro-batch.
            with nullcontext() if turn == rounds - 1 else self.accelerator.no_sync(self.scoring):
                with self.precision():
                    logprobs, entropies = self.scoring(batch, "entropy" in objective.needs)
                value, metrics = objective.loss(logprobs, batch, tokens, entropies=entropies)
                # Processes average their gradients, but the parts of a loss must be added.
                self.accelerator.backward(value * processes.count())
            yield metrics

    def step(self, samples: Sequence[Sample], loss: float) -> dict[str, float]:
        """Clip the accumulated gradient and let the optimiser use it, unless the loss or the gradient is not finite.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        if self.stage.optimizer.embeddings == "used":
            self.keep_unused_rows(samples)
        clipped = self.accelerator.clip_grad_norm_(self.learning.parameters(), self.stage.optimizer.clip)
        norm = float(processes.whole(clipped))
        metrics = {"gradient_norm": norm}
        self.skipped = 0 if math.isfinite(norm) and math.isfinite(loss) else self.skipped + 1
        if self.skipped:
            metrics["skipped"] = 1.0
            if self.skipped == PATIENCE:
                raise FloatingPointError(f"{PATIENCE} updates in a row with a loss or gradient that is not finite")
        else:
            self.optimizer.step()
            self.publish()
        self.optimizer.zero_grad()
        return metrics

    @torch.no_grad()
    def logprobs(
        self, traces: Sequence[Trace], weights: Mapping[str, Tensor] | None = None
    ) -> list[Float[Tensor, " _"]]:
        """Log-probabilities of every answer's tokens under the stage's scorer, in nats, in the order of `traces`.

        Args:
            traces: prompts and answers.
            weights: score with these instead of the model's own, as `adapters.weights` returns them.
        """
        samples = [Sample(trace) for trace in traces]
        scored: list[tuple[int, Tensor]] = []
        with adapters.exchanged(self.model, weights) if weights else nullcontext():
            for rows in self.cut(samples, self.deal(samples, range(len(samples)))):
                batch = self.batch(samples, rows)
                with self.precision():
                    values = batch.gather(score(self.model, batch, self.shape))
                scored += zip(chain.from_iterable(rows), (value.cpu() for value in values), strict=True)
        by_index = dict(processes.gather(scored))
        return [by_index[index] for index in range(len(samples))]

    def deal(self, samples: Sequence[Sample], chosen: Sequence[int]) -> list[int]:
        """This process's part of the chosen samples. They are dealt out in turn, the longest first, so that all
        processes have about as much to do."""
        order = sorted(chosen, key=lambda index: -samples[index].length)
        return sorted(order[processes.rank() :: processes.count()])

    def cut(self, samples: Sequence[Sample], chosen: Sequence[int]) -> list[list[list[int]]]:
        """The chosen samples in micro-batches, which are lists of rows."""
        stage = self.stage
        traces = [samples[index].trace for index in chosen]
        cuts = split(traces, stage.scorer, stage.micro_tokens, packing=stage.packing)
        return [[[chosen[index] for index in row] for row in rows] for rows in cuts]

    def batch(self, samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> Batch:
        """A micro-batch of these rows of samples."""
        chosen = [samples[index] for index in chain.from_iterable(rows)]
        return collate(chosen, self.stage.scorer, rows=[len(row) for row in rows]).to(self.device)

    def blank(self, samples: Sequence[Sample], useful: Sequence[int]) -> Batch:
        """A micro-batch without a loss, for a process that has none left while others have."""
        shortest = min(useful, key=lambda index: samples[index].length)
        batch = self.batch(samples, [[shortest]])
        return replace(batch, sampled=torch.zeros_like(batch.sampled))

    def precision(self) -> torch.autocast:
        """The stage's precision, for a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16")

    @torch.no_grad()
    def publish(self) -> None:
        """Copy what every process learnt into the whole model."""
        for whole, part in zip(self.model.parameters(), self.learning.parameters(), strict=True):
            if part is not whole and part.requires_grad:
                whole.copy_(processes.whole(part))

    def state(self) -> dict[str, Any]:
        """All that an update changes, with whole tensors. All processes must call it."""
        optimizer = self.optimizer.state_dict()
        moments = {
            index: {name: processes.whole(value).cpu() for name, value in values.items()}
            for index, values in optimizer["state"].items()
        }
        return {
            "model": {name: weight.detach() for name, weight in adapters.learning(self.model).items()},
            "optimizer": {**optimizer, "state": moments},
            "scheduler": self.scheduler.state_dict(),
            "skipped": self.skipped,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, in any number of processes."""
        adapters.set_weights(self.model, state["model"])
        for whole, part in zip(self.model.parameters(), self.learning.parameters(), strict=True):
            if part is not whole:
                part.copy_(processes.like(whole, part))
        self.optimizer.load_state_dict(self.divided(state["optimizer"]))
        self.scheduler.load_state_dict(state["scheduler"])
        self.skipped = state["skipped"]

    def carry(self, moments: Mapping[str, Any]) -> None:
        """Start with the moments of another stage, as `moments_of` returned them; the settings stay this stage's."""
        state = self.optimizer.state_dict()
        mine = {index: moments[name] for name, index in parameter_indices(state) if name in moments}
        self.optimizer.load_state_dict(self.divided({**state, "state": mine}))

    def divided(self, optimizer: Mapping[str, Any]) -> dict[str, Any]:
        """The state of an optimiser with whole moments, divided as the parameters are."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {name: processes.like(value, parameters[index]) for name, value in values.items()}
            for index, values in optimizer["state"].items()
        }
        return {**optimizer, "state": moments}

    @torch.no_grad()
    def keep_unused_rows(self, samples: Sequence[Sample]) -> None:
        """Set to 0 the gradients of embedding rows whose tokens are not in the samples."""
        used = {token for s in samples for token in (*s.trace.prompt_ids, *s.trace.token_ids)}
        for rows, tokens in adapters.embedding_rows(self.learning):
            assert rows.grad is not None
            unused = ~torch.isin(tokens, torch.tensor(sorted(used), device=tokens.device))
            processes.own(rows.grad)[processes.own(processes.like(unused, rows.grad))] = 0.0


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Combine the metrics of micro-batches into one: the maximum of every `*_max`, the sum of all others."""
    totals: dict[str, float] = {}
    for metrics in parts:
        for key, number in metrics.items():
            before = totals.get(key, 0.0)
            totals[key] = max(before, number) if key.endswith("_max") else before + number
    return totals
