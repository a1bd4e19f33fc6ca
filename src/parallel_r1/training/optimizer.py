"""AdamW, the rate it learns at, and what it remembers."""

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
    """AdamW, whose state knows its parameters by name; embeddings, norms and biases are not decayed, and the rows of
    some tokens have a rate of their own."""
    tables = adapters.embedding_rows(model)
    named, rows = list(adapters.learning(model).items()), {id(each) for each, _ in tables}
    decayed = [(name, each) for name, each in named if each.ndim >= 2 and id(each) not in rows]
    rest = [(name, each) for name, each in named if each.ndim < 2 or id(each) in rows]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    # One kernel for all. On a CPU it changes last bits and saves too little to count.
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=torch.cuda.is_available())
    for table, tokens in tables if settings.tags != 1 else ():
        chosen = torch.isin(tokens, torch.tensor(sorted(tag_ids), device=tokens.device))
        optimizer.register_step_post_hook(partial(_hasten, rows=table, chosen=chosen, factor=settings.tags))
    return optimizer


@torch.no_grad()
def _hasten(
    optimizer: torch.optim.Optimizer,
    arguments: Any,
    keywords: Any,
    *,
    rows: torch.nn.Parameter,
    chosen: Bool[Tensor, " r"],
    factor: float,
) -> None:
    """After a step of AdamW without decay, let some rows go on to where `factor` times the learning rate had led. To
    scale their gradients would not do it: Adam divides by their size."""
    settings, state = optimizer.param_groups[1], optimizer.state[rows]
    (first, second), step = settings["betas"], float(state["step"])
    mine = processes.own(processes.like(chosen, rows))
    mean = processes.own(state["exp_avg"])[mine] / (1 - first**step)
    square = processes.own(state["exp_avg_sq"])[mine] / (1 - second**step)
    processes.own(rows)[mine] -= (factor - 1) * settings["lr"] * mean / (square.sqrt() + settings["eps"])


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
