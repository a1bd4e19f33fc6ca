"""From traces to an update: micro-batches, normalisation, clipping, the learning rate."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from parallel_r1.training.batch import Batch, collate, score, score_with_entropy, split
from parallel_r1.training.optimizer import _places, build_optimizer, learning_rate
from parallel_r1.training.settings import RL, Stage

Loss = Callable[..., tuple[Float[Tensor, ""], dict[str, float]]]
"""Is told the log-probabilities of a batch, where the stage pays for them the entropies, the batch, and the sampled
tokens of all batches of the update; gives the loss and its metrics."""


PATIENCE = 5
"""A stage ends with an error when so many updates in a row had a gradient that is not finite."""


class Scoring(torch.nn.Module):
    """`score_with_entropy` as a module, so that what gathers weights and gradients over processes sees its pass."""

    def __init__(self, model: PreTrainedModel, shape: Decoding, entropy: bool) -> None:
        super().__init__()
        self.model, self.shape, self.entropy = model, shape, entropy

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"] | None]:
        return score_with_entropy(self.model, batch, self.shape, entropy=self.entropy)


class Learner:
    """Turns traces into updates. One place for micro-batches, normalisation, clipping and the learning rate.

    Every process is given all traces, learns from its part of them, and makes the same update.

    Args:
        model: whole in every process; it is changed in place. All of it learns, or its adapter.
        stage: how it learns.
        updates: how many there will be.
        shape: of the distribution that is scored.
        tag_ids: tokens whose rows learn at `optimizer.tags` times the rate.
        shard: whether each process learns its share of the weights only. `model` is then a copy, in which every update
            is put together.
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
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.stage, self.shape = stage, shape
        self.model = model.to(self.accelerator.device)
        shard = shard and processes.count() > 1
        self.learning = copy.deepcopy(self.model) if shard else self.model
        if stage.recompute:
            attend.recompute(self.learning)
        else:
            self.learning.activation_checkpointing_disable()
        self.regularised = isinstance(stage, RL) and (stage.grpo.entropy > 0 or stage.grpo.kl > 0)
        self.skipped = 0  # updates in a row whose gradient was not finite
        self.scoring: Any = Scoring(self.learning, shape, isinstance(stage, RL) and stage.grpo.entropy > 0)
        if shard:
            processes.divide(self.scoring, model._no_split_modules or ())
        optimizer = build_optimizer(self.learning, stage.optimizer, tag_ids)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(stage.optimizer, updates))
        self.optimizer = self.accelerator.prepare(optimizer)
        if not shard:
            self.scoring = self.accelerator.prepare(self.scoring)

    def update(self, traces: Sequence[Trace], loss: Loss, **columns: Sequence[Any]) -> dict[str, float]:
        """One optimiser update on all traces.

        The loss is a mean over the sampled tokens of the whole batch, however it is cut into micro-batches. A trace
        with advantage 0 counts in that mean; where nothing else asks for its gradient it has none and is not computed.
        A batch without any gradient changes nothing and has no loss to report. A gradient that is not finite is
        dropped and reported as `skipped`.

        Args:
            traces: what to learn from.
            loss: of a micro-batch.
            columns: what `collate` needs of each trace: `advantages`, `weights`, `old`, `reference`.

        Returns the loss's metrics that are numbers, added up over micro-batches (`*_max`: the largest).

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        stage = self.stage
        tokens = sum(len(span.token_ids) for trace in traces for span in trace.spans if span.sampled)
        advantages = columns.get("advantages", [1.0] * len(traces))
        useful = [index for index, advantage in enumerate(advantages) if advantage or self.regularised]
        self.scoring.train()
        totals = add_up(processes.gather([*self.backward(traces, useful, loss, tokens, columns)]))
        self.scoring.eval()
        totals["lr"] = float(self.scheduler.get_last_lr()[0])
        if useful:
            if stage.optimizer.embeddings == "used":
                self.keep_unused_rows(traces)
            clipped = self.accelerator.clip_grad_norm_(self.learning.parameters(), stage.optimizer.clip)
            norm = float(processes.whole(clipped))
            totals["gradient_norm"] = norm
            self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
            if self.skipped:
                totals["skipped"] = 1.0
                if self.skipped == PATIENCE:
                    raise FloatingPointError(f"{PATIENCE} updates in a row without one")
            else:
                self.optimizer.step()
                self.publish()
            self.optimizer.zero_grad()
        with warnings.catch_warnings():  # torch takes an update that was left out for a mistake
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()
        return {name: value for name, value in totals.items() if math.isfinite(value)}

    def backward(
        self,
        traces: Sequence[Trace],
        useful: Sequence[int],
        loss: Loss,
        tokens: int,
        columns: Mapping[str, Sequence[Any]],
    ) -> Iterator[dict[str, float]]:
        """Leave the gradient of all useful traces in the model; the metrics of this process's micro-batches."""
        mine = self.cut(traces, self.deal(traces, useful))
        rounds = max(processes.gather([len(mine)]))  # processes wait for each other in every pass
        for turn in range(rounds):
            batch = self.batch(traces, mine[turn], columns) if turn < len(mine) else self.blank(traces, useful, columns)
            # Gradients that every process has whole are put together once, after the last micro-batch.
            with nullcontext() if turn == rounds - 1 else self.accelerator.no_sync(self.scoring):
                with self.precision():
                    logprobs, entropies = self.scoring(batch)
                more = {} if entropies is None else {"entropies": entropies}
                value, metrics = loss(logprobs, batch, tokens, **more)
                # The mean over processes is taken, but the parts of a loss are to be added.
                self.accelerator.backward(value * processes.count())
            yield metrics

    @torch.no_grad()
    def logprobs(
        self, traces: Sequence[Trace], weights: Mapping[str, Tensor] | None = None
    ) -> list[Float[Tensor, " _"]]:
        """For each trace the log-probabilities of its answer's tokens under the stage's scorer, in nats, by the model
        as it is or with other weights, as `adapters.weights` gives them."""
        found: list[tuple[int, Tensor]] = []
        with adapters.exchanged(self.model, weights) if weights else nullcontext():
            for rows in self.cut(traces, self.deal(traces, range(len(traces)))):
                batch = self.batch(traces, rows)
                with self.precision():
                    scored = score(self.model, batch, self.shape)
                found += zip(chain.from_iterable(rows), (each.cpu() for each in batch.gather(scored)), strict=True)
        known = dict(processes.gather(found))
        return [known[index] for index in range(len(traces))]

    def deal(self, traces: Sequence[Trace], chosen: Sequence[int]) -> list[int]:
        """Those of the chosen traces that are this process's: the longest go to one after the other, and so on, so that
        all have about as much to do."""
        order = sorted(chosen, key=lambda index: -length(traces[index]))
        return sorted(order[processes.rank() :: processes.count()])

    def cut(self, traces: Sequence[Trace], chosen: Sequence[int]) -> list[list[list[int]]]:
        """The chosen traces in micro-batches, each a list of rows."""
        stage = self.stage
        cuts = split([traces[i] for i in chosen], stage.scorer, stage.micro_tokens, packing=stage.packing)
        return [[[chosen[index] for index in row] for row in rows] for rows in cuts]

    def batch(
        self,
        traces: Sequence[Trace],
        rows: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Batch:
        """A micro-batch of these rows of traces."""
        chosen = list(chain.from_iterable(rows))
        of_chosen: dict[str, Any] = {name: [each[index] for index in chosen] for name, each in (columns or {}).items()}
        sizes = [len(row) for row in rows]
        batch = collate([traces[index] for index in chosen], self.stage.scorer, rows=sizes, **of_chosen)
        return batch.to(self.accelerator.device)

    def blank(self, traces: Sequence[Trace], useful: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> Batch:
        """A micro-batch that nothing is learnt from, for a process that has no more of its own while others have."""
        shortest = min(useful, key=lambda index: length(traces[index]))
        batch = self.batch(traces, [[shortest]], columns)
        return replace(batch, sampled=torch.zeros_like(batch.sampled))

    def precision(self) -> torch.autocast:
        """The stage's, for a forward pass."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16")

    @torch.no_grad()
    def publish(self) -> None:
        """Put together in the whole model what each process learnt of it."""
        for whole, part in zip(self.model.parameters(), self.learning.parameters(), strict=True):
            if part is not whole and part.requires_grad:
                whole.copy_(processes.whole(part))

    def state(self) -> dict[str, Any]:
        """All that an update changes, whole, whichever process asks; all must."""
        optimizer = self.optimizer.state_dict()
        moments = {
            index: {name: processes.whole(value).cpu() for name, value in each.items()}
            for index, each in optimizer["state"].items()
        }
        return {
            "model": {name: weight.detach() for name, weight in adapters.learning(self.model).items()},
            "optimizer": {**optimizer, "state": moments},
            "scheduler": self.scheduler.state_dict(),
            "skipped": self.skipped,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` said, in whatever number of processes."""
        adapters.set_weights(self.model, state["model"])
        for whole, part in zip(self.model.parameters(), self.learning.parameters(), strict=True):
            if part is not whole:
                part.copy_(processes.like(whole, part))
        self.optimizer.load_state_dict(self.divided(state["optimizer"]))
        self.scheduler.load_state_dict(state["scheduler"])
        self.skipped = state["skipped"]

    def carry(self, moments: Mapping[str, Any]) -> None:
        """Go on with what `moments_of` said of another stage; the settings stay this stage's."""
        state = self.optimizer.state_dict()
        mine = {place: moments[name] for name, place in _places(state) if name in moments}
        self.optimizer.load_state_dict(self.divided({**state, "state": mine}))

    def divided(self, optimizer: Mapping[str, Any]) -> dict[str, Any]:
        """The state of an optimiser with whole moments, divided as the parameters are."""
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        moments = {
            place: {name: processes.like(value, parameters[place]) for name, value in each.items()}
            for place, each in optimizer["state"].items()
        }
        return {**optimizer, "state": moments}

    @torch.no_grad()
    def keep_unused_rows(self, traces: Sequence[Trace]) -> None:
        """Drop the gradients of embedding rows whose tokens are not in the batch."""
        used = {token for trace in traces for token in (*trace.prompt_ids, *trace.token_ids)}
        for rows, tokens in adapters.embedding_rows(self.learning):
            assert rows.grad is not None
            unused = ~torch.isin(tokens, torch.tensor(sorted(used), device=tokens.device))
            processes.own(rows.grad)[processes.own(processes.like(unused, rows.grad))] = 0.0


def length(trace: Trace) -> int:
    """Tokens of a prompt and its answer."""
    return len(trace.prompt_ids) + len(trace.token_ids)


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of a batch from those of its parts: sums, and of `*_max` the largest."""
    totals: dict[str, float] = {}
    for metrics in parts:
        for key, number in metrics.items():
            before = totals.get(key, 0.0)
            totals[key] = max(before, number) if key.endswith("_max") else before + number
    return totals
