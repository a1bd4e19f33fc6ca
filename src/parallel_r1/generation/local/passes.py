"""A step of the local engine: one token on every one of n branches, whose logits are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from parallel_r1.generation.local.kv_pool import Branch, Pool


@dataclass(frozen=True)
class Layer:
    """Attention settings of one layer.

    Attributes:
        index: number of the layer in the model.
        scale: factor by which scores are multiplied.
        window: size of its sliding window, in positions; None without one.
        softcap: c for scores c tanh(score / c); None without one.
    """

    index: int
    scale: float
    window: int | None
    softcap: float | None


@dataclass
class Step:
    """One token on every one of n branches.

    Attributes:
        pool: where their keys and values are.
        branches: the branches.
        tokens, blocks, places, positions: the tokens, and where they are stored.
        cache: tables and masks that attention computes once for all layers (with the same window).
    """

    pool: Pool
    branches: Sequence[Branch]
    tokens: Int[Tensor, " n"]
    blocks: Int[Tensor, " n"]
    places: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
