"""Several processes that work on one run: which of them this is, its part of the work, what all of them know.

Every process runs the same program on the same data and knows all that was drawn and earned. Only what costs time is
divided: answers that are drawn, micro-batches that are learnt from and, where a recipe asks for it, the weights that
learn. One process is the case in which nothing is divided; nothing here then does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

P = ParamSpec("P")
T = TypeVar("T")


def start(asked: int) -> None:
    """Join the other processes that a launcher such as torchrun started.

    Raises:
        UserError: they are not as many as was asked for.
    """
    import torch
    from accelerate import PartialState

    found = PartialState(cpu=not torch.cuda.is_available()).num_processes
    if found != asked:
        way = f"`torchrun --nproc_per_node {asked} -m parallel_r1 ..` starts {asked}" if asked > 1 else "leave torchrun"
        raise UserError(
            f"{asked} process{'es' if asked > 1 else ''}, as processes.count or --processes asks",
            f"{found}",
            f"{way}, or ask for {found}",
        )


def rank() -> int:
    """Which of the processes this is, from 0."""
    import torch.distributed as distributed

    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    import torch.distributed as distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of what is to be done: neighbours, so that `gather` brings results back in order."""
    return items[len(items) * rank() // count() : len(items) * (rank() + 1) // count()]


def gather(items: Sequence[T]) -> list[T]:
    """What all processes have, in their order. Every process must ask for it."""
    if count() == 1:
        return list(items)
    import torch.distributed as distributed

    parts: list[Any] = [None] * count()
    distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Let the first process alone do something. The others wait for it and get what it got, a mistake included."""

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        if count() == 1:
            return function(*arguments, **named)
        told: list[tuple[Any, UserError | None]] = []
        if is_first():
            try:
                told.append((function(*arguments, **named), None))
            except UserError as error:
                told.append((None, error))
        ((result, mistake),) = gather(told)
        if mistake is not None:
            raise mistake
        return result

    return call


def divide(module: Module, layers: Collection[str]) -> None:
    """Let every process keep its share of each parameter only, with its gradient and moments (FSDP2). Whole weights
    exist while a layer computes.

    Args:
        module: with the same weights in every process; its forward pass is what is to be called.
        layers: names of the classes of its layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(module.parameters()).device.type, (count(),))
    for each in [each for each in module.modules() if type(each).__name__ in layers]:
        fully_shard(each, mesh=mesh)
    fully_shard(module, mesh=mesh)


def whole(values: Tensor) -> Tensor:
    """All of a tensor of which this process may have a share. Every process must ask for it."""
    from torch.distributed.tensor import DTensor

    return values.full_tensor() if isinstance(values, DTensor) else values


def like(values: Tensor, other: Tensor) -> Tensor:
    """A tensor that every process has whole, divided as another tensor with as many rows is, if that is divided."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor) or values.ndim == 0:
        return values
    return distribute_tensor(values.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def own(values: Tensor) -> Tensor:
    """The share of a tensor that this process has; all of it if it is not divided. Writing there changes the tensor."""
    from torch.distributed.tensor import DTensor

    return values.to_local() if isinstance(values, DTensor) else values
