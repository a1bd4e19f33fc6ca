"""AdamW, its learning rate and its moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel

from parallel_r1 import distributed as processes
from parallel_r1.models import lora as adapters
from parallel_r1.training.settings import Optimizer


def build_optimizer(model: PreTrainedModel, settings: Optimizer, tag_ids: Collection[int] = ()) -> torch.optim.AdamW:
    """AdamW whose state has the parameters' names. Embeddings, norms and biases have no weight decay, and the rows of
    `tag_ids` learn at `settings.tags` times the rate."""
    decayed, rest = divide(model)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    # One kernel for all parameters. On a CPU it would change the last bits of results and save little.
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=torch.cuda.is_available())
    for table, tokens in adapters.embedding_rows(model) if settings.tags != 1 else ():
        chosen = torch.isin(tokens, torch.tensor(sorted(tag_ids), device=tokens.device))
        optimizer.register_step_post_hook(partial(_speed_up, rows=table, chosen=chosen, factor=settings.tags))
    return optimizer


Named = list[tuple[str, torch.nn.Parameter]]


def divide(model: PreTrainedModel) -> tuple[Named, Named]:
    """The weights that learn, by name: those with weight decay, and those without it, which are the embeddings, the
    head, norms and biases."""
    rows = {id(table) for table, _ in adapters.embedding_rows(model)}
    decayed, rest = Named(), Named()
    for name, weight in adapters.learning(model).items():
        (decayed if weight.ndim >= 2 and id(weight) not in rows else rest).append((name, weight))
    return decayed, rest


@torch.no_grad()
def _speed_up(
    optimizer: torch.optim.Optimizer,
    arguments: Any,
    keywords: Any,
    *,
    rows: torch.nn.Parameter,
    chosen: Bool[Tensor, " r"],
    factor: float,
) -> None:
    """After a step of AdamW without decay, move some rows on to where `factor` times the learning rate would have led.
    Scaling their gradients has no such effect: Adam divides by their size."""
    settings, state = optimizer.param_groups[1], optimizer.state[rows]
    (first, second), step = settings["betas"], float(state["step"])
    mine = processes.own(processes.like(chosen, rows))
    mean = processes.own(state["exp_avg"])[mine] / (1 - first**step)
    square = processes.own(state["exp_avg_sq"])[mine] / (1 - second**step)
    processes.own(rows)[mine] -= (factor - 1) * settings["lr"] * mean / (square.sqrt() + settings["eps"])


def moments_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The moments of every parameter, by name, in a learner's state."""
    optimizer = state["optimizer"]
    moments = optimizer["state"]
    return {name: moments[index] for name, index in parameter_indices(optimizer) if index in moments}


def parameter_indices(optimizer: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The names of the parameters with their indices in an optimiser's state."""
    for group in optimizer["param_groups"]:
        yield from zip(group["param_names"], group["params"], strict=True)


def learning_rate(settings: Optimizer, updates: int) -> Callable[[int], float]:
    """The factor on the learning rate at update 0, 1, ..: a linear warm-up, then constant or half a cosine to 0."""
    warmup = round(settings.warmup * updates)

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, updates - warmup)))

    return factor
