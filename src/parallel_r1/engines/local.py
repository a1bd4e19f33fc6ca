"""The local engine: any Hugging Face causal model, one shared memory of keys and values.

Every answer has one row of memory. A column of a row holds one token's keys and values, in the order in which tokens
were fed, whatever path they belong to. What differs between paths is only which columns they see: a branch has a slot
in `visible`, a fork copies the trunk's slot, a join unites the slots of the paths. So a fork copies no keys, no path
reads the prefix again, and a join recomputes nothing. The tokens of a step lie side by side in one flat sequence; only
attention looks at them row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

ATTENTION = "parallel_r1_memory"


@dataclass(eq=False)
class LocalBranch:
    """A row and a slot of the memory, and the position of the next token. A resting trunk has no slot: -1."""

    row: int
    slot: int
    position: int


@dataclass
class _Step:
    """Where the tokens of one forward pass go, and what they see: n tokens, r rows, s slots, c columns, h key heads,
    each serving g query heads.

    Attributes:
        bias: added to attention scores: 0 where seen, else the smallest number.
        dense: token i is the only one of row i, so the flat sequence is laid out by rows already.
    """

    rows: Int[Tensor, " n"]
    slots: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    bias: Float[Tensor, "rh gs c"]
    dense: bool


@dataclass
class _Prefill:
    """Prompts of p rows, read from the start; `rows` says where they go."""

    rows: Int[Tensor, " p"]


class LocalEngine:
    """An `Engine` over a model loaded by `models.load`. The memory grows as answers need it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self.device = model.device
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys, values: [rows, kv heads, columns, head]
        self.visible: Bool[Tensor, "r s c"] = torch.zeros(0, 1, 192, dtype=torch.bool, device=self.device)
        self.used: list[int] = []  # columns in use, by row; rows 0 .. len - 1 are active
        self.branches: list[list[LocalBranch]] = []  # by row; resting trunks included
        AttentionInterface.register(ATTENTION, self._attend)

    @torch.inference_mode()
    def open(self, prompts: Sequence[Sequence[int]]) -> list[LocalBranch]:
        trunks = []
        for prompt in prompts:
            row = len(self.used)
            trunks.append(LocalBranch(row, 0, len(prompt) - 1))
            self.used.append(len(prompt) - 1)
            self.branches.append([trunks[-1]])
        longest = max(self.used[trunk.row] for trunk in trunks)
        self._reserve(rows=len(self.used), columns=longest + 1)
        first: dict[tuple[int, ...], int] = {}
        for trunk, prompt in zip(trunks, prompts, strict=True):
            first.setdefault(tuple(prompt), trunk.row)
            self.visible[trunk.row] = False
            self.visible[trunk.row, 0, : self.used[trunk.row]] = True
        if longest:
            self._prefill(list(first), list(first.values()), longest)
            sources = torch.tensor([first[tuple(prompt)] for prompt in prompts], device=self.device)
            rows = torch.tensor([trunk.row for trunk in trunks], device=self.device)
            copied = sources != rows
            for part in (part for pair in self.memory.values() for part in pair):
                part[rows[copied], :, :longest] = part[sources[copied], :, :longest]
        return trunks

    @torch.inference_mode()
    def fork(self, trunk: LocalBranch, paths: int) -> list[LocalBranch]:
        seen = self.visible[trunk.row, trunk.slot].clone()
        trunk.slot = -1
        children = []
        for _ in range(paths):
            children.append(LocalBranch(trunk.row, self._free_slot(trunk.row), trunk.position))
            self.branches[trunk.row].append(children[-1])
        self.visible[trunk.row, [child.slot for child in children]] = seen
        return children

    @torch.inference_mode()
    def join(self, trunk: LocalBranch, paths: Sequence[LocalBranch]) -> None:
        seen = self.visible[trunk.row, [path.slot for path in paths]].any(dim=0)
        for path in paths:
            self.branches[trunk.row].remove(path)
        trunk.slot = self._free_slot(trunk.row)
        trunk.position = max(path.position for path in paths)
        self.visible[trunk.row, trunk.slot] = seen

    @torch.inference_mode()
    def step(self, feeds: Sequence[tuple[LocalBranch, int]]) -> Float[Tensor, "n v"]:
        order = sorted(range(len(feeds)), key=lambda index: feeds[index][0].row)
        places = []
        for branch, token in (feeds[index] for index in order):
            row = branch.row
            places.append((token, row, branch.slot, self.used[row], branch.position, 0))
            self.used[row] += 1
            branch.position += 1
        for place, index in enumerate(order):
            places[index] = (*places[index][:5], place)
        tokens, rows, slots, columns, positions, back = torch.tensor(places, device=self.device).T
        reach, width = max(self.used), 1 + max(branch.slot for branch, _ in feeds)
        self._reserve(columns=reach)
        self.visible[rows, slots, columns] = True
        seen = self.visible[: len(self.used), :width, :reach]
        bias = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        bias.masked_fill_(~seen, torch.finfo(bias.dtype).min)
        key_heads = self.config.num_key_value_heads
        bias = bias[:, None, None].expand(-1, key_heads, self.config.num_attention_heads // key_heads, -1, -1)
        bias = bias.reshape(len(self.used) * key_heads, -1, reach)
        plan = _Step(rows, slots, columns, bias, dense=width == 1 and len(feeds) == len(self.used))
        return self._forward(tokens[None], positions[None], plan)[0][back]

    @torch.inference_mode()
    def close(self, trunk: LocalBranch) -> None:
        """Free a row: the last active row moves into the hole, so that the active rows stay side by side."""
        hole, last = trunk.row, len(self.used) - 1
        if hole != last:
            for part in (part for pair in self.memory.values() for part in pair):
                part[hole, :, : self.used[last]] = part[last, :, : self.used[last]]
            self.visible[hole] = self.visible[last]
            self.used[hole], self.branches[hole] = self.used[last], self.branches[last]
            for branch in self.branches[hole]:
                branch.row = hole
        self.used.pop()
        self.branches.pop()

    def _free_slot(self, row: int) -> int:
        taken = {branch.slot for branch in self.branches[row]}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        self._reserve(slots=slot + 1)
        return slot

    def _prefill(self, prompts: Sequence[Sequence[int]], rows: list[int], longest: int) -> None:
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        for index, prompt in enumerate(prompts):
            tokens[index, : len(prompt) - 1] = torch.tensor(prompt[:-1])
        positions = torch.arange(longest).expand(len(prompts), -1)
        plan = _Prefill(torch.tensor(rows, device=self.device))
        self._forward(tokens.to(self.device), positions.to(self.device), plan)

    def _forward(self, tokens: Tensor, positions: Tensor, plan: _Step | _Prefill) -> Tensor:
        """The logits of a forward pass whose attention reads and writes the memory."""
        before = self.config._attn_implementation
        self.config._attn_implementation = ATTENTION
        try:
            return self.model(
                input_ids=tokens,
                position_ids=positions,
                use_cache=False,
                engine=self,
                plan=plan,
                logits_to_keep=1 if isinstance(plan, _Prefill) else 0,
            ).logits
        finally:
            self.config._attn_implementation = before

    @staticmethod
    def _attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        *,
        engine: LocalEngine,
        plan: _Step | _Prefill,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """The attention function: store the keys and values, then let every query see its branch's columns."""
        keys, values = engine._memory_of(module.layer_idx, key, value)  # type: ignore[arg-type]
        if isinstance(plan, _Prefill):
            keys[plan.rows, :, : key.shape[2]] = key
            values[plan.rows, :, : key.shape[2]] = value
            out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
            return out.transpose(1, 2), None
        keys[plan.rows, :, plan.columns] = key[0].transpose(0, 1)
        values[plan.rows, :, plan.columns] = value[0].transpose(0, 1)
        heads, head, key_heads = query.shape[1], query.shape[3], key.shape[1]
        groups, (batch, queries, reach) = heads // key_heads, plan.bias.shape
        rows, slots = batch // key_heads, queries // groups
        # Queries of the heads that share a key head stand side by side, so keys are never repeated.
        laid = query[0].transpose(0, 1)
        if plan.dense:
            laid = laid.reshape(batch, queries, head)
        else:
            flat, laid = laid, query.new_zeros(rows, slots, heads, head)
            laid[plan.rows, plan.slots] = flat
            laid = laid.view(rows, slots, key_heads, groups, head).permute(0, 2, 3, 1, 4).reshape(batch, queries, head)
        # Batched products: with few queries a row they are up to 5 times faster on CPU than the fused kernel.
        scale = head**-0.5 if scaling is None else scaling
        seen_keys = keys[:rows, :, :reach].flatten(0, 1).transpose(1, 2)
        scores = torch.baddbmm(plan.bias, laid, seen_keys, alpha=scale)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        out = torch.bmm(weights, values[:rows, :, :reach].flatten(0, 1))
        if plan.dense:
            return out.view(1, rows, heads, head), None
        out = out.view(rows, key_heads, groups, slots, head).permute(0, 3, 1, 2, 4).reshape(rows, slots, heads, head)
        return out[plan.rows, plan.slots][None], None

    def _memory_of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, at least as large as `visible`."""
        rows, _, columns = self.visible.shape
        held = self.memory.get(layer)
        if held is None or held[0].shape[0] < rows or held[0].shape[2] < columns:
            grown = []
            for part, old in zip((key, value), held or (None, None), strict=True):
                # Zeros, not garbage: a masked column's value is multiplied by 0, and 0 times NaN is NaN.
                fresh = part.new_zeros(rows, part.shape[1], columns, part.shape[3])
                if old is not None:
                    fresh[: old.shape[0], :, : old.shape[2]] = old
                grown.append(fresh)
            self.memory[layer] = held = (grown[0], grown[1])
        return held

    def _reserve(self, rows: int = 0, slots: int = 0, columns: int = 0) -> None:
        """Make `visible` at least so large; columns grow by half, so that growing stays rare."""
        now = self.visible.shape
        wanted = (max(rows, now[0]), max(slots, now[1]), now[2] if columns <= now[2] else max(columns, now[2] * 3 // 2))
        if wanted != tuple(now):
            grown = torch.zeros(wanted, dtype=torch.bool, device=self.device)
            grown[: now[0], : now[1], : now[2]] = self.visible
            self.visible = grown
