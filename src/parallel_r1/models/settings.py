"""The settings of a recipe's model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parallel_r1.settings import Count, Section


class Architecture(Section):
    """A Qwen3 model with random weights, and a tokenizer trained on text of the recipe's first SFT stage.

    Attributes:
        hidden, intermediate: width of the hidden states and of the MLP.
        kv_heads: key-value heads, shared by the query `heads`.
        positions: the longest sequence, in tokens.
        digits: most digits of a token.
        vocabulary: tokens of the tokenizer: at least the 256 bytes and the special tokens.
    """

    hidden: Count = 128
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2
    intermediate: Count = 448
    positions: Count = 512
    digits: Annotated[int, Field(ge=1, le=3)] = 3
    vocabulary: Annotated[int, Field(ge=263)] = 512


class LoRA(Section):
    """An adapter: frozen weights, with two small trainable matrices for every targeted linear layer, and trainable
    embeddings of the tags.

    Attributes:
        rank: rank of the update of a layer.
        alpha: the update of a layer is multiplied by alpha / rank.
        targets: names of linear layers, such as "q_proj", or "all-linear": all but the head.
        quantise: how the frozen linear layers are stored: unchanged, or in 4 bits ("nf4": QLoRA).

    Source: LoRA (arXiv 2106.09685), QLoRA (arXiv 2305.14314).
    """

    rank: Count = 16
    alpha: Count = 32
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    quantise: Literal["none", "nf4"] = "none"


class Model(Section):
    """The model that a recipe starts from: a folder or hub id, or an architecture with random weights.

    Attributes:
        path: a model folder, or the name of a model on the hub.
        architecture: a model with random weights.
        format: the schema of its answers: a name, or a TOML file. A model with random weights gets the tags of this
            one, of `parallel-r1` if None; one that is loaded must have it, or any if None.
        lora: the adapter to train; if None, all weights are trained.
        adapter: a checkpoint of such an adapter to continue with; a new one if None.
    """

    path: str | None = None
    architecture: Architecture | None = None
    format: str | None = None
    lora: LoRA | None = None
    adapter: str | None = None

    @model_validator(mode="after")
    def one_source(self) -> Model:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("exactly one of path and architecture must be given")
        if self.lora is not None and self.path is None:
            raise ValueError("lora needs path: with random weights all weights must be trained")
        if self.adapter is not None and self.lora is None:
            raise ValueError("adapter needs lora: the settings that it was trained with")
        return self
