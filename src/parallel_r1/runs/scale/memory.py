"""Memory of a GPU while a stage draws and while it learns, and what of it is left for keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parallel_r1.generation.local.capacity import parse_bytes
from parallel_r1.runs.estimate import NUMBER
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.scale.hardware import GPU, Assumptions
from parallel_r1.runs.scale.model import Shape
from parallel_r1.training.batch import LOGITS
from parallel_r1.training.settings import RL

Activations = Callable[[int, bool, bool], int]
"""(tokens, half, recompute) -> bytes, as in `runs.activations.activation_bytes`."""


@dataclass(frozen=True)
class Layout:
    """How the GPUs are used.

    Attributes:
        gpus: all of them.
        drawing, learning: GPUs that draw and GPUs that learn: all and all if they take turns (colocated), else parts
            that work at the same time (separate).
        separate: whether they are parts.
    """

    gpus: int
    drawing: int
    learning: int
    separate: bool


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU by part. Sharded parts (FSDP) are divided by the GPUs that learn.

    Attributes:
        weights, gradients, moments, reference: of the policy in training, sharded.
        gathered: weights in bf16 of the two layers and the embedding table that are whole at a time.
        activations, logits: of the largest micro-batch.
        server: weights in bf16 of the server that draws.
        cache: keys and values that fit beside them, within the recipe's limit.
        drawing: bytes at the peak of drawing, on a GPU that draws.
        learning: bytes at the peak of learning, on a GPU that learns.
        limit: bytes that may be used.
        tokens: tokens whose keys and values a server of all its GPUs can hold.
    """

    weights: int
    gradients: int
    moments: int
    reference: int
    gathered: int
    activations: int
    logits: int
    server: int
    cache: int
    drawing: int
    learning: int
    limit: int
    tokens: int

    @property
    def peak(self) -> int:
        """The larger of drawing and learning."""
        return max(self.drawing, self.learning)


@dataclass(frozen=True)
class Needs:
    """What the memory of a stage depends on, beside the number of GPUs.

    Attributes:
        longest: tokens of the longest answer with its prompt.
        row: tokens of the largest micro-batch.
        activations: bytes of its activations.
    """

    recipe: Recipe
    stage: RL
    shape: Shape
    gpu: GPU
    assumed: Assumptions
    longest: int
    row: int
    activations: int


def needs_of(
    recipe: Recipe, stage: RL, shape: Shape, gpu: GPU, assumed: Assumptions, prompt: int, activations: Activations
) -> Needs:
    """The needs of a stage whose longest prompt has `prompt` tokens."""
    budget = stage.sampling.budget.total
    row = max(stage.micro_tokens, prompt + budget * (2 if scores_copies(stage) else 1))
    return Needs(
        *(recipe, stage, shape, gpu, assumed),
        longest=prompt + budget,
        row=row,
        activations=activations(row, stage.precision == "bf16", stage.recompute),
    )


def scores_copies(stage: RL) -> bool:
    """Whether the paths are read a second time where an answer is scored: under `replay`, and for a stage that verl
    draws with `causal_join` in place of `isolated`."""
    return stage.sampling.opens_forks and (stage.scorer == "replay" or (stage.is_exact and stage.scorer == "isolated"))


def memory(needs: Needs, layout: Layout) -> Memory:
    """The memory of a GPU under a layout."""
    shape, stage, assumed, number = needs.shape, needs.stage, needs.assumed, needs.assumed.weight_bytes
    whole, learnt = (number * size // layout.learning for size in (shape.parameters, shape.learning))
    reference = learnt if "reference" in stage.algorithm.needs else 0
    table = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    gathered = 2 * (2 * (shape.parameters - table) // shape.layers + table)
    logits = 5 * NUMBER * min(LOGITS, needs.row * shape.vocabulary)
    resident = whole + 2 * learnt + reference
    server = 2 * shape.parameters // assumed.gpus_per_server
    limit = int(assumed.memory_share * needs.gpu.memory)
    beside = server + (0 if layout.separate else resident)
    cache = max(0, _cache_limit(needs, limit - beside, beside))
    return Memory(
        weights=whole,
        gradients=learnt,
        moments=2 * learnt,
        reference=reference,
        gathered=gathered,
        activations=needs.activations,
        logits=logits,
        server=server,
        cache=cache,
        drawing=beside + cache,
        learning=resident + learnt + gathered + needs.activations + logits,
        limit=limit,
        tokens=cache * assumed.gpus_per_server // shape.token_bytes,
    )


def _cache_limit(needs: Needs, room: int, beside: int) -> int:
    """Bytes of keys and values on a GPU: what is left, within `engine.memory`, which counts for a server."""
    asked, count = needs.recipe.engine.memory, needs.assumed.gpus_per_server
    if asked is None:
        return room
    if isinstance(asked, int):
        return min(room, asked * needs.shape.token_bytes // count)
    fixed = parse_bytes(asked)
    if fixed is None:
        return min(room, int(float(asked.rstrip(" %")) / 100 * needs.gpu.memory) - beside)
    return min(room, fixed // count)


def shortage(needs: Needs, at: Memory) -> str | None:
    """What does not fit, in words with what to lower; None if all does."""
    if at.learning > at.limit:
        gigabytes = f"learning needs {at.learning / 1e9:.1f} of {at.limit / 1e9:.1f} GB a GPU"
        if at.activations + at.logits + at.gathered > at.limit // 2:
            advice = "lower micro_tokens or sampling.budget" + (
                "" if needs.stage.recompute else ", set recompute = true"
            )
            return f"{gigabytes}; {advice}"
        return f"{gigabytes}; use more GPUs, or lower micro_tokens"
    if at.tokens < needs.longest:
        found = f"a server holds {at.tokens:,} tokens of keys and values, an answer has up to {needs.longest:,}"
        return f"{found}; use more GPUs, raise --assume gpus_per_server or engine.memory, or lower sampling.budget"
    return None


def fits_from(needs: Needs, layout_of: Callable[[int], Layout | None]) -> int | None:
    """The smallest power of two of GPUs, up to 65,536, on which a stage fits; None if there is none.

    Args:
        layout_of: number of GPUs -> their layout; None if they cannot be divided so.
    """
    for power in range(17):
        layout = layout_of(2**power)
        if layout is not None and shortage(needs, memory(needs, layout)) is None:
            return 2**power
    return None


def to_json(at: Memory) -> dict[str, Any]:
    """The parts in bytes, and the peak."""
    return {**vars(at), "peak": at.peak}
