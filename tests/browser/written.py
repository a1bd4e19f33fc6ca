"""Answers written without a model, for pages."""

import random
from dataclasses import replace
from itertools import islice

from parallel_r1 import models
from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.schemas import SCHEMAS
from parallel_r1.answers.trace import TRUNK, Span, Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.countdown import EASY

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> \u2028 \0 \ud800 &lt; "
    "<svg onload='window.hacked = 3'> <a href='javascript:window.hacked=4'>"
)
SCROLL = """async () => {
          const list = document.querySelector('.list'), times = [];
          let last = performance.now();
          for (let i = 0; i < 150; i += 1) {
            list.scrollTop += 700;
            await new Promise(requestAnimationFrame);
            times.push(performance.now() - last);
            last = performance.now();
          }
          return times.sort((a, b) => a - b);
        }"""
"""Scrolls the list for 150 frames; their milliseconds, sorted."""
OPEN = """async () => {
          const {viewer} = document.querySelector('[data-viewer]'), times = [];
          for (const at of [1, 4000, 9999, 77]) {
            const start = performance.now();
            await viewer.open(at);
            times.push(performance.now() - start);
          }
          return times;
        }"""
"""The milliseconds until an answer is shown, for some of them."""


def rollout_of(policy, text, problem, rng, **changes):
    trace = parse(policy.encode(text), policy.tags)
    spans = tuple(
        replace(span, logprobs=tuple(-(rng.expovariate(1) ** 3) for _ in span.token_ids)) if span.sampled else span
        for span in trace.spans
    )
    trace = replace(trace, prompt_ids=(1,), spans=spans, sampler="isolated", **changes)
    correct = EASY.verify([problem], [text])[0] if problem.source == EASY.name else True
    total, texts = len(trace.token_ids), trace.texts(policy.decode)
    return Rollout(problem, trace, texts, correct, latency(trace), total, {"accuracy": float(correct)})


def countdown_answers(policy, count):
    """Answers to countdown problems with a fork or without, by its teacher; one in five is cut and malformed."""
    rng = random.Random(1)
    answers = []
    for problem in islice(EASY.problems("train", 0), count):
        text = None
        while text is None:
            fork = rng.random() < 0.8
            text = EASY.parallel_answer(problem, rng, 6, 1, 1) if fork else EASY.sequential_answer(problem, rng, 3)
        cut = rng.random() < 0.2
        finish = {"finish": "length"} if cut else {}
        answers.append(rollout_of(policy, text[: len(text) * 2 // 3] if cut else text, problem, rng, **finish))
    return answers


def nested(policy, name):
    schema, rng = SCHEMAS[name], random.Random(2)
    inner = schema.write(["1+2=3", "4+5=9, 9-1=8"], "three", ["a", "b"]) if schema.nests else "x"
    text = "Look. " + schema.write([f"first {inner} so 3", "second"], "both", ["1: a", "2: b"]) + " And on."
    tokenizer = models.train_tokenizer([text], 400, 1, schema)
    own = Policy(None, tokenizer, models.tag_ids(tokenizer))
    return rollout_of(own, text, Problem(name, f"In {name}\n", "1", "other"), rng)


def long_answer():
    """An answer of 4,200 tokens with four paths."""
    lengths = (900, *[700] * 4, 500)
    addresses = (TRUNK, *(((0, path),) for path in range(4)), TRUNK)
    spans = tuple(Span((1,) * length, address, True) for length, address in zip(lengths, addresses, strict=True))
    texts = tuple("word " * length for length in lengths)
    trace = Trace((1,), spans, sampler="isolated")
    return Rollout(Problem("p", "long", "1", "other"), trace, texts, True, latency(trace), sum(lengths))
