"""The local engine: any Hugging Face causal model with rotary positions, one shared memory of keys and values.

Answers live in one `Memory`, prompts that several answers share in another. No path reads its prefix again, and a join
of the `isolated` sampler recomputes nothing. The tokens of a step lie side by side in one flat sequence; only attention
looks at them row by row, in two parts: a row's own columns, and the shared prompt for all answers to it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from parallel_r1.engines import Counts, batched, flex
from parallel_r1.engines.memory import Branch, Memory
from parallel_r1.engines.plan import Places, Read, Step

ATTENTION = "parallel_r1_memory"


class LocalEngine:
    """An `Engine` over a model loaded by `models.load`. The memory grows as answers need it.

    Args:
        model: on the device where it shall run.
        attention: the module that computes attention; `batched` on a CPU and `flex` on CUDA if None.
    """

    def __init__(self, model: PreTrainedModel, attention: ModuleType | None = None) -> None:
        self.attention = attention or (flex if model.device.type == "cuda" else batched)
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
        plan = Step(Places(memory, rows, columns), slots, positions, shape, dense)
        if self.shared:
            self._plan_prompts(plan)
        self.counts.decoded += len(feeds)
        self.counts.hold(len(feeds))
        return self._forward(tokens, positions, plan, 0)[back]

    def _plan_prompts(self, plan: Step) -> None:
        """Find out which rows continue a shared prompt."""
        table, answers = [], [0] * len(self.prompts.rows)
        for row, entry in enumerate(self.answers.rows):
            prompt = entry.branches[0].prompt
            if prompt:
                table.append((row, prompt.row, answers[prompt.row], prompt.position))
                answers[prompt.row] += 1
        if table:
            plan.prompts = len(self.prompts.rows)
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
        at = Places(memory, rows, columns)
        self.counts.prefilled += len(table)
        self.counts.hold(len(table))
        self._forward(tokens, positions, Read(at, feed, offset, positions, of_row, longest, fresh, order, prompts), 1)

    def _forward(self, tokens: Tensor, positions: Tensor, plan: Step | Read, logits: int) -> Tensor:
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
        plan: Step | Read,
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
        compute = engine.attention.attend_step if isinstance(plan, Step) else engine.attention.attend_read
        return compute(query[0], keys, values, far, plan, scale, sliding_window, softcap)[None], None
