"""The local engine: a `Backend` that runs any Hugging Face causal model with rotary positions in this process.

The KV cache of answers is one `Memory`; that of prompts which several answers share is another. No path reads its
prefix again, and a join of the `isolated` sampler computes nothing. The model gets all tokens of a step as one flat
sequence: tokens that are only read, and one token per branch whose logits are needed. Attention alone looks at them row
by row, in two parts: the answer's own columns, and the shared prompt for all answers to it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.local import cpu as batched
from parallel_r1.generation.local import cuda as flex
from parallel_r1.generation.local.kv_cache import Branch, Memory
from parallel_r1.generation.local.passes import Layer, Places, Read, Step
from parallel_r1.models.attention import NO_MASK, check_attention


@dataclass(frozen=True)
class Pass:
    """The forward pass that is running: its engine, and a plan for every part of the flat sequence of tokens."""

    engine: LocalEngine
    plans: Sequence[Step | Read]


_pass: ContextVar[Pass] = ContextVar("pass")
"""Not an argument of attention, because the graph of a compiled model takes only tensors and numbers."""


class LocalEngine:
    """A `Backend` for a model loaded by `models.load`. Its KV cache grows as answers need it.

    Args:
        model: the model, on the device where it runs.
        attention: the module that computes attention; `batched` on a CPU and `flex` on CUDA if None.
        forward: runs the model; the result of `compiled`, or the model itself if None.

    Raises:
        UserError: the model's attention was not replaced by that of `models.attention`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention: ModuleType | None = None,
        *,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        check_attention(model)
        self.attention = attention or (flex if model.device.type == "cuda" else batched)
        self.model = model
        self.forward = model if forward is None else forward
        self.device = model.device
        self.answers, self.prompts = Memory(model.device), Memory(model.device)
        self.shared: dict[tuple[int, ...], Branch] = {}
        # Tokens to read wait for the next step, so that they need no forward pass of their own.
        self.unread: dict[Memory, dict[Branch, list[int]]] = {self.prompts: {}, self.answers: {}}
        self.counts = Counts()

    @torch.inference_mode()
    def open(self, prompts: Sequence[Sequence[int]], shared: Sequence[bool]) -> list[Branch]:
        trunks = self.answers.open(len(prompts))
        for trunk, prompt, share in zip(trunks, prompts, shared, strict=True):
            key = tuple(prompt)
            if len(prompt) > 1 and (share or key in self.shared):
                if key not in self.shared:
                    self.shared[key] = self.prompts.open(1)[0]
                    self._note(self.prompts, self.shared[key], prompt[:-1])
                trunk.prompt = self.shared[key]
                trunk.prompt.users += 1
                trunk.position = len(prompt) - 1
            else:
                self._note(self.answers, trunk, prompt[:-1])
        return trunks

    @torch.inference_mode()
    def fork(self, trunk: Branch, paths: int) -> list[Branch]:
        if trunk in self.unread[self.answers]:  # paths share what has been read
            self._forward(self._reads(), 1)
        return self.answers.fork(trunk, paths)

    @torch.inference_mode()
    def join(self, trunk: Branch, paths: Sequence[Branch], keep: int) -> None:
        if any(path in self.unread[self.answers] for path in paths):
            self._forward(self._reads(), 1)
        self.counts.hold(-self.answers.join(trunk, paths, keep))

    def read(self, feeds: Sequence[tuple[Branch, Sequence[int]]]) -> None:
        for branch, tokens in feeds:
            self._note(self.answers, branch, tokens)

    @torch.inference_mode()
    def close(self, trunk: Branch) -> None:
        self._free(self.answers, trunk.row)
        if trunk.prompt:
            trunk.prompt.users -= 1

    @torch.inference_mode()
    def trim(self) -> None:
        for key in [key for key, prompt in self.shared.items() if not prompt.users]:
            self._free(self.prompts, self.shared.pop(key).row)

    def _note(self, memory: Memory, branch: Branch, tokens: Sequence[int]) -> None:
        """Queue tokens for the next step to read. They count as tokens in the KV cache from now on."""
        if tokens:
            self.unread[memory].setdefault(branch, []).extend(tokens)
            self.counts.hold(len(tokens))

    def _free(self, memory: Memory, row: int) -> None:
        """Free a row, and drop its tokens that wait to be read."""
        waiting = self.unread[memory]
        for branch in [branch for branch in waiting if branch.row == row]:
            self.counts.hold(-len(waiting.pop(branch)))
        self.counts.hold(-memory.close(row))

    @torch.inference_mode()
    def step(self, feeds: Sequence[tuple[Branch, int]]) -> Float[Tensor, "n v"]:
        memory = self.answers
        reads = self._reads()
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
        plan = Step(Places(memory, rows, columns), tokens, positions, slots, shape, dense)
        if self.shared:
            self._plan_prompts(plan)
        self.counts.decoded += len(feeds)
        self.counts.hold(len(feeds))
        return self._forward([*reads, plan], len(feeds))[back]

    def _plan_prompts(self, plan: Step) -> None:
        """Fill the fields of a plan that say which rows continue a shared prompt."""
        table, answers = [], [0] * len(self.prompts.rows)
        for row, entry in enumerate(self.answers.rows):
            prompt = entry.branches[0].prompt
            if prompt:
                table.append((row, prompt.row, answers[prompt.row], prompt.position))
                answers[prompt.row] += 1
        if table:
            plan.prompts = len(self.prompts.rows)
            plan.members, plan.prompt, plan.place, plan.lengths = torch.tensor(table, device=self.device).T

    def _reads(self) -> list[Read]:
        """Plan the reading of all waiting tokens, one plan per memory that has some, and clear the queue."""
        plans = []
        for memory, waiting in self.unread.items():
            memory.compact()
            if waiting:
                plans.append(self._plan_read(memory, list(waiting.items())))
                waiting.clear()
        return plans

    def _plan_read(self, memory: Memory, feeds: Sequence[tuple[Branch, Sequence[int]]]) -> Read:
        """Give the tokens places in a memory, and let their branches see them."""
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
            starts = [(b.prompt.row, b.prompt.position) if b.prompt else (0, 0) for b in branches]
            row, length = torch.tensor(starts, device=self.device).T
            prompts = (row, length)
        self.counts.prefilled += len(table)
        at = Places(memory, rows, columns)
        return Read(at, tokens, positions, feed, offset, of_row, longest, fresh, order, prompts)

    def _forward(self, plans: Sequence[Step | Read], logits: int) -> Float[Tensor, "n v"]:
        """Run the model over the tokens of all plans. Returns the logits at the last n tokens."""
        tokens = torch.cat([plan.tokens for plan in plans])
        # torch.compile treats length 1 as a special shape: it would compile the model once more for it.
        forward = self.model if len(tokens) == 1 else self.forward
        previous = _pass.set(Pass(self, plans))
        try:
            return forward(
                input_ids=tokens[None],
                attention_mask=NO_MASK,
                position_ids=torch.cat([plan.positions for plan in plans])[None],
                use_cache=False,
                logits_to_keep=logits,
                attention=_attention,
            ).logits[0]
        finally:
            _pass.reset(previous)

    def attend(
        self,
        plans: Sequence[Step | Read],
        query: Float[Tensor, "1 h n d"],
        key: Float[Tensor, "1 k n d"],
        value: Float[Tensor, "1 k n d"],
        layer: Layer,
    ) -> Float[Tensor, "1 n h d"]:
        """Attention of one layer: store all keys and values, then let every query attend to what its branch sees."""
        sizes = [len(plan.tokens) for plan in plans]
        for plan, new_keys, new_values in zip(plans, key[0].split(sizes, 1), value[0].split(sizes, 1), strict=True):
            plan.at.memory.write(layer.index, plan.at.rows, plan.at.columns, new_keys, new_values)
        far = self.prompts.layers.get(layer.index)
        parts = []
        for plan, asking in zip(plans, query[0].split(sizes, 1), strict=True):
            compute = self.attention.attend_step if isinstance(plan, Step) else self.attention.attend_read
            keys, values = plan.at.memory.layers[layer.index]
            parts.append(compute(asking, keys, values, far, plan, layer))
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of one layer in the running forward pass."""
    now = _pass.get()
    return now.engine.attend(now.plans, query, key, value, Layer(layer, scale, window, softcap)).contiguous()


_operator = torch.library.custom_op(
    "parallel_r1::attend",
    _attend,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, int layer, float scale, SymInt? window, float? softcap) -> Tensor",
)


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float, window: Any, softcap: Any) -> Tensor:
    _, heads, tokens, head = query.shape
    return query.new_empty(1, tokens, heads, head)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The `attention` argument of the model's forward pass; see `LocalEngine.attend` for the shapes."""
    # Without torch.compile a direct call is faster than a custom operator.
    attend: Callable[..., Tensor] = _operator if torch.compiler.is_compiling() else _attend
    return attend(query, key, value, module.layer_idx, scale, window, softcap)


def compiled(model: PreTrainedModel) -> Callable[..., Any]:
    """Wrap a model in `torch.compile` for any number of tokens. All engines of a model may use the same result.

    The compiled model uses the model's own weight tensors, so it follows training. Compiling takes half a minute to
    several minutes, depending on the number of layers; torch caches the result on disk for the next run.

    Raises:
        UserError: there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "a C++ compiler, for engine.compile", "none", "install g++ or clang++, or set engine.compile = false"
        ) from error
    return torch.compile(model, dynamic=True)
