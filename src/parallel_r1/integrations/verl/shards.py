"""The weights of a learner of verl from the shards that its processes saved.

verl's own merger rounds them to bf16, which loses what small steps of training have changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from parallel_r1.errors import UserError


def merge(folder: Path) -> dict[str, Tensor]:
    """The whole weights by name, in the precision in which they learnt.

    Args:
        folder: the `actor` folder of a saved state.

    Raises:
        UserError: shards are missing, damaged, or laid out in more than one dimension.
    """
    try:
        world = json.loads((folder / "fsdp_config.json").read_text(encoding="utf-8"))["world_size"]
        files = [folder / f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
        shards = [torch.load(file, map_location="cpu", weights_only=False) for file in files]
    except Exception as error:  # zipfile, pickle and torch have exceptions of their own
        raise UserError(
            f"the shards of a saved state of verl in {folder}",
            f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]:.200}",
            "remove this state: the same command goes on from the one before",
        ) from error
    return {name: _join(name, [shard.pop(name) for shard in shards]) for name in list(shards[0])}


@torch.no_grad()
def _join(name: str, parts: Sequence[Tensor]) -> Tensor:
    """One tensor from its parts, in the order of the processes."""
    first = parts[0]
    if not isinstance(first, DTensor):
        return first
    if len(first.placements) != 1:
        raise UserError(
            "weights that are divided in one dimension",
            f"{name} in {len(first.placements)}",
            "leave actor_rollout_ref.actor.fsdp_config.fsdp_size at -1",
        )
    (placement,) = first.placements
    own = [part.to_local() for part in parts if isinstance(part, DTensor)]
    return torch.cat(own, dim=placement.dim) if isinstance(placement, Shard) else own[0]
