"""The local engine: a `Backend` that runs any Hugging Face causal model with rotary positions in this process.

The KV cache is one `Pool` of blocks. No path reads its prefix again, and a join of the `isolated` sampler computes
nothing. The model gets all tokens of a step as one flat sequence: tokens that are only read, and one token per branch
whose logits are needed. Attention alone knows to which branch a token belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.local import cpu as batched
from parallel_r1.generation.local import cuda as flex
from parallel_r1.generation.local.capacity import most_blocks
from parallel_r1.generation.local.kv_pool import Branch, Pool
from parallel_r1.generation.local.passes import Layer, Step
from parallel_r1.generation.local.reading import Read, attend_read, plan_read
from parallel_r1.generation.settings import Sampling
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
        attention: the module that computes the attention of a step; `batched` on a CPU and `flex` on CUDA if None.
        forward: runs the model; the result of `compiled`, or the model itself if None.
        most: the most blocks of the KV cache; None for no limit.

    Raises:
        UserError: the model's attention was not replaced by that of `models.attention`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention: ModuleType | None = None,
        *,
        forward: Callable[..., Any] | None = None,
        most: int | None = None,
    ) -> None:
        check_attention(model)
        self.attention = attention or (flex if model.device.type == "cuda" else batched)
        self.model = model
        self.forward = model if forward is None else forward
        self.device = model.device
        self.pool = Pool(model.device, most=most)
        self.shared: dict[tuple[int, ...], Branch] = {}
        # Tokens to read wait for the next step, so that they need no forward pass of their own.
        self.prompts: dict[Branch, list[int]] = {}
        self.unread: dict[Branch, list[int]] = {}
        self.counts = Counts()

    @torch.inference_mode()
    def open(self, prompts: Sequence[Sequence[int]], shared: Sequence[bool]) -> list[Branch]:
        trunks = []
        for prompt, share in zip(prompts, shared, strict=True):
            key, before = tuple(prompt), prompt[:-1]
            if before and (share or key in self.shared):
                if key not in self.shared:
                    self.shared[key] = self.pool.open()
                    self._note(self.prompts, self.shared[key], before)
                self.shared[key].users += 1
                trunks.append(self.pool.open(self.shared[key], len(before)))
            else:
                trunks.append(self.pool.open())
                self._note(self.unread, trunks[-1], before)
        return trunks

    @torch.inference_mode()
    def fork(self, trunk: Branch, paths: int) -> list[Branch]:
        if trunk in self.unread:  # paths share what has been read
            self._forward(self._reads(), 1)
        return self.pool.fork(trunk, paths)

    @torch.inference_mode()
    def join(self, trunk: Branch, paths: Sequence[Branch], keep: int) -> None:
        if any(path in self.unread for path in paths):
            self._forward(self._reads(), 1)
        self.counts.hold(-self.pool.join(trunk, paths, keep))

    def read(self, feeds: Sequence[tuple[Branch, Sequence[int]]]) -> None:
        for branch, tokens in feeds:
            self._note(self.unread, branch, tokens)

    @torch.inference_mode()
    def close(self, trunk: Branch) -> None:
        self._free(self.unread, trunk)
        if trunk.prompt:
            trunk.prompt.users -= 1

    @torch.inference_mode()
    def trim(self) -> None:
        for key in [key for key, prompt in self.shared.items() if not prompt.users]:
            self._free(self.prompts, self.shared.pop(key))

    def fits(self, new: Sequence[int], feeds: Iterable[Branch]) -> bool:
        most, size = self.pool.most, self.pool.block
        if most is None:
            return True
        waiting = {**self.prompts, **self.unread}
        grow = {branch: len(tokens) for branch, tokens in waiting.items()}
        for branch in feeds:
            grow[branch] = grow.get(branch, 0) + 1
        blocks = sum(-(-(branch.tokens + more) // size) - len(branch.blocks) for branch, more in grow.items())
        return self.pool.used + blocks + sum(-(-tokens // size) for tokens in new) <= most

    def holds(self, prompt: int, sampling: Sampling) -> bool:
        budget = sampling.budget
        need = most_blocks(prompt, budget.total, sampling.widest, budget.depth)
        return self.pool.most is None or need <= self.pool.most

    def _note(self, waiting: dict[Branch, list[int]], branch: Branch, tokens: Sequence[int]) -> None:
        """Queue tokens for the next step to read. They count as tokens in the KV cache from now on."""
        if tokens:
            waiting.setdefault(branch, []).extend(tokens)
            self.counts.hold(len(tokens))

    def _free(self, waiting: dict[Branch, list[int]], trunk: Branch) -> None:
        """Free an answer or a shared prompt, and drop its tokens that wait to be read."""
        for branch in trunk.answer:
            self.counts.hold(-len(waiting.pop(branch, ())))
        self.counts.hold(-self.pool.close(trunk))

    @torch.inference_mode()
    def step(self, feeds: Sequence[tuple[Branch, int]]) -> Float[Tensor, "n v"]:
        self.pool.fit()
        reads = self._reads()
        branches = [branch for branch, _ in feeds]
        table = self.pool.place((branch, 1) for branch in branches)
        numbers = torch.from_numpy(np.stack([[token for _, token in feeds], *table])).to(self.device)
        self.counts.decoded += len(feeds)
        self.counts.hold(len(feeds))
        return self._forward([*reads, Step(self.pool, branches, *numbers)], len(feeds))

    def _reads(self) -> list[Read]:
        """Plan the reading of all waiting tokens, prompts before what continues them, and clear the queue."""
        plans = []
        for waiting in (self.prompts, self.unread):
            if waiting:
                plans.append(plan_read(self.pool, list(waiting.items())))
                self.counts.prefilled += len(plans[-1].tokens)
                waiting.clear()
        return plans

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
        if len(plans) == 1 and isinstance(plans[0], Step):  # almost every pass
            (plan,) = plans
            keys, values = self.pool.write(layer.index, plan.blocks, plan.places, key[0], value[0])
            return self.attention.attend_step(query[0], keys, values, plan, layer)[None]
        sizes = [len(plan.tokens) for plan in plans]
        new = list(zip(plans, *(part[0].split(sizes, 1) for part in (query, key, value)), strict=True))
        for plan, _, new_keys, new_values in new:
            keys, values = self.pool.write(layer.index, plan.blocks, plan.places, new_keys, new_values)
        parts = []
        for plan, asking, new_keys, new_values in new:
            if isinstance(plan, Step):
                parts.append(self.attention.attend_step(asking, keys, values, plan, layer))
            else:
                parts.append(attend_read(asking, new_keys, new_values, keys, values, plan, layer))
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


# Defined by hand: a call of `torch.library.custom_op` takes twice the time.
_library = torch.library.Library("parallel_r1", "FRAGMENT")
_library.define(
    "attend(Tensor query, Tensor key, Tensor value, int layer, float scale, SymInt? window, float? softcap) -> Tensor"
)
_library.impl("attend", _attend, "CompositeExplicitAutograd")


@torch.library.register_fake("parallel_r1::attend", lib=_library)
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
    attend: Callable[..., Tensor] = torch.ops.parallel_r1.attend if torch.compiler.is_compiling() else _attend
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
