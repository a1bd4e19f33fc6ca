"""The weights of a policy as vLLM takes them.

vLLM 0.32 leaves the head of a model with tied embeddings as it was when weights are handed over on a CPU, where it
keeps a packed copy. So vLLM gets the head as a matrix of its own, here and in folders.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from parallel_r1 import distributed
from parallel_r1.files import whole
from parallel_r1.models.lora import merged
from parallel_r1.models.policy import Policy

HEAD = "lm_head.weight"


def rows(policy: Policy) -> int:
    """Number of rows of the embedding table that vLLM shall hold: without those at its end that no token has, which it
    would draw and count."""
    total = int(policy.model.config.get_text_config().vocab_size)
    missing = set(policy.tags.missing)
    while total - 1 in missing:
        total -= 1
    return total


def named_weights(policy: Policy, cut: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The weights by their names in a checkpoint; an adapter is merged into them.

    Args:
        cut: leave out the rows that `rows` does not count.
    """
    model: Any = policy.model if policy.lora is None else merged(policy.model)
    size = rows(policy) if cut else None
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for name, weight in model.named_parameters():
        if name != HEAD:
            values = distributed.whole(weight.detach())
            yield name, values[:size] if id(weight) in tables else values
    yield HEAD, distributed.whole(model.get_output_embeddings().weight.detach())[:size]


def write_config(policy: Policy, folder: Path) -> None:
    """Write the configuration of the model that `named_weights` belongs to."""
    config = _config(policy)
    config.get_text_config().vocab_size = rows(policy)
    config.save_pretrained(folder)


def write_weights(policy: Policy, folder: Path) -> None:
    """Write a model folder for a vLLM server, complete or not at all, with all rows of the embedding table. A
    collective call: every process must make it, and the first one writes."""
    from safetensors.torch import save_file

    weights = {name: weight.cpu().contiguous().clone() for name, weight in named_weights(policy, cut=False)}
    if distributed.is_first():
        shutil.rmtree(folder, ignore_errors=True)
        with whole(folder) as new:
            _config(policy).save_pretrained(new)
            policy.tokenizer.save_pretrained(new)
            save_file(weights, new / "model.safetensors", {"format": "pt"})


def _config(policy: Policy) -> Any:
    """The model's configuration with a head of its own, and without a quantisation that merging has undone."""
    config = copy.deepcopy(policy.model.config)
    vars(config).pop("quantization_config", None)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    config.architectures = [type(policy.model).__name__]
    return config
