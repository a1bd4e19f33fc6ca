"""How many blocks of keys and values a model may hold, from the memory that the engine is given in bytes."""

from __future__ import annotations

import re

import psutil
import torch
from transformers import PretrainedConfig

from parallel_r1.errors import UserError
from parallel_r1.generation.local.kv_pool import BLOCK

UNITS = {"B": 1, **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}}
UNITS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}


def token_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers."""
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * int(text.num_hidden_layers) * int(heads) * int(head) * dtype.itemsize


def block_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of a block in a pool that is limited: with its part of the tensor of one layer's keys or values, which is
    there twice while it grows."""
    whole = BLOCK * token_bytes(config, dtype)
    return whole + whole // (2 * int(config.get_text_config().num_hidden_layers))


def parse_bytes(memory: str) -> int | None:
    """The bytes of an amount such as "20GB", as `Engine.memory` checked it; None for a share of the device."""
    match = re.fullmatch(r"([\d.]+) ?(\w+)", memory)
    return int(float(match[1]) * UNITS[match[2]]) if match else None


def blocks(memory: str, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Number of blocks that fit into an amount of memory.

    Args:
        memory: bytes such as "20GB" for keys and values, or a share of the device such as "80%", of which they get what
            nothing else has taken.
        dtype: of keys and values.

    Raises:
        UserError: more than the device has, or too little for one block.
    """
    total, fixed = device_bytes(device), parse_bytes(memory)
    wanted = float(memory.rstrip(" %")) / 100 * total - taken_bytes(device) if fixed is None else fixed
    if wanted > total:
        expected = f"engine.memory of at most the {total / 1e9:.1f} GB of {device}"
        raise UserError(expected, f"'{memory}'", "give less, or a share: '80%'")
    count = int(wanted // block_bytes(config, dtype))
    if count < 1:
        raise UserError(
            f"engine.memory for at least {BLOCK} tokens of {token_bytes(config, dtype):,} bytes",
            f"'{memory}', of which {max(0, int(wanted)):,} bytes are left on {device}",
            "give more, or choose a smaller model or another device",
        )
    return count


def device_bytes(device: torch.device) -> int:
    """All memory of a device; of the CPU, that of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def taken_bytes(device: torch.device) -> int:
    """What is taken of the memory of a device, by this process and by others. Memory that torch keeps for later is
    free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device) + torch.cuda.memory_allocated(device)
    machine = psutil.virtual_memory()
    return int(machine.total - machine.available)


def most_blocks(prompt: int, total: int, paths: int, depth: int) -> int:
    """The most blocks that an answer of `total` tokens takes, with its prompt: every branch, and every stretch of a
    trunk before a fork, has one block that is not full.

    Args:
        paths, depth: paths of a fork, and how deep forks may nest.
    """
    branches = min(total // 3, sum(paths**level for level in range(1, depth + 1)))  # a path has three tokens or more
    return -(-prompt // BLOCK) - (-total // BLOCK) + 2 * branches + 2
