"""The sizes of a model that its costs depend on, read from its configuration without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from parallel_r1.errors import UserError
from parallel_r1.generation.local.capacity import token_bytes
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import parameter_count
from parallel_r1.runs.estimate import build
from parallel_r1.runs.recipe import Recipe


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        parameters: number of weights; tied ones count once.
        learning: number of weights that learn: all, or those of an adapter.
        layers, hidden, heads, kv_heads, head: the architecture; `head` is the size of a head.
        vocabulary: rows of the embedding table.
        tied: whether the head's weights are those of the embedding table.
        token_bytes: bytes of the keys and values of one token in bf16.
    """

    parameters: int
    learning: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool
    token_bytes: int

    @property
    def token_flops(self) -> float:
        """Arithmetic operations of one token in a forward pass, without attention: 2 for every weight that is
        multiplied. An embedding table that is not the head too is only looked up."""
        looked_up = 0 if self.tied else self.vocabulary * self.hidden
        return 2.0 * (self.parameters - looked_up)

    @property
    def attention_flops(self) -> float:
        """Arithmetic operations of one token's attention to one token, over all layers."""
        return 4.0 * self.layers * self.heads * self.head


@contextmanager
def fake_model(recipe: Recipe, config: Path | None) -> Iterator[PreTrainedModel]:
    """The recipe's model with tensors that have no memory.

    Args:
        config: a config.json, or a folder with one, that takes the place of the recipe's model.

    Raises:
        UserError: the configuration cannot be read.
    """
    if config is not None:
        if not config.exists():
            raise UserError("a config.json for --model-config, or a folder with one", f"no {config}", "give another")
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"path": str(config), "architecture": None})}
        )
    with FakeTensorMode():
        try:
            model = build(recipe)
        except (OSError, ValueError, KeyError) as error:
            where = f"{config}" if config else f"{recipe.model.path}"
            raise UserError(
                "the configuration of a model",
                f"none that can be read at {where} ({str(error).splitlines()[0]:.120})",
                "give --model-config FILE, a config.json (docs/scale.md has an example), or a model folder by "
                "--set model.path=FOLDER",
            ) from error
        yield model


def shape_of(model: PreTrainedModel, recipe: Recipe) -> Shape:
    """The sizes of a model, and of the adapter that the recipe trains."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    parameters = parameter_count(model)
    return Shape(
        parameters=parameters,
        learning=adapters.size(model, recipe.model.lora) if recipe.model.lora else parameters,
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=int(config.vocab_size),
        tied=bool(model.config.tie_word_embeddings),
        token_bytes=token_bytes(model.config, torch.bfloat16),
    )
