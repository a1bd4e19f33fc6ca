"""One answer alone: with four paths, against one chain of as many tokens. The local engine.

A trunk, a fork with paths of one length and a summary, drawn as `isolated` and as `causal_join`; the chain has as many
tokens as all of them together. Fixed before it was run: seconds with paths / seconds of the chain (asked: at most 0.6).
"""

from __future__ import annotations

import dataclasses

from measure import alternate, arguments, endless, generators, plain, policy, prompts, ratio, report
from vllm_forks import PROMPT, requests_of, tame

from parallel_r1.generation.request import Request


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--paths", type=int, default=4)
    options = parser.parse_args()
    rows, times = [], {}
    for name in options.model:
        model = tame(policy(name))
        (request,) = requests_of(model, prompts(model, 1, PROMPT, options.seed), options.paths, options.seed)
        joined = {
            sampler: dataclasses.replace(request, sampling=request.sampling.model_copy(update={"sampler": sampler}))
            for sampler in ("isolated", "causal_join")
        }
        for suffix, generator in generators(model, options, rows=1).items():
            tokens = len(generator.traces([joined["isolated"]])[0].token_ids)
            chain = Request(request.prompt_ids, plain(tokens), "chain")
            chained = generators(endless(model), options, rows=1)[suffix]
            ways = {
                f"{sampler}{suffix}": lambda one=one, generator=generator: generator.traces([one]) and None
                for sampler, one in joined.items()
            }
            ways[f"chain{suffix}"] = lambda chained=chained, chain=chain: chained.traces([chain]) and None
            took = alternate(ways, options.runs)
            times[name + suffix] = took
            rows += [
                {"model": name, "tokens": tokens, **ratio(took, way, f"chain{suffix}")}
                for way in ways
                if not way.startswith("chain")
            ]
    report(options, "alone", "one answer alone", rows, times=times, paths=options.paths)


if __name__ == "__main__":
    main()
