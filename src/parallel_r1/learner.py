"""From traces to an update: micro-batches, normalisation, clipping, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from parallel_r1 import attend
from parallel_r1.batch import Batch, collate, score_with_entropy, split
from parallel_r1.config import RL, Optimizer, Stage
from parallel_r1.decoding import RAW, Decoding
from parallel_r1.errors import UserError
from parallel_r1.trace import Trace

Loss = Callable[..., tuple[Float[Tensor, ""], dict[str, float]]]
"""Is told the log-probabilities of a batch, where the stage pays for them the entropies, the batch, and the sampled
tokens of all batches of the update; gives the loss and its metrics."""
PATIENCE = 5
"""A stage ends with an error when so many updates in a row had a gradient that is not finite."""


class Learner:
    """Turns traces into updates. One place for micro-batches, normalisation, clipping and the learning rate."""

    def __init__(self, model: PreTrainedModel, stage: Stage, updates: int, shape: Decoding = RAW) -> None:
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        if self.accelerator.num_processes != 1:
            raise UserError(
                "one process",
                f"{self.accelerator.num_processes} processes",
                "start the command without torchrun or accelerate launch",
            )
        self.stage, self.shape = stage, shape
        if stage.recompute:
            attend.recompute(model)
        else:
            model.activation_checkpointing_disable()
        self.entropy = isinstance(stage, RL) and stage.grpo.entropy > 0
        self.regularised = isinstance(stage, RL) and (stage.grpo.entropy > 0 or stage.grpo.kl > 0)
        self.skipped = 0  # updates in a row whose gradient was not finite
        optimizer = build_optimizer(model, stage.optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(stage.optimizer, updates))
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)

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

        Returns the loss's metrics, added up over micro-batches (`*_max`: the largest).

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        stage = self.stage
        tokens = sum(len(span.token_ids) for trace in traces for span in trace.spans if span.sampled)
        advantages = columns.get("advantages", [1.0] * len(traces))
        useful = [index for index, advantage in enumerate(advantages) if advantage or self.regularised]
        totals: dict[str, float] = {}
        self.model.train()
        for _, batch in self.batches(traces, useful, columns):
            logprobs, entropies = self.score(batch)
            value, metrics = loss(logprobs, batch, tokens, **({} if entropies is None else {"entropies": entropies}))
            self.accelerator.backward(value)
            for key, number in metrics.items():
                before = totals.get(key, 0.0)
                totals[key] = max(before, number) if key.endswith("_max") else before + number
        self.model.eval()
        totals["lr"] = self.scheduler.get_last_lr()[0]
        if useful:
            if stage.optimizer.embeddings == "used":
                self.keep_unused_rows(traces)
            norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), stage.optimizer.clip))
            totals["gradient_norm"] = norm
            self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
            if self.skipped:
                totals["skipped"] = 1.0
                if self.skipped == PATIENCE:
                    raise FloatingPointError(f"{PATIENCE} updates in a row without one")
            else:
                self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return totals

    @torch.no_grad()
    def logprobs(self, traces: Sequence[Trace], model: PreTrainedModel | None = None) -> list[Float[Tensor, " _"]]:
        """For each trace the log-probabilities of its answer's tokens under the stage's scorer, in nats, by the model
        that learns or by another."""
        found: dict[int, Tensor] = {}
        for chosen, batch in self.batches(traces, range(len(traces))):
            found |= zip(chosen, batch.gather(self.score(batch, model)[0]), strict=True)
        return [found[index] for index in range(len(traces))]

    def batches(
        self, traces: Sequence[Trace], useful: Sequence[int], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """The useful traces in micro-batches, each with the indices of its traces."""
        stage = self.stage
        for rows in split([traces[i] for i in useful], stage.scorer, stage.micro_tokens, packing=stage.packing):
            chosen = [useful[index] for row in rows for index in row]
            of_chosen: dict[str, Any] = {
                name: [column[index] for index in chosen] for name, column in (columns or {}).items()
            }
            sizes = [len(row) for row in rows]
            batch = collate([traces[index] for index in chosen], stage.scorer, rows=sizes, **of_chosen)
            yield chosen, batch.to(self.accelerator.device)

    def score(
        self, batch: Batch, model: PreTrainedModel | None = None
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"] | None]:
        """`batch.score` of the distribution that is sampled, with the stage's precision; and where the stage pays for
        it, its entropy."""
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16"):
            return score_with_entropy(model or self.model, batch, self.shape, entropy=self.entropy)

    def state(self) -> dict[str, Any]:
        """All that an update changes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "skipped": self.skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` said."""
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        self.skipped = state["skipped"]

    def carry(self, moments: Mapping[str, Any]) -> None:
        """Go on with what `moments_of` said of another stage; the settings stay this stage's."""
        state = self.optimizer.state_dict()
        mine = {place: moments[name] for name, place in _places(state) if name in moments}
        self.optimizer.load_state_dict({**state, "state": mine})

    def keep_unused_rows(self, traces: Sequence[Trace]) -> None:
        """Drop the gradients of embedding rows whose tokens are not in the batch."""
        used = {token for trace in traces for token in (*trace.prompt_ids, *trace.token_ids)}
        for table in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            gradient = table.weight.grad
            unused = torch.ones(len(gradient), dtype=torch.bool, device=gradient.device)
            unused[list(used)] = False
            gradient[unused] = 0.0


def build_optimizer(model: PreTrainedModel, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW, whose state knows its parameters by name; embeddings, norms and biases are not decayed."""
    tables = {id(table.weight) for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    named = list(model.named_parameters())
    decayed = [(name, each) for name, each in named if each.ndim >= 2 and id(each) not in tables]
    rest = [(name, each) for name, each in named if each.ndim < 2 or id(each) in tables]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def moments_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the optimiser remembers of each parameter, by name, in a learner's state."""
    optimizer = state["optimizer"]
    return {name: optimizer["state"][place] for name, place in _places(optimizer) if place in optimizer["state"]}


def _places(optimizer: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The names of parameters with their places in an optimiser's state."""
    for group in optimizer["param_groups"]:
        yield from zip(group["param_names"], group["params"], strict=True)


def learning_rate(settings: Optimizer, updates: int) -> Callable[[int], float]:
    """The factor on the learning rate before update 0, 1, ..: a linear warm-up, then constant or half a cosine to 0."""
    warmup = round(settings.warmup * updates)

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, updates - warmup)))

    return factor
