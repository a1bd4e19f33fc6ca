"""Answers with forks: the engine against the way in which a causal server is driven to think in parallel.

That way, as in the released code of arXiv 2509.07980, is a loop of fresh calls: `generate` draws the trunk of every
answer up to `<Parallel>`; a call for each path draws this path of all answers, after the whole text so far; and the
text, now with all paths, is read once more to go on. No call keeps keys and values for the next. Summary and next trunk
are one call. A better loop, `batched loop`, draws all paths of all answers in one call. In the case `equal` the loops
have their best: all answers are in step, so nothing is padded and no call waits. In `unequal`, as where a policy
decides for itself, the length of every trunk, path and summary is drawn, at most 4 times the median, and a call lasts
as long as its longest text.

Both sides draw the same number of tokens at the same places: a trunk, a fork, a summary, and all of it once more. Tags
stand at fixed places, where what was drawn is replaced; elsewhere a hook on the model's head takes tags and the end of
text away, on both sides. The engine draws as `isolated` and as `causal_join`; the latter is what the loop computes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from measure import alternate, arguments, generate, generators, policy, prompts, ratio, report

from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.answers.syntax import Tags
from parallel_r1.answers.trace import Address, Sampler
from parallel_r1.generation.generator import Generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.models.policy import Policy

FORKS = 2
BLIND: tuple[Sampler, ...] = ("isolated", "causal_join")
"""Samplers that run the paths blind to each other."""


FORK_OPEN, (PATH_OPEN, PATH_CLOSE), SUMMARY_CLOSE = DEFAULT.opener, DEFAULT.path, DEFAULT.pairs["summary"][1]


@dataclass(frozen=True)
class Part:
    """A fork of one answer: tokens drawn in the trunk before it, in each path and in its summary, without tags."""

    trunk: int
    paths: tuple[int, ...]
    summary: int


Answer = tuple[Part, ...]


def plan(answers: int, trunk: int, path: int, summary: int, paths: int, uneven: bool, seed: int) -> list[Answer]:
    """What to draw in every answer: the lengths as given, or log-normal with these medians, at most 4 times them."""
    drawing = random.Random(seed)

    def length(median: int) -> int:
        return min(4 * median, max(1, round(median * drawing.lognormvariate(0, 0.7)))) if uneven else median

    return [
        tuple(Part(length(trunk), tuple(length(path) for _ in range(paths)), length(summary)) for _ in range(FORKS))
        for _ in range(answers)
    ]


def drawn_tokens(answers: Sequence[Answer]) -> int:
    """Tokens that cost a forward pass and a draw: tags too, where the policy writes them, and the end of text."""
    return sum(1 + sum(p.trunk + sum(p.paths) + len(p.paths) + p.summary + 2 for p in answer) for answer in answers)


def total_tokens(answers: Sequence[Answer]) -> int:
    """The same and `<Path>`, and what the runtime writes at a join: three tokens."""
    return drawn_tokens(answers) + sum(len(part.paths) + 3 for answer in answers for part in answer)


def by_engine(
    policy: Policy,
    answers: list[Answer],
    prompts: list[list[int]],
    sampler: Sampler,
    seed: int,
    generator: Generator,
) -> None:
    """All answers in one drawing."""
    ids, eos = policy.tags.ids, next(iter(policy.tags.eos))
    trunks: list[list[int | None]] = []
    for answer in answers:
        trunk: list[int | None] = []
        for part in answer:
            trunk += [None] * part.trunk + [ids[FORK_OPEN]] + [None] * len(policy.tags.join)
            trunk += [None] * part.summary + [ids[SUMMARY_CLOSE]]
        trunks.append([*trunk, eos])

    def force(answer: int, address: Address, size: int) -> int | None:
        if not address:
            return trunks[answer][size]
        fork, path = address[0]
        return ids[PATH_CLOSE] if size == 1 + answers[answer][fork].paths[path] else None  # the first is <Path>

    most = total_tokens(answers)  # of one answer it is less: budgets must not matter
    budget = Budget(total=most, critical_path=most, path=most, forks=FORKS)
    sampling = Sampling(sampler=sampler, paths=len(answers[0][0].paths), budget=budget)
    requests = [
        Request(prompt, sampling, f"{seed}/{index}", partial(force, index)) for index, prompt in enumerate(prompts)
    ]
    traces = generator.traces(requests)
    tags = sum(1 + sum(len(part.paths) + 2 for part in answer) for answer in answers)
    assert sum(len(span.token_ids) for t in traces for span in t.spans if span.sampled) == drawn_tokens(answers) - tags
    assert sum(len(trace.token_ids) for trace in traces) == total_tokens(answers)
    assert all(trace.forks == FORKS and not trace.defects for trace in traces)


def by_loop(policy: Policy, answers: list[Answer], prompts: list[list[int]], together: bool) -> None:
    """Fresh calls of `generate`, all answers in each, and all paths too if `together`."""
    tags, ids, drawn = policy.tags, policy.tags.ids, 0
    texts = [list(prompt) for prompt in prompts]

    def call(starts: Sequence[Sequence[int]], wanted: Sequence[int]) -> list[list[int]]:
        """So many tokens after each text; what is longer than wanted is cut."""
        nonlocal drawn
        drawn += sum(wanted)
        return [new[:count] for new, count in zip(generate(policy, starts, max(wanted)), wanted, strict=True)]

    def extend(ends: Sequence[dict[int, int]]) -> None:
        """Go on in every answer up to its last tag; `ends` tells which drawn token is replaced by which tag."""
        for text, new, tags in zip(texts, call(texts, [1 + max(tags) for tags in ends]), ends, strict=True):
            for place, tag in tags.items():
                new[place] = tag
            text += new

    extend([{answer[0].trunk: ids[FORK_OPEN]} for answer in answers])
    for fork in range(FORKS):
        every = range(len(answers[0][fork].paths))
        starts = [[*text, ids[PATH_OPEN]] for text in texts]
        for several in [every] if together else [[path] for path in every]:
            wanted = [answer[fork].paths[path] + 1 for path in several for answer in answers]
            for place, path in enumerate(call(starts * len(several), wanted)):
                texts[place % len(texts)] += [ids[PATH_OPEN], *path[:-1], ids[PATH_CLOSE]]
        for text in texts:
            text += tags.join
        last = fork + 1 == FORKS
        extend(
            [
                {answer[fork].summary: ids[SUMMARY_CLOSE], answer[fork].summary + 1: min(tags.eos)}
                if last
                else {
                    answer[fork].summary: ids[SUMMARY_CLOSE],
                    answer[fork].summary + 1 + answer[fork + 1].trunk: ids[FORK_OPEN],
                }
                for answer in answers
            ]
        )
    assert drawn == drawn_tokens(answers)
    assert sum(map(len, texts)) == total_tokens(answers) + sum(map(len, prompts))


def without_tags(policy: Policy, tags: Tags) -> None:
    """Give the tags and the end of text probability 0."""
    never = torch.tensor([*tags.ids.values(), *tags.eos])
    policy.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, never.to(logits.device), torch.finfo(logits.dtype).min)
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--paths", type=int, nargs="+", default=[2, 4, 8], help="paths of a fork")
    parser.add_argument("--answers", type=int, default=8, help="at a time; 8 with 8 paths are 64 rows of `generate`")
    parser.add_argument("--case", nargs="+", default=["equal", "unequal"], choices=["equal", "unequal"])
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    details = []
    for name in options.model:
        subject = policy(name)
        without_tags(subject, subject.tags)
        compiled_or_not = generators(subject, options)
        for paths, case in product(options.paths, options.case):
            sizes = (2, 3, 4, 3) if options.quick else (options.answers, 32, 48, 24)
            answers = plan(*sizes, paths, case == "unequal", options.seed)
            questions = prompts(subject, len(answers), 8 if options.quick else 64, options.seed)
            torch.manual_seed(options.seed)
            ways: dict[str, Callable[[], None]] = {
                f"{sampler}{name}": partial(by_engine, subject, answers, questions, sampler, options.seed, generator)
                for name, generator in compiled_or_not.items()
                for sampler in BLIND
            }
            loops = {
                name: partial(by_loop, subject, answers, questions, together)
                for name, together in (("loop", False), ("batched loop", True))
            }
            times = alternate({**ways, **loops}, options.runs)
            for loop, way in product(loops, ways):
                rows.append({"model": name, "paths": paths, "case": case, **ratio(times, loop, way)})
            about = {"model": name, "paths": paths, "case": case, "drawn": drawn_tokens(answers)}
            details.append({**about, "seconds": times})
    report(options, "forks", f"{options.answers} answers with {FORKS} forks each", rows, details=details)


if __name__ == "__main__":
    main()
