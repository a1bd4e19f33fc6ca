"""Hand-made answers and runs for the tests of analyses."""

import json

from parallel_r1.answers.rollout import Rollout, write_jsonl
from parallel_r1.answers.trace import TRUNK, Span, Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.tasks.countdown import EASY

PROBLEM = EASY.problem((3, 5, 7), 22)
RIGHT, OTHER = "3*5=15, 15+7=22 yes: 3*5+7", "5*3=15, 7+15=22 yes: 7+5*3"
WRONG, FAILED = "3+5=8, 8+7=15 yes: 3+5+7", "3*7=21, 21-5=16 no"


def answer(paths, end="", correct=True, *, before="", summary="s", problem=PROBLEM, terms=None, cut=(), finish="stop"):
    """An answer with at most one fork; a token for every character, tags one token.

    Args:
        paths: their texts; none for an answer without a fork.
        end: text after the summary.
        cut: numbers of the paths that the runtime closes.
    """
    parts = [(before, TRUNK, True), ("<Parallel>", TRUNK, True)] if paths else [(before, TRUNK, True)]
    for number, text in enumerate(paths):
        address = ((0, number),)
        parts += [("<Path>", address, False), (text, address, True), ("</Path>", address, number not in cut)]
    parts += [("</Parallel>\n<Summary>", TRUNK, False), (summary, TRUNK, True), ("</Summary>", TRUNK, True)][
        : 3 * bool(paths)
    ]
    return rollout([*parts, (end, TRUNK, True)], correct, problem=problem, terms=terms, finish=finish)


def rollout(parts, correct=True, *, problem=PROBLEM, terms=None, finish="stop"):
    """A judged answer of (text, address, sampled); a token for every character, tags one token."""
    parts = [part for part in parts if part[0]]
    spans = tuple(
        Span((1,) * (1 if text.startswith("<") else len(text)), address, sampled) for text, address, sampled in parts
    )
    trace = Trace((1,), spans, finish, "isolated")
    texts = tuple(text for text, _, _ in parts)
    return Rollout(problem, trace, texts, correct, latency(trace), len(trace.token_ids), terms)


def write_run(folder, steps, metrics=()):
    """A run folder with {step: answers}, and rows of metrics."""
    (folder / "rollouts").mkdir(parents=True)
    for step, answers in steps.items():
        write_jsonl(folder / "rollouts" / f"step-{step}.jsonl", answers)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def rl(step, stage, stage_step=1, **more):
    """A row of metrics of an RL step."""
    return {"step": step, "stage": stage, "kind": "rl", "stage_step": stage_step, **more}
