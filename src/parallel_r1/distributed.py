"""Several processes that work on one run, started by a launcher such as torchrun.

Every process runs the same program on the same data, and has the answers and rewards of all of them. Only the expensive
work is divided: generating answers, the micro-batches of an update and, where a recipe asks for it, the weights that
learn. In a single process every function here does nothing, or returns its argument.
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


def start(wanted: int, device: str = "auto") -> None:
    """Join the other processes that a launcher such as torchrun started.

    Args:
        wanted: number of processes that the recipe or the command line asks for.
        device: where they work; see `models.load`.

    Raises:
        UserError: the launcher started another number of processes.
    """
    import torch
    from accelerate import PartialState

    started = PartialState(cpu=device == "cpu" or not torch.cuda.is_available()).num_processes
    if started != wanted:
        torchrun = f"`torchrun --nproc_per_node {wanted} -m parallel_r1 ..`"
        launch = f"{torchrun} starts {wanted}" if wanted > 1 else "leave torchrun"
        raise UserError(
            f"{wanted} process{'es' if wanted > 1 else ''}, as processes.count or --processes asks",
            f"{started}",
            f"{launch}, or ask for {started}",
        )


def rank() -> int:
    """Index of this process, from 0."""
    import torch.distributed as distributed

    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    import torch.distributed as distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is process 0, which alone writes and prints."""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items: a contiguous slice, so that `gather` returns the results in order."""
    return items[len(items) * rank() // count() : len(items) * (rank() + 1) // count()]


def gather(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of their ranks. A collective call: every process must make it."""
    if count() == 1:
        return list(items)
    import torch.distributed as distributed

    parts: list[Any] = [None] * count()
    distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: only process 0 calls the function. The others wait, and return its result or raise its `UserError`."""

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        if count() == 1:
            return function(*arguments, **named)
        outcomes: list[tuple[Any, UserError | None]] = []
        if is_first():
            try:
                outcomes.append((function(*arguments, **named), None))
            except UserError as error:
                outcomes.append((None, error))
        ((result, mistake),) = gather(outcomes)
        if mistake is not None:
            raise mistake
        return result

    return call


def divide(module: Module, layers: Collection[str]) -> None:
    """Shard the parameters of a module over the processes, with their gradients and moments (FSDP2). The whole weights
    of a layer exist only while it computes.

    Args:
        module: has the same weights in every process; it must be called through its own forward pass.
        layers: class names of its layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(module.parameters()).device.type, (count(),))
    for layer in [layer for layer in module.modules() if type(layer).__name__ in layers]:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def whole(values: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. A collective call: every process must make it."""
    from torch.distributed.tensor import DTensor

    return values.full_tensor() if isinstance(values, DTensor) else values


def like(values: Tensor, other: Tensor) -> Tensor:
    """Shard a tensor, whole in every process, as another tensor with as many rows is sharded; unchanged if that one is
    whole, or if `values` is a scalar."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor) or values.ndim == 0:
        return values
    return distribute_tensor(values.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def own(values: Tensor) -> Tensor:
    """This process's shard of a tensor; all of it if it is not sharded. Writing to the result changes the tensor."""
    from torch.distributed.tensor import DTensor

    return values.to_local() if isinstance(values, DTensor) else values
