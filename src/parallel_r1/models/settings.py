"""What a recipe may say of its model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parallel_r1.settings import Count, Section


class Architecture(Section):
    """A Qwen3 model with random weights and a tokenizer trained on the tasks' own text."""

    hidden: Count = 128
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2
    intermediate: Count = 448
    positions: Count = 512
    vocabulary: Annotated[int, Field(ge=263)] = 512


class LoRA(Section):
    """A LoRA adapter, trained beside frozen weights: two small matrices per linear layer, and the rows of the six tags.

    Attributes:
        rank: rank of the product of the two matrices.
        alpha: the adapter's output is multiplied by alpha / rank.
        targets: names of linear layers, such as "q_proj", or "all-linear": all but the head.
        quantise: how the frozen linear layers are held: as they are, or in 4 bits ("nf4": QLoRA).

    Source: LoRA (arXiv 2106.09685), QLoRA (arXiv 2305.14314).
    """

    rank: Count = 16
    alpha: Count = 32
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    quantise: Literal["none", "nf4"] = "none"


class Model(Section):
    """Where the policy comes from: a folder or hub id, or an architecture to start from nothing.

    Attributes:
        lora: what learns beside frozen weights; all weights learn if None.
    """

    path: str | None = None
    architecture: Architecture | None = None
    lora: LoRA | None = None

    @model_validator(mode="after")
    def one_source(self) -> Model:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("exactly one of path and architecture must be given")
        if self.lora is not None and self.path is None:
            raise ValueError("lora needs path: random weights must learn themselves")
        return self
