"""Problems to judged rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Sampling

if TYPE_CHECKING:
    pass


from parallel_r1 import distributed as processes
from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.syntax import without_tags
from parallel_r1.answers.trace import Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.generation.backend import Engine
from parallel_r1.generation.local.engine import LocalEngine, compiled
from parallel_r1.generation.scheduler import draw
from parallel_r1.models.checks import positions
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.base import Task, verdicts
from parallel_r1.tasks.grading.extract import final_answer


def check_length(policy: Policy, prompt: int, sampling: Sampling) -> None:
    """Refuse a prompt that leaves no room for its answer in the positions that the model knows."""
    answer = sampling.reach
    most = positions(policy.model.config)
    if most is not None and prompt + answer > most:
        raise UserError(
            f"a prompt of at most {max(0, most - answer)} tokens: the model knows {most} positions and an answer may "
            f"reach over {answer}",
            f"{prompt} tokens",
            "shorten the prompt or lower the budget",
        )


def judge(
    answers: Sequence[tuple[Problem, Trace]], task: Task, policy: Policy, *, anywhere: bool = False
) -> list[Rollout]:
    """Verify answers, with one call of the task's verifier, and count their tokens.

    Args:
        anywhere: whether paths are read too where the trunk gives no final answer.
    """
    texts = [policy.decode(trace.token_ids) for _, trace in answers]
    trunks = [policy.decode(trace.trunk_ids) for _, trace in answers]
    if anywhere:
        trunks = [
            without_tags(text, "\n") if final_answer(trunk) is None else trunk
            for text, trunk in zip(texts, trunks, strict=True)
        ]
    correct = verdicts(task, [problem for problem, _ in answers], trunks)
    return [
        Rollout(problem, trace, text, verdict, latency(trace), len(trace.token_ids))
        for (problem, trace), text, verdict in zip(answers, texts, correct, strict=True)
    ]


def answer(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    sampling: Sampling,
    seed: int | str,
    engine: Engine[Any] | None = None,
) -> list[Rollout]:
    """Draw `samples` answers to every problem and judge them. The answers to a problem stand together. Each process
    draws a part of them and gets all.

    Args:
        engine: what reads tokens; a `LocalEngine` if None.
    """
    asked = [problem for problem in problems for _ in range(samples)]
    prompts = {problem.prompt: policy.encode(sampling.instruction + problem.prompt) for problem in problems}
    check_length(policy, max(map(len, prompts.values())), sampling)
    if engine is None:
        engine = LocalEngine(policy.model, forward=compiled(policy.model) if sampling.compile else None)
    mine = processes.share(range(len(asked)))
    traces = draw(
        engine,
        policy.tags,
        [prompts[asked[index].prompt] for index in mine],
        sampling,
        seed,
        first=mine[0] if mine else 0,
        policy_version=policy.version,
        decode=policy.decode,
    )
    anywhere = sampling.final == "anywhere"
    answers = [(asked[index], trace) for index, trace in zip(mine, traces, strict=True)]
    return processes.gather(judge(answers, task, policy, anywhere=anywhere))
