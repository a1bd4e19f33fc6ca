"""How much faster a step of the engine could be if its attention were: 64 answers of equal length, the case `equal` of
`engine.py`.

* `free attention`: the engine as it is, but attention costs nothing (its result is the query, which is wrong). The
  ratio to `generate` is the most that any attention could reach.
* `attention in a graph`: the operations of the attention of a step alone, one layer after the other, as the engine
  calls them and compiled into one graph. Their difference is what moving attention into the graph of a compiled model
  could save at best.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from engine import cases
from measure import alternate, arguments, endless, generate, generators, plain, policy, ratio, report
from products import clocked
from torch import Tensor

from parallel_r1.generation.local import cpu
from parallel_r1.generation.local.kv_pool import BLOCK
from parallel_r1.generation.request import Request
from parallel_r1.models.policy import Policy

CALLS = 40
"""Steps that one time of attention alone is of."""


def with_attention(attend: Callable[..., Tensor], act: Callable[[], Any]) -> None:
    """Draw with another attention of a step."""
    kept, cpu.attend_step = cpu.attend_step, attend
    try:
        act()
    finally:
        cpu.attend_step = kept


def free(query: Tensor, *_: object) -> Tensor:
    return query.transpose(0, 1)


def layers_of(policy: Policy, answers: int, held: int) -> tuple[Callable[..., Tensor], list[Any]]:
    """The attention of all layers in a step, as `cpu.attend_step` computes it where no block is shared, and its
    inputs: so many answers with so many tokens each."""
    config = policy.model.config
    heads, shared, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    blocks = answers * -(-held // BLOCK)
    owner, scale = torch.arange(blocks) % answers, head**-0.5 * cpu.LOG2E
    bags = owner.argsort(stable=True)
    starts = torch.arange(answers) * (blocks // answers)
    # Keys and values one by one: a graph copies a tensor of which it changes only a part through a view.
    pool = [torch.randn(blocks, shared, BLOCK, head) for _ in range(2 * config.num_hidden_layers)]
    new = [torch.randn(heads, answers, head), *torch.randn(2, answers, shared, head)]
    places = torch.arange(answers), torch.zeros(answers, dtype=torch.long)

    def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *pool: Tensor) -> Tensor:
        result = torch.zeros(())
        for keys, values in zip(pool[::2], pool[1::2], strict=True):
            keys[places[0], :, places[1]], values[places[0], :, places[1]] = key, value
            asking = query.transpose(0, 1).contiguous().index_select(0, owner).view(blocks * shared, -1, head)
            scores = torch.baddbmm(bias, asking, keys.view(-1, BLOCK, head).transpose(1, 2), alpha=scale)
            weights = scores.exp2()
            rows = torch.bmm(weights, values.view(-1, BLOCK, head)).view(blocks, -1)
            out = torch.embedding_bag(rows, bags, starts, False, cpu.SUM)[0].view(answers, heads, head)
            total = torch.embedding_bag(weights.sum(-1).view(blocks, heads), bags, starts, False, cpu.SUM)[0]
            low, high = total.aminmax()
            result = result + out / total[..., None] + 0 * (low + high)
        return result

    return attention, [*new, torch.zeros(blocks * shared, 1, BLOCK), *pool]


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__).parse_args()
    rows: list[dict[str, object]] = []
    details = []
    for name in options.model:
        drawn = endless(policy(name))
        case = cases(drawn, options)[0]
        (tokens,) = set(case.lengths)
        requests = [Request(prompt, plain(tokens), str(index)) for index, prompt in enumerate(case.prompts)]
        real = cpu.attend_step
        by_generate = partial(generate, drawn, case.prompts, tokens)
        ways: dict[str, Callable[[], None]] = {"generate": partial(with_attention, real, by_generate)}
        for suffix, generator in generators(drawn, options, rows=len(requests)).items():
            act = partial(generator.traces, requests)
            ways["engine" + suffix] = partial(with_attention, real, act)
            ways["free attention" + suffix] = partial(with_attention, free, act)
        times = alternate(ways, options.runs)
        at = {"model": name}
        rows += [at | ratio(times, "generate", way) for way in ways if way != "generate"]
        attention, inputs = layers_of(drawn, len(requests), 24 + tokens // 2)
        compiled, calls = torch.compile(attention, dynamic=True), 2 if options.quick else CALLS
        torch.testing.assert_close(compiled(*inputs), attention(*inputs), rtol=1e-4, atol=1e-4)
        alone = {"attention": attention, "attention in a graph": compiled}
        steps = {way: clocked(lambda inputs, act=act: act(*inputs), inputs, calls) for way, act in alone.items()}
        single = alternate(steps, options.runs)
        rows.append(at | ratio(single, *alone))
        details.append(at | {"steps": tokens, "seconds": times | single})
    report(options, "floor", "What a step could save", rows, details=details)


if __name__ == "__main__":
    main()
