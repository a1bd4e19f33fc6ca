"""Answers with forks drawn with vLLM: what the forks cost, and what the released way of driving vLLM costs.

All ways draw the same number of tokens at the same places, with one engine in this process: a trunk, a fork with paths
of one length, and a summary. `forks` is the generator of this project. `texts` asks the same vLLM for the same texts
with the same numbers of tokens, knows nothing of forks, and asks for all texts of a stage at once; every answer is in
step, so no text waits for another. `calls` is the released way: a call for the trunks of all answers, one for each path
of all answers, one for the summaries, and everything is read again in each, for nothing keeps the cache.

What is compared, fixed before it was run: forks / texts (asked: at most 1.05) and calls / forks (asked: at least 2 with
4 paths). Run by `make bench-vllm`, in the environment of vLLM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from measure import alternate, arguments, policy, prompts, ratio, report

from parallel_r1.answers.trace import Address
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.generation.vllm.client import Call
from parallel_r1.generation.vllm.in_process import InProcess, in_process
from parallel_r1.models.policy import Policy

ANSWERS, PROMPT, TRUNK, PATH, SUMMARY = 32, 96, 32, 64, 32
MEMORY = "1GB"


def tame(policy: Policy) -> Policy:
    """The policy that never draws a tag or the end of text by chance: they are given where they belong."""
    tags = policy.tags
    rest = (*tags.missing, *tags.ids.values(), *tags.eos)
    policy.model.config.max_position_embeddings = 2048
    return dataclasses.replace(policy, tags=dataclasses.replace(tags, missing=rest))


def requests_of(policy: Policy, asked: Sequence[list[int]], paths: int, seed: int) -> list[Request]:
    """Answers in which tags are forced at fixed places."""
    tags = policy.tags
    opener, close, end = tags.opener, tags.closing("path"), next(iter(tags.eos))
    join = len(tags.join)

    def force(address: Address, size: int) -> int | None:
        if address:
            return close if size == 1 + PATH else None
        if size == TRUNK:
            return opener
        return end if size == TRUNK + 1 + join + SUMMARY else None

    assert close is not None
    most = TRUNK + 1 + paths * (PATH + 2) + join + SUMMARY + 1
    budget = Budget(total=most + 10, critical_path=most + 10, path=PATH + 10, forks=1)
    sampling = Sampling(sampler="causal_join", paths=paths, budget=budget)
    return [Request(prompt, sampling, f"{seed}/{index}", force) for index, prompt in enumerate(asked)]


def draw(
    engine: InProcess, policy: Policy, texts: Sequence[Sequence[int]], most: int, sampling: Sampling
) -> list[list[int]]:
    """So many tokens after each text, all at once."""
    for index, text in enumerate(texts):
        engine.start(
            Call(f"t{index}", index, text, sampling, index, stops=(), most=most, forbidden=policy.tags.missing)
        )
    drawn: list[list[int]] = [[] for _ in texts]
    left = len(texts)
    while left:
        for piece in engine.poll():
            drawn[int(piece.key[1:])] += piece.tokens
            left -= piece.ended
    return drawn


def stages(
    policy: Policy,
    asked: Sequence[list[int]],
    paths: int,
    call: Callable[[Sequence[list[int]], int], list[list[int]]],
    together: bool,
) -> None:
    """Trunk, paths and summary of every answer, each stage by calls."""
    tags = policy.tags
    trunks = [[*prompt, *new] for prompt, new in zip(asked, call(asked, TRUNK), strict=True)]
    starts = [[*trunk, tags.opener, *tags.stub] for trunk in trunks]
    drawn: list[list[list[int]]] = [[] for _ in asked]
    if together:
        new = call([start for start in starts for _ in range(paths)], PATH)
        drawn = [new[at : at + paths] for at in range(0, len(new), paths)]
    else:
        for _ in range(paths):
            for answer, new_path in zip(drawn, call(starts, PATH), strict=True):
                answer.append(new_path)
    close = tags.closing("path")
    assert close is not None
    texts = []
    for trunk, own in zip(trunks, drawn, strict=True):
        inside = [token for path in own for token in [*tags.stub, *path, close]]
        texts.append([*trunk, tags.opener, *inside, *tags.join])
    call(texts, SUMMARY)


class Bench:
    """One model, drawn in every way."""

    def __init__(self, name: str, answers: int, paths: int, seed: int) -> None:
        self.policy, self.paths, self.answers = tame(policy(name)), paths, answers
        self.asked = prompts(self.policy, answers, PROMPT, seed)
        self.settings = Engine(kind="vllm", memory=MEMORY, rows=256)
        self.generator = make_generator(self.policy, self.settings)
        self.requests = requests_of(self.policy, self.asked, paths, seed)

    def forget(self) -> InProcess:
        """The engine, with nothing of an earlier round in its cache."""
        engine = in_process(self.policy, self.settings)
        engine.engine.reset_prefix_cache()
        return engine

    def forks(self) -> None:
        self.forget()
        traces = self.generator.traces(self.requests)
        sampled = sum(len(span.token_ids) for trace in traces for span in trace.spans if span.sampled)
        assert sampled == self.answers * (TRUNK + self.paths * PATH + SUMMARY)
        assert all(trace.forks == 1 and trace.finish == "stop" for trace in traces)

    def texts(self) -> None:
        engine = self.forget()
        self._stages(lambda texts, most: self._draw(engine, texts, most), together=True)

    def calls(self) -> None:
        self._stages(lambda texts, most: self._draw(self.forget(), texts, most), together=False)

    def _draw(self, engine: InProcess, texts: Sequence[list[int]], most: int) -> list[list[int]]:
        return draw(engine, self.policy, texts, most, self.requests[0].sampling)

    def _stages(self, call: Callable[[Sequence[list[int]], int], list[list[int]]], together: bool) -> None:
        stages(self.policy, self.asked, self.paths, call, together)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--paths", type=int, default=4)
    parser.add_argument("--answers", type=int, default=ANSWERS, help="at a time")
    options = parser.parse_args()
    answers = 4 if options.quick else options.answers
    rows, times = [], {}
    for name in options.model:
        bench = Bench(name, answers, options.paths, options.seed)
        took = alternate({"forks": bench.forks, "texts": bench.texts, "calls": bench.calls}, options.runs)
        times[name] = took
        rows += [{"model": name, **ratio(took, *pair)} for pair in (("forks", "texts"), ("calls", "forks"))]
    shape = {"answers": answers, "prompt": PROMPT, "trunk": TRUNK, "path": PATH, "summary": SUMMARY}
    report(options, f"vllm_forks-{answers}", "forks over vLLM", rows, times=times, shape=shape, paths=options.paths)


if __name__ == "__main__":
    main()
