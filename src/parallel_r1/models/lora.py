"""Which weights of a model learn: all of them, or a LoRA adapter beside frozen ones.

With an adapter the tags must still learn, but their rows are part of a frozen embedding table. These rows become a
parameter of their own, `tag_rows`, which the embedding and the head read instead; it is tied if they are tied. `peft`
can do this too, but copies the whole table in every forward pass.

A run has one adapter. Every stage continues with the adapter of its start, so that nothing is rounded in between, not
even where the frozen weights are quantised to 4 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear
from transformers import AutoModelForCausalLM, PreTrainedModel

from parallel_r1 import models
from parallel_r1.answers.schemas import DEFAULT, Schema
from parallel_r1.errors import UserError, nearest, need
from parallel_r1.models.attention import ATTENTION
from parallel_r1.models.policy import Policy, dtype_of
from parallel_r1.models.settings import LoRA

ADAPTER = "adapter.safetensors"
"""The file of a checkpoint with its adapter."""
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per weight in nf4: 4, a share of the 8-bit scale of 64 weights, and a share of the scale of 256 scales."""


def check(settings: LoRA) -> None:
    """Refuse settings whose libraries are not installed or do not work on this machine."""
    needed = {"peft": "lora", **({"bitsandbytes": "qlora"} if settings.quantise == "nf4" else {})}
    for library, extra in needed.items():
        need(library, "for model.lora", extra)
    if settings.quantise == "nf4":
        _check_quantiser()


def _check_quantiser() -> None:
    """Quantise a few numbers with bitsandbytes, which does not work on every machine."""
    numbers = torch.linspace(-1, 1, 4096, device="cuda" if torch.cuda.is_available() else "cpu").view(64, 64)
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        restored = dequantize_4bit(*quantize_4bit(numbers, quant_type="nf4", compress_statistics=True))
    except Exception as error:  # it fails in as many ways as there are machines
        raise UserError(
            "a machine on which bitsandbytes works, for model.lora.quantise",
            f"{type(error).__name__}: {error}",
            "leave quantise = 'none', or see the documentation of bitsandbytes",
        ) from error
    if not torch.allclose(restored, numbers, atol=0.2):
        raise UserError(
            "a machine on which bitsandbytes works, for model.lora.quantise",
            "numbers that do not come back",
            "leave quantise = 'none'",
        )


def load(
    path: str,
    settings: LoRA,
    seed: int,
    start: Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Policy:
    """Load a model, frozen, with an adapter that learns.

    Args:
        path: a Hugging Face model folder or a hub id.
        seed: of the adapter's random weights; a new adapter changes nothing until it has learnt.
        start: a checkpoint whose adapter to continue with.
        device, dtype: see `models.load`; quantised layers compute in this dtype.

    Raises:
        UserError: see `models.load` and `attach`.
    """
    quantisation = _nf4(dtype_of(dtype)) if settings.quantise == "nf4" else None
    policy = replace(models.load(path, device=device, dtype=dtype, quantisation=quantisation), lora=settings)
    attach(policy.model, settings, policy.tags.ids.values(), seed)
    if start is not None:
        set_weights(policy.model, _read(start / ADAPTER, learning(policy.model)))
    return policy


def _read(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter in a file.

    Raises:
        UserError: no such file, a damaged one, or an adapter of other settings or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"an adapter in {path}",
            f"{error or type(error).__name__}".splitlines()[0],
            "name a checkpoint of a run with model.lora",
        ) from error
    for name in dict.fromkeys([*expected, *values]):
        shapes = [list(tree[name].shape) if name in tree else "none" for tree in (expected, values)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"an adapter with the settings of model.lora, {name} of shape {shapes[0]}",
                f"{shapes[1]} in {path}",
                "give the model and the settings that it was trained with",
            )
    return values


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def attach(model: PreTrainedModel, settings: LoRA, tag_ids: Collection[int], seed: int) -> None:
    """Freeze a model and give it an adapter, in place. Its outputs stay the same until the adapter learns.

    Raises:
        UserError: see `targeted`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    modules: Iterator[Any] = model.modules()
    for module in modules:  # bitsandbytes has kernels for inference that round to bf16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    targets = list(targeted(model, settings))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets), model)
    _free_rows(model, tag_ids)


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """The linear layers of a model by name, without its head."""
    head, kind = model.get_output_embeddings(), torch.nn.Linear
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kind) and layer is not head}


def targeted(model: PreTrainedModel, settings: LoRA) -> dict[str, torch.nn.Linear]:
    """The layers that get an adapter, by name.

    Raises:
        UserError: no layer has a name that `settings` gives.
    """
    layers = linear_layers(model)
    if settings.targets == "all-linear":
        return layers
    names = {name.rpartition(".")[2] for name in layers}
    for target in settings.targets:
        if target not in names:
            raise UserError("names of linear layers in model.lora.targets", f"'{target}'", nearest(target, names))
    return {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in settings.targets}


def size(model: PreTrainedModel, settings: LoRA, schema: Schema = DEFAULT) -> int:
    """Number of weights of the adapter that `attach` gives to a model whose answers have a schema.

    Raises:
        UserError: see `targeted`.
    """
    layers, tables = targeted(model, settings).values(), [rows for rows, _ in embedding_rows(model)]
    matrices = sum(layer.in_features + layer.out_features for layer in layers)
    return settings.rank * matrices + len(schema.tags) * sum(table.shape[1] for table in tables)


def _free_rows(model: PreTrainedModel, tag_ids: Collection[int]) -> None:
    """Make the rows of the tags in a frozen embedding table and head a parameter that learns."""
    table, head = _tables(model)
    tokens = torch.tensor(sorted(tag_ids), device=table.weight.device)
    for module, hook in ((table, _embed), (head, _predict)):
        if module is table or head.weight is not table.weight:
            module.tag_rows = torch.nn.Parameter(module.weight.detach()[tokens].clone())
        else:
            module.tag_rows = table.tag_rows
        module.register_buffer("tag_ids", tokens, persistent=False)
        module.register_forward_hook(hook)


def _tables(model: PreTrainedModel) -> tuple[Any, Any]:
    """The embedding table of a model and its head."""
    return model.get_input_embeddings(), model.get_output_embeddings()


def _embed(table: Any, arguments: tuple[Tensor], out: Tensor) -> Tensor:
    """Forward hook of an embedding table: embeddings of tags come from `tag_rows`."""
    is_tag = arguments[0][..., None] == table.tag_ids
    rows = embedding(is_tag.int().argmax(-1), table.tag_rows)
    scale = getattr(table, "embed_scale", None)  # Gemma's
    return torch.where(is_tag.any(-1)[..., None], rows if scale is None else rows * scale.to(rows.dtype), out)


def _predict(head: Any, arguments: tuple[Tensor], out: Tensor) -> Tensor:
    """Forward hook of a head: logits of tags come from `tag_rows`."""
    bias = None if head.bias is None else head.bias[head.tag_ids]
    return out.index_copy_(-1, head.tag_ids, linear(arguments[0], head.tag_rows, bias))


def embedding_rows(model: PreTrainedModel) -> list[tuple[torch.nn.Parameter, Tensor]]:
    """The learning parameters that hold rows of the embedding table or the head, tied ones once, with the token id of
    every row."""
    parameters = {}
    for table in _tables(model):
        rows = getattr(table, "tag_rows", table.weight)
        tokens = table.tag_ids if hasattr(table, "tag_ids") else torch.arange(len(rows), device=rows.device)
        if rows.requires_grad:
            parameters[id(rows)] = (rows, tokens)
    return list(parameters.values())


def learning(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The weights that learn, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of the weights that learn, by name."""
    return {name: weight.detach().clone() for name, weight in learning(model).items()}


@torch.no_grad()
def set_weights(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    """Overwrite the weights that learn."""
    for name, weight in learning(model).items():
        weight.copy_(values[name])


@contextmanager
def exchanged(model: PreTrainedModel, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Swap the weights that learn with `values`, and swap them back afterwards."""
    _exchange(model, values)
    try:
        yield
    finally:
        _exchange(model, values)


@torch.no_grad()
def _exchange(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    for name, weight in learning(model).items():
        before = weight.clone()
        weight.copy_(values[name])
        values[name].copy_(before)


def save(policy: Policy, folder: Path) -> None:
    """Write an ordinary Hugging Face model folder. An adapter is merged into the weights, and written to a file of its
    own too, to continue from."""
    if policy.lora is None:
        models.save(policy, folder)
        return
    from safetensors.torch import save_file

    models.save(replace(policy, model=merged(policy.model), lora=None), folder)
    save_file({name: value.cpu().contiguous() for name, value in weights(policy.model).items()}, folder / ADAPTER)


@torch.no_grad()
def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The ordinary model, on the CPU, with the same outputs as one with an adapter. Only for saving: buffers that are
    not saved are missing."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation=ATTENTION)
    values = {}
    for name, _ in plain.named_parameters():
        path, _, kind = name.rpartition(".")
        module: Any = model.get_submodule(path)
        has_adapter = isinstance(module, LoraLayer)
        layer: Any = module.get_base_layer() if has_adapter else module
        value = dequantize_module_weight(layer) if kind == "weight" else getattr(layer, kind)
        if kind == "weight" and has_adapter:
            value = value + module.get_delta_weight("default")
        elif kind == "weight" and hasattr(layer, "tag_rows"):
            value = value.index_copy(0, layer.tag_ids, layer.tag_rows)
        values[name] = value.detach().cpu()
    plain.load_state_dict(values, strict=False, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
