"""Answers with forks: the engine against the way in which a causal server is driven to think in parallel.

That way, as in the released code of arXiv 2509.07980, is a loop of fresh calls: `generate` draws the trunk of every
answer up to `<Parallel>`; one call draws all paths of all answers, each after the whole text so far; and the text, now
with all paths, is read once more to go on. No call keeps keys and values for the next. It gets its best case here: all
answers are in step, so nothing is padded, no call waits, and summary and next trunk are one call.

Both sides draw the same number of tokens at the same places: a trunk, a fork, a summary, and all of it once more. Tags
stand at fixed places, where what was drawn is replaced; elsewhere a hook on the model's head takes tags and the end of
text away, on both sides. The engine draws as `isolated` and as `causal_join`; the latter is what the loop computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from measure import alternate, arguments, generate, policy, prompts, ratio, report

from parallel_r1.config import Budget, Sampling
from parallel_r1.engines.local import LocalEngine
from parallel_r1.fork_join import draw
from parallel_r1.models import Policy
from parallel_r1.trace import FORK_OPEN, PATH_CLOSE, PATH_OPEN, SUMMARY_CLOSE, Address, Sampler, Tags

FORKS = 2
BLIND: tuple[Sampler, ...] = ("isolated", "causal_join")
"""Samplers that run the paths blind to each other."""


@dataclass(frozen=True)
class Shape:
    """Of every answer: tokens drawn in the trunk before each fork, in each path and in each summary, without tags."""

    answers: int
    prompt: int
    trunk: int
    path: int
    summary: int
    paths: int

    @property
    def drawn(self) -> int:
        """Tokens that cost a forward pass and a draw: tags too, where the policy writes them, and the end of text."""
        each = self.trunk + 1 + self.paths * (self.path + 1) + self.summary + 1
        return self.answers * (FORKS * each + 1)

    @property
    def total(self) -> int:
        """The same and `<Path>`, and what the runtime writes at a join: three tokens."""
        return self.drawn + self.answers * FORKS * (self.paths + 3)


def by_engine(policy: Policy, shape: Shape, prompts: list[list[int]], sampler: Sampler, seed: int) -> None:
    """All answers in one drawing."""
    ids, eos = policy.tags.ids, next(iter(policy.tags.eos))
    trunk: list[int | None] = []
    for _ in range(FORKS):
        trunk += [None] * shape.trunk + [ids[FORK_OPEN]] + [None] * len(policy.tags.join)
        trunk += [None] * shape.summary + [ids[SUMMARY_CLOSE]]
    trunk.append(eos)

    def force(answer: int, address: Address, size: int) -> int | None:
        if not address:
            return trunk[size]
        return ids[PATH_CLOSE] if size == 1 + shape.path else None  # the first is <Path>

    most = shape.total  # of one answer it is less: budgets must not matter
    budget = Budget(total=most, critical_path=most, path=most, forks=FORKS)
    sampling = Sampling(sampler=sampler, paths=shape.paths, rows=shape.answers, budget=budget)
    engine = LocalEngine(policy.model)
    traces = draw(engine, policy.tags, prompts, sampling, seed, force=force)
    tags = shape.answers * (FORKS * (2 + shape.paths) + 1)
    assert sum(len(span.token_ids) for trace in traces for span in trace.spans if span.sampled) == shape.drawn - tags
    assert sum(len(trace.token_ids) for trace in traces) == shape.total
    assert all(trace.forks == FORKS and not trace.defects for trace in traces)


def by_loop(policy: Policy, shape: Shape, prompts: list[list[int]]) -> None:
    """Fresh calls of `generate`, all answers in each."""
    tags, ids, drawn = policy.tags, policy.tags.ids, 0
    texts = [list(prompt) for prompt in prompts]

    def extend(last: dict[int, int], count: int) -> None:
        """Go on in every answer; `last` tells which drawn token is replaced by which tag."""
        nonlocal drawn
        for text, new in zip(texts, generate(policy, texts, count), strict=True):
            for place, tag in last.items():
                new[place] = tag
            text += new
            drawn += len(new)

    extend({shape.trunk: ids[FORK_OPEN]}, shape.trunk + 1)
    for fork in range(FORKS):
        starts = [[*text, ids[PATH_OPEN]] for text in texts]
        paths = generate(policy, starts, shape.path + 1, copies=shape.paths)
        drawn += sum(map(len, paths))
        for number, text in enumerate(texts):
            for path in paths[number * shape.paths : (number + 1) * shape.paths]:
                text += [ids[PATH_OPEN], *path[:-1], ids[PATH_CLOSE]]
            text += tags.join
        if fork + 1 < FORKS:
            after = {shape.summary: ids[SUMMARY_CLOSE], shape.summary + 1 + shape.trunk: ids[FORK_OPEN]}
            extend(after, shape.summary + shape.trunk + 2)
        else:
            extend({shape.summary: ids[SUMMARY_CLOSE], shape.summary + 1: min(tags.eos)}, shape.summary + 2)
    assert drawn == shape.drawn
    assert sum(map(len, texts)) == shape.total + shape.answers * shape.prompt


def without_tags(policy: Policy, tags: Tags) -> None:
    """Give the tags and the end of text probability 0."""
    never = torch.tensor([*tags.ids.values(), *tags.eos])
    policy.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, never, torch.finfo(logits.dtype).min)
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--paths", type=int, nargs="+", default=[2, 4, 8], help="paths of a fork")
    parser.add_argument("--answers", type=int, default=8, help="at a time; 8 with 8 paths are 64 rows of `generate`")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    details = []
    for name in options.model:
        subject = policy(name)
        without_tags(subject, subject.tags)
        for paths in options.paths:
            shape = Shape(options.answers, 64, trunk=32, path=48, summary=24, paths=paths)
            if options.quick:
                shape = Shape(2, 8, trunk=3, path=4, summary=3, paths=paths)
            questions = prompts(subject, shape.answers, shape.prompt, options.seed)
            torch.manual_seed(options.seed)
            ways: dict[str, Callable[[], None]] = {
                sampler: partial(by_engine, subject, shape, questions, sampler, options.seed) for sampler in BLIND
            }
            times = alternate({**ways, "loop": partial(by_loop, subject, shape, questions)}, options.runs)
            for sampler in ways:
                rows.append({"model": name, "paths": paths, **ratio(times, "loop", sampler)})
            details.append({"model": name, "shape": vars(shape), "drawn": shape.drawn, "seconds": times})
    report(options, "forks", f"{options.answers} answers with {FORKS} forks each", rows, details=details)


if __name__ == "__main__":
    main()
