"""The local engine: any Hugging Face causal model with rotary positions, one shared memory of keys and values.

Answers live in one `Memory`, prompts that several answers share in another. No path reads its prefix again, and a join
of the `isolated` sampler recomputes nothing. The tokens of a step lie side by side in one flat sequence; only attention
looks at them row by row, in two parts: a row's own columns, and the shared prompt for all answers to it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from parallel_r1.engines import Counts
from parallel_r1.engines.memory import Branch, Memory

ATTENTION = "parallel_r1_memory"


@dataclass
class _Places:
    """Where n tokens go: their memory, and their rows and columns in it."""

    memory: Memory
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]


@dataclass
class _Step:
    """One token on each of n branches. r rows, s slots, c columns, p shared prompts, m answers to one of them.

    Attributes:
        slots: of the tokens.
        positions: of the tokens.
        dense: token i is the only one of row i, so the flat sequence is laid out by rows already.
        members: rows that continue a shared prompt.
        prompt: of every member, its shared prompt.
        place: of every member, which of the answers to this prompt it is.
        lengths: of every member, the tokens of its prompt.
    """

    at: _Places
    slots: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    shape: tuple[int, int, int]
    dense: bool
    members: Int[Tensor, " k"] | None = None
    prompt: Int[Tensor, " k"] | None = None
    place: Int[Tensor, " k"] | None = None
    lengths: Int[Tensor, " k"] | None = None
    biases: dict[int | None, tuple[Tensor, Tensor | None]] = field(default_factory=dict)


@dataclass
class _Read:
    """Many tokens on each of k branches, at most l on one.

    Attributes:
        feed, offset: of every token, its branch and its place among the tokens of this branch.
        rows: of every branch.
        fresh: no branch holds anything yet, so plain causal attention among the new tokens is all.
        order: of every column, 0 if it was seen before, 1 + offset of a new token, else larger than all.
        prompts: of every branch, its shared prompt's row and length, if there are any.
    """

    at: _Places
    feed: Int[Tensor, " n"]
    offset: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    rows: Int[Tensor, " k"]
    longest: int
    fresh: bool
    order: Int[Tensor, "k c"]
    prompts: tuple[Int[Tensor, " k"], Int[Tensor, " k"]] | None
    masks: dict[int | None, Tensor] = field(default_factory=dict)


class LocalEngine:
    """An `Engine` over a model loaded by `models.load`. The memory grows as answers need it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self.device = model.device
        self.answers, self.prompts = Memory(model.device), Memory(model.device)
        self.shared: dict[tuple[int, ...], Branch] = {}
        self.counts = Counts()
        AttentionInterface.register(ATTENTION, self._attend)

    @torch.inference_mode()
    def open(self, prompts: Sequence[Sequence[int]], shared: Sequence[bool]) -> list[Branch]:
        trunks = self.answers.open(len(prompts))
        alone: list[tuple[Branch, Sequence[int]]] = []
        common: list[tuple[Branch, Sequence[int]]] = []
        for trunk, prompt, share in zip(trunks, prompts, shared, strict=True):
            key = tuple(prompt)
            if len(prompt) > 1 and (share or key in self.shared):
                if key not in self.shared:
                    self.shared[key] = self.prompts.open(1)[0]
                    common.append((self.shared[key], prompt[:-1]))
                trunk.prompt = self.shared[key]
                trunk.prompt.users += 1
                trunk.position = len(prompt) - 1
            elif len(prompt) > 1:
                alone.append((trunk, prompt[:-1]))
        self._read(self.prompts, common)
        self._read(self.answers, alone)
        return trunks

    @torch.inference_mode()
    def fork(self, trunk: Branch, paths: int) -> list[Branch]:
        return self.answers.fork(trunk, paths)

    @torch.inference_mode()
    def join(self, trunk: Branch, paths: Sequence[Branch], keep: int) -> None:
        self.counts.hold(-self.answers.join(trunk, paths, keep))

    @torch.inference_mode()
    def read(self, feeds: Sequence[tuple[Branch, Sequence[int]]]) -> None:
        self._read(self.answers, feeds)

    @torch.inference_mode()
    def close(self, trunk: Branch) -> None:
        self.counts.hold(-self.answers.close(trunk.row))
        if trunk.prompt:
            trunk.prompt.users -= 1

    @torch.inference_mode()
    def trim(self) -> None:
        for key in [key for key, prompt in self.shared.items() if not prompt.users]:
            self.counts.hold(-self.prompts.close(self.shared.pop(key).row))
        self.prompts.compact()

    @torch.inference_mode()
    def step(self, feeds: Sequence[tuple[Branch, int]]) -> Float[Tensor, "n v"]:
        memory = self.answers
        memory.compact()
        order = sorted(range(len(feeds)), key=lambda index: feeds[index][0].row)
        places = memory.place((feeds[index][0], 1) for index in order)
        back = [0] * len(feeds)
        for place, index in enumerate(order):
            back[index] = place
        table = [(feeds[index][1], *place) for index, place in zip(order, places, strict=True)]
        tokens, rows, slots, columns, positions = torch.tensor(table, device=self.device).T
        memory.visible[rows, slots, columns] = True
        memory.positions[rows, columns] = positions
        width = 1 + max(branch.slot for branch, _ in feeds)
        shape = (len(memory.rows), width, memory.reach)
        dense = width == 1 and len(feeds) == len(memory.rows)
        plan = _Step(_Places(memory, rows, columns), slots, positions, shape, dense)
        if self.shared:
            self._plan_prompts(plan)
        self.counts.decoded += len(feeds)
        self.counts.hold(len(feeds))
        return self._forward(tokens, positions, plan, 0)[back]

    def _plan_prompts(self, plan: _Step) -> None:
        """Find out which rows continue a shared prompt."""
        table, answers = [], [0] * len(self.prompts.rows)
        for row, entry in enumerate(self.answers.rows):
            prompt = entry.branches[0].prompt
            if prompt:
                table.append((row, prompt.row, answers[prompt.row], prompt.position))
                answers[prompt.row] += 1
        if table:
            plan.members, plan.prompt, plan.place, plan.lengths = torch.tensor(table, device=self.device).T

    def _read(self, memory: Memory, feeds: Sequence[tuple[Branch, Sequence[int]]]) -> None:
        """Read tokens into a memory and let their branches see them; nobody asks for logits."""
        feeds = [(branch, tokens) for branch, tokens in feeds if tokens]
        if not feeds:
            return
        memory.compact()
        fresh = all(not branch.position and not branch.prompt for branch, _ in feeds)
        places = memory.place((branch, len(tokens)) for branch, tokens in feeds)
        table = [
            (token, *place, feed, offset)
            for (feed, offset, token), place in zip(
                ((feed, offset, token) for feed, (_, new) in enumerate(feeds) for offset, token in enumerate(new)),
                places,
                strict=True,
            )
        ]
        tokens, rows, slots, columns, positions, feed, offset = torch.tensor(table, device=self.device).T
        longest = max(len(new) for _, new in feeds)
        branches = [branch for branch, _ in feeds]
        of_row = torch.tensor([branch.row for branch in branches], device=self.device)
        of_slot = torch.tensor([branch.slot for branch in branches], device=self.device)
        before = memory.visible[of_row, of_slot, : memory.reach]
        order = torch.where(before, 0, longest + 1)
        order[feed, columns] = offset + 1
        memory.visible[rows, slots, columns] = True
        memory.positions[rows, columns] = positions
        prompts = None
        if any(branch.prompt for branch in branches):
            known = [(b.prompt.row, b.prompt.position) if b.prompt else (0, 0) for b in branches]
            row, length = torch.tensor(known, device=self.device).T
            prompts = (row, length)
        at = _Places(memory, rows, columns)
        self.counts.prefilled += len(table)
        self.counts.hold(len(table))
        self._forward(tokens, positions, _Read(at, feed, offset, positions, of_row, longest, fresh, order, prompts), 1)

    def _forward(self, tokens: Tensor, positions: Tensor, plan: _Step | _Read, logits: int) -> Tensor:
        """The last `logits` rows of logits (0: all) of a forward pass whose attention works on the memory."""
        before = self.config._attn_implementation
        self.config._attn_implementation = ATTENTION
        try:
            return self.model(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                engine=self,
                plan=plan,
                logits_to_keep=logits,
            ).logits[0]
        finally:
            self.config._attn_implementation = before

    @staticmethod
    def _attend(
        module: torch.nn.Module,
        query: Float[Tensor, "1 h n d"],
        key: Float[Tensor, "1 k n d"],
        value: Float[Tensor, "1 k n d"],
        attention_mask: None,
        *,
        engine: LocalEngine,
        plan: _Step | _Read,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "1 n h d"], None]:
        """The attention function: store the keys and values, then let every query see its branch's columns."""
        layer: Any = module.layer_idx
        keys, values = plan.at.memory.write(layer, plan.at.rows, plan.at.columns, key[0], value[0])
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        far = engine.prompts.layers.get(layer)
        if isinstance(plan, _Step):
            out = engine._attend_step(query[0], keys, values, far, plan, scale, sliding_window, softcap)
        else:
            out = engine._attend_read(query[0], keys, values, far, plan, scale, sliding_window, softcap)
        return out[None], None

    def _attend_step(
        self,
        query: Float[Tensor, "h n d"],
        keys: Tensor,
        values: Tensor,
        far: tuple[Tensor, Tensor] | None,
        plan: _Step,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "n h d"]:
        """One query per branch, as batched products: with few queries a row they are up to 5 times faster on CPU than
        the fused kernel. Queries of the heads that share a key head stand side by side, so keys are never repeated."""
        rows, slots, reach = plan.shape
        heads, head, key_heads = query.shape[0], query.shape[2], keys.shape[1]
        groups = heads // key_heads
        laid = query.transpose(0, 1)
        if not plan.dense:
            flat, laid = laid, query.new_zeros(rows, slots, heads, head)
            laid[plan.at.rows, plan.slots] = flat
            laid = laid.view(rows, slots, key_heads, groups, head).permute(0, 2, 3, 1, 4)
        laid = laid.reshape(rows * key_heads, groups * slots, head)
        own, shared = self._biases(plan, window, groups, key_heads, laid.dtype)
        near_keys = keys[:rows, :, :reach].flatten(0, 1).transpose(1, 2)
        near_values = values[:rows, :, :reach].flatten(0, 1)
        if softcap is None:
            scores = torch.baddbmm(own, laid, near_keys, alpha=scale)
        else:
            scores = torch.bmm(laid, near_keys).mul_(scale / softcap).tanh_().mul_(softcap) + own
        if shared is None or far is None or plan.members is None:
            weights = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
            out = torch.bmm(weights, near_values)
        else:
            out = self._with_prompts(laid, scores, near_values, far, plan, shared, scale, softcap)
        if plan.dense:
            return out.view(rows, heads, head)
        out = out.view(rows, key_heads, groups, slots, head).permute(0, 3, 1, 2, 4).reshape(rows, slots, heads, head)
        return out[plan.at.rows, plan.slots]

    def _with_prompts(
        self,
        laid: Float[Tensor, "rk q d"],
        scores: Float[Tensor, "rk q c"],
        near_values: Tensor,
        far: tuple[Tensor, Tensor],
        plan: _Step,
        bias: Float[Tensor, "m q l"],
        scale: float,
        softcap: float | None,
    ) -> Float[Tensor, "rk q d"]:
        """Attention to own columns and to the shared prompt, normalised together. A prompt's keys are read once for
        all answers to it."""
        assert plan.members is not None
        assert plan.prompt is not None
        assert plan.place is not None
        rows, length = plan.shape[0], bias.shape[-1]
        (batch, queries, head), prompts = laid.shape, len(self.prompts.rows)
        key_heads, answers = batch // rows, 1 + int(plan.place.max())
        by_prompt = laid.new_zeros(prompts, answers, key_heads, queries, head)
        by_prompt[plan.prompt, plan.place] = laid.view(rows, key_heads, queries, head)[plan.members]
        by_prompt = by_prompt.transpose(1, 2).reshape(prompts * key_heads, answers * queries, head)
        far_keys, far_values = (part[:prompts, :, :length].flatten(0, 1) for part in far)
        found = torch.bmm(by_prompt, far_keys.transpose(1, 2)).mul_(scale)
        if softcap is not None:
            found = found.div_(softcap).tanh_().mul_(softcap)
        found = found.view(prompts, key_heads, answers, queries, length).transpose(1, 2)
        far_scores = scores.new_full((rows, key_heads, queries, length), torch.finfo(scores.dtype).min)
        far_scores[plan.members] = found[plan.prompt, plan.place] + bias[:, None]
        both = torch.cat([far_scores.view(batch, queries, length), scores], dim=-1)
        weights = both.softmax(dim=-1, dtype=torch.float32).to(near_values.dtype)
        out = torch.bmm(weights[..., length:], near_values).view(rows, key_heads, queries, head)
        spread = weights.new_zeros(prompts, answers, key_heads, queries, length)
        spread[plan.prompt, plan.place] = weights[..., :length].reshape(rows, key_heads, queries, length)[plan.members]
        spread = spread.transpose(1, 2).reshape(prompts * key_heads, answers * queries, length)
        gained = torch.bmm(spread, far_values).view(prompts, key_heads, answers, queries, head).transpose(1, 2)
        out[plan.members] += gained[plan.prompt, plan.place]
        return out.view(batch, queries, head)

    def _biases(
        self, plan: _Step, window: int | None, groups: int, key_heads: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "rk q c"], Float[Tensor, "m q l"] | None]:
        """What is added to the scores of own columns and of the shared prompt: 0 where seen, else the smallest number.
        The same for every layer with the same window."""
        if window in plan.biases:
            return plan.biases[window]
        (rows, slots, reach), memory = plan.shape, plan.at.memory
        seen = memory.visible[:rows, :slots, :reach]
        now = None
        if window is not None:
            now = plan.positions.new_zeros(rows, slots)
            now[plan.at.rows, plan.slots] = plan.positions
            seen = seen & (memory.positions[:rows, None, :reach] > now[:, :, None] - window)
        least = torch.finfo(dtype).min
        own = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, least)
        own = own[:, None, None].expand(-1, key_heads, groups, -1, -1).reshape(rows * key_heads, groups * slots, reach)
        shared = None
        if plan.members is not None:
            assert plan.lengths is not None
            places = torch.arange(int(plan.lengths.max()), device=self.device)
            within = (places < plan.lengths[:, None])[:, None].expand(-1, slots, -1)
            if window is not None and now is not None:
                within = within & (places > now[plan.members][:, :, None] - window)
            shared = torch.zeros(within.shape, dtype=dtype, device=self.device).masked_fill_(~within, least)
            shared = shared[:, None].expand(-1, groups, -1, -1).reshape(len(plan.members), groups * slots, -1)
        plan.biases[window] = own, shared
        return own, shared

    def _attend_read(
        self,
        query: Float[Tensor, "h n d"],
        keys: Tensor,
        values: Tensor,
        far: tuple[Tensor, Tensor] | None,
        plan: _Read,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "n h d"]:
        """Many queries per branch, padded to the longest."""
        padded = query.new_zeros(len(plan.rows), plan.longest, *query.shape[::2])
        padded[plan.feed, plan.offset] = query.transpose(0, 1)
        padded = padded.transpose(1, 2)
        mask = None
        if plan.fresh and window is None and softcap is None:
            seen_keys, seen_values = (part[plan.rows, :, : plan.longest] for part in (keys, values))
        else:
            mask = self._mask(plan, window)
            reach = plan.order.shape[1]
            seen_keys, seen_values = (part[plan.rows, :, :reach] for part in (keys, values))
            if plan.prompts is not None and far is not None:
                length = mask.shape[-1] - reach
                seen_keys, seen_values = (
                    torch.cat([old[plan.prompts[0], :, :length], own], dim=2)
                    for old, own in zip(far, (seen_keys, seen_values), strict=True)
                )
        if softcap is None:
            out = scaled_dot_product_attention(
                padded, seen_keys, seen_values, mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )
        else:
            assert mask is not None
            groups = padded.shape[1] // seen_keys.shape[1]
            scores = padded @ seen_keys.repeat_interleave(groups, 1).transpose(2, 3)
            scores = (scores * (scale / softcap)).tanh() * softcap
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32)
            out = scores.to(values.dtype) @ seen_values.repeat_interleave(groups, 1)
        return out.transpose(1, 2)[plan.feed, plan.offset]

    def _mask(self, plan: _Read, window: int | None) -> Tensor:
        """[k, 1, l, prompt + c]: whether each new token sees a token of the shared prompt or a column of its row. A
        query that only pads sees itself or nothing that matters."""
        if window in plan.masks:
            return plan.masks[window]
        steps = torch.arange(1, plan.longest + 1, device=self.device)
        mask = plan.order[:, None, :] <= steps[:, None]
        now = plan.positions.new_zeros(len(plan.rows), plan.longest)
        now[plan.feed, plan.offset] = plan.positions
        if window is not None:
            positions = plan.at.memory.positions[plan.rows, : plan.order.shape[1]]
            mask = mask & (positions[:, None, :] > now[:, :, None] - window)
        if plan.prompts is not None:
            lengths = plan.prompts[1]
            places = torch.arange(int(lengths.max()), device=self.device)
            seen = (places < lengths[:, None])[:, None].expand(-1, plan.longest, -1)
            if window is not None:
                seen = seen & (places > now[:, :, None] - window)
            mask = torch.cat([seen, mask], dim=2)
        plan.masks[window] = mask[:, None]
        return plan.masks[window]
