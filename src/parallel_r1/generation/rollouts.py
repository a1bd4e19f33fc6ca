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
from parallel_r1.tasks.base import Task
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


def judge(problem: Problem, trace: Trace, task: Task, policy: Policy, *, anywhere: bool = False) -> Rollout:
    """Verify an answer and count what it cost.

    Args:
        anywhere: whether paths are read too where the trunk gives no final answer.
    """
    texts, told = trace.texts(policy.decode), policy.decode(trace.trunk_ids)
    if anywhere and final_answer(told) is None:
        told = without_tags("".join(texts), "\n")
    return Rollout(problem, trace, texts, task.verify(problem, told), latency(trace), len(trace.token_ids))


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
    judged = [
        judge(asked[index], trace, task, policy, anywhere=anywhere) for index, trace in zip(mine, traces, strict=True)
    ]
    return processes.gather(judged)
