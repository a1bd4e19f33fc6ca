"""Published figures of GPUs, and the assumptions that turn them into times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from parallel_r1.errors import UserError, nearest
from parallel_r1.settings import Count, Section

S = TypeVar("S", bound=Section)
NODE = 8
"""GPUs of a node: within it they are joined by NVLink, beyond it by the network."""


@dataclass(frozen=True)
class GPU:
    """Published figures of a GPU; nothing here was measured by us.

    Attributes:
        flops: arithmetic operations a second, dense bf16.
        bandwidth: of its memory, bytes a second.
        memory: bytes.
        link: bandwidth of NVLink, bytes a second, both directions together.
        network: bandwidth of its share of the network, bytes a second in one direction.
        sources: where the figures stand.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    link: float
    network: float
    sources: tuple[str, ...]


NETWORK = "network: one 400 Gb/s InfiniBand (NDR) port per GPU, as in NVIDIA's reference design of 8-GPU servers"
GPUS = {
    "h100": GPU(
        "h100",
        989e12,
        3.35e12,
        80e9,
        900e9,
        50e9,
        ("NVIDIA H100 SXM data sheet: 989 TFLOP/s dense bf16, 3.35 TB/s, 80 GB, NVLink 900 GB/s", NETWORK),
    ),
    "h200": GPU(
        "h200",
        989e12,
        4.8e12,
        141e9,
        900e9,
        50e9,
        ("NVIDIA H200 SXM data sheet: 989 TFLOP/s dense bf16, 4.8 TB/s, 141 GB, NVLink 900 GB/s", NETWORK),
    ),
}


def find_gpu(name: str) -> GPU:
    """The GPU of a name, in upper or lower case.

    Raises:
        UserError: there is none.
    """
    if name.lower() not in GPUS:
        raise UserError(f"--gpu one of {', '.join(GPUS)}", f"'{name}'", nearest(name.lower(), GPUS))
    return GPUS[name.lower()]


Efficiency = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


class Assumptions(Section):
    """What the simulation takes for granted beside the data sheet. None of it was measured by us; every value can be
    changed by `--assume name=value`, and `parallel-r1 plan --check` compares the model with a measurement.

    Attributes:
        decode_bandwidth: share of the memory's bandwidth that a decode step reaches.
        decode_arithmetic: share of the arithmetic that a decode step with many rows reaches.
        prefill_arithmetic: the same while a server reads prompts and paths.
        score_arithmetic: the same while answers are scored before the update.
        train_arithmetic: the same in the update (MFU).
        step_overhead: seconds of a decode step beside reading and arithmetic: scheduling and launches.
        row_overhead: seconds of a decode step per row: sampling and the books of a call.
        link_share: share of NVLink's bandwidth in one direction, and of the network's, that a collective reaches.
        parallel_share: share of the speed that is left where a server spans several GPUs.
        memory_share: share of a GPU's memory that may be used.
        sync_overhead: seconds to hand weights to the servers beside moving the bytes.
        step_fixed: seconds of a step for everything else: verdicts, rewards, moving data, logs.
        weight_bytes: bytes of a weight in training: 4 is fp32, as in our recipes.
        gpus_per_server: GPUs of a server that draws; 1 unless the model needs more.
    """

    decode_bandwidth: Efficiency = 0.7
    decode_arithmetic: Efficiency = 0.6
    prefill_arithmetic: Efficiency = 0.5
    score_arithmetic: Efficiency = 0.4
    train_arithmetic: Efficiency = 0.35
    step_overhead: Seconds = 0.004
    row_overhead: Seconds = 1e-5
    link_share: Efficiency = 0.7
    parallel_share: Efficiency = 0.8
    memory_share: Efficiency = 0.9
    sync_overhead: Seconds = 2.0
    step_fixed: Seconds = 5.0
    weight_bytes: Count = 4
    gpus_per_server: Count = 1

    def scaled(self, factor: float) -> Assumptions:
        """The same with all efficiencies multiplied by a factor, at most 1, and all overheads divided by it."""
        shares = {name: min(1.0, factor * getattr(self, name)) for name in EFFICIENCIES}
        return self.model_copy(update=shares | {name: getattr(self, name) / factor for name in OVERHEADS})


EFFICIENCIES = (
    "decode_bandwidth",
    "decode_arithmetic",
    "prefill_arithmetic",
    "score_arithmetic",
    "train_arithmetic",
    "link_share",
    "parallel_share",
)
OVERHEADS = ("step_overhead", "row_overhead", "sync_overhead", "step_fixed")
"""The assumptions that are shares of a published figure, and those that are seconds."""


REASONS = {
    "decode_bandwidth": "assumed: share of the data sheet's bandwidth in a decode step",
    "decode_arithmetic": "assumed: share of the data sheet's FLOP/s in a decode step",
    "prefill_arithmetic": "assumed: the same while prompts and paths are read",
    "score_arithmetic": "assumed: the same while answers are scored",
    "train_arithmetic": "assumed: MFU of the update",
    "step_overhead": "assumed, with CUDA graphs; our own engine without them: docs/performance.md, One GPU",
    "row_overhead": "assumed: seconds a row for sampling and bookkeeping",
    "link_share": "assumed: share of a link's bandwidth in one direction that a collective reaches",
    "parallel_share": "assumed: speed left where a server spans several GPUs",
    "memory_share": "assumed: the rest is for the allocator and the libraries",
    "sync_overhead": "assumed: seconds to hand over weights, beside the bytes",
    "step_fixed": "assumed: verdicts, rewards, data, logs of a step",
    "weight_bytes": "our recipes: fp32 weights, gradients and moments",
    "gpus_per_server": "a choice: servers of one GPU need no tensor parallelism",
}
"""Name of an assumption -> where its default comes from."""


def assume(changes: Sequence[str]) -> Assumptions:
    """The assumptions with the user's changes.

    Args:
        changes: such as "train_arithmetic=0.4".

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    return parse_pairs(Assumptions, "--assume", changes)


def parse_pairs(section: type[S], option: str, changes: Sequence[str]) -> S:
    """A section from texts `name=value`, several of which may stand in one text, divided by commas.

    Raises:
        UserError: a text of another form, an unknown name, or a value out of range.
    """
    values: dict[str, str] = {}
    for pair in (pair for text in changes for pair in text.split(",")):
        name, sign, value = (part.strip() for part in pair.partition("="))
        if not sign:
            raise UserError(f"{option} NAME=VALUE", f"'{pair}'", f"names: {', '.join(section.model_fields)}")
        if name not in section.model_fields:
            raise UserError(f"a name that {option} knows", f"'{name}'", nearest(name, section.model_fields))
        values[name] = value
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "values"
        raise UserError(f"a valid {option} {name}", f"{first['input']!r}", first["msg"]) from error
