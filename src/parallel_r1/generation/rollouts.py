"""From problems to rollouts: generate answers, verify them with the task, count their tokens."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from parallel_r1 import distributed as processes
from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.trace import TRUNK, Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.errors import UserError
from parallel_r1.generation.control import concluded
from parallel_r1.generation.generator import Generator, make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Sampling
from parallel_r1.models.checks import positions
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.base import Task, verdicts
from parallel_r1.tasks.grading.extract import final_answer, without_cut_answer
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.tasks.reading import with_readings

log = logging.getLogger(__name__)
PATIENCE = 1000
"""So many problems in a row may be too long to read before a run gives up."""


def room(policy: Policy, sampling: Sampling) -> float:
    """The most tokens of a prompt for which the longest answer fits into the model's positions."""
    most = positions(policy.model.config)
    return math.inf if most is None else most - sampling.reach


def check_length(policy: Policy, prompt: int, sampling: Sampling, problem: str = "") -> None:
    """Check that a prompt of `prompt` tokens and the longest answer to it fit into the model's positions.

    Args:
        problem: names the problem in the error.

    Raises:
        UserError: they do not.
    """
    most = room(policy, sampling)
    if prompt > most:
        raise UserError(
            f"a prompt of at most {max(0, most)} tokens: the model has {positions(policy.model.config)} positions and "
            f"an answer may take {sampling.reach}",
            f"{prompt} tokens{f' in problem {problem}' if problem else ''}",
            "shorten the prompt or lower the budget",
        )


class Readable(Iterator[Problem]):
    """The problems of a source that a policy can read and answer within its positions.

    Attributes:
        left_out: number of problems that were too long, so far.

    Raises:
        UserError: so many problems in a row are too long that none may fit.
    """

    def __init__(self, problems: Iterator[Problem], policy: Policy, sampling: Sampling, prompt: Prompt) -> None:
        self.problems, self.policy, self.sampling, self.prompt = problems, policy, sampling, prompt
        self.left_out = 0

    def __next__(self) -> Problem:
        for _ in range(PATIENCE):
            problem = next(self.problems)
            size = len(self.prompt.encode(self.policy, problem.prompt, problem.before))
            if size <= room(self.policy, self.sampling):
                return problem
            self.left_out += 1
            log.warning("left out %s: its prompt has %d tokens", problem.id, size)
        check_length(self.policy, size, self.sampling, f"'{problem.id}', as in the {PATIENCE - 1} before it")
        raise AssertionError


def judge(
    answers: Sequence[tuple[Problem, Trace]],
    task: Task,
    policy: Policy,
    *,
    anywhere: bool = False,
    stop: Sequence[str] = (),
    explain: bool = False,
) -> list[Rollout]:
    """Verify answers in one call of the task's verifier, and compute their critical path and number of tokens.

    Args:
        anywhere: if the trunk has no final answer, let the verifier read the text of the paths too.
        stop: texts that end an answer. One that did is no part of the final answer.
        explain: keep how every verdict came about (`Rollout.reading`).
    """
    rollouts = [
        Rollout(problem, trace, trace.texts(policy.decode), False, latency(trace), len(trace.token_ids))
        for problem, trace in answers
    ]
    return judge_again(rollouts, task, anywhere=anywhere, stop=stop, explain=explain)


def judge_again(
    rollouts: Sequence[Rollout],
    task: Task,
    *,
    anywhere: bool = False,
    stop: Sequence[str] = (),
    explain: bool = False,
) -> list[Rollout]:
    """The rollouts with new verdicts; see `judge`."""
    trunks = [_trunk(rollout, stop) for rollout in rollouts]
    if anywhere:
        trunks = [
            rollout.trace.schema.without_tags(_inside(rollout), "\n") if final_answer(trunk) is None else trunk
            for rollout, trunk in zip(rollouts, trunks, strict=True)
        ]
    correct = verdicts(task, [rollout.problem for rollout in rollouts], trunks)
    judged = [replace(rollout, correct=verdict) for rollout, verdict in zip(rollouts, correct, strict=True)]
    return with_readings(judged, trunks, task) if explain else judged


def _inside(rollout: Rollout) -> str:
    """The text of trunk and paths."""
    return "".join(text for span, text in zip(rollout.trace.spans, rollout.texts, strict=True) if not span.aside)


def _trunk(rollout: Rollout, stop: Sequence[str]) -> str:
    """The text of an answer outside its paths, without the stop text that ended it; if its budget ended there, without
    the final answer that it cut."""
    trace = rollout.trace
    text = trace.trunk_text(rollout.texts)
    for end in stop:
        bare = text.removesuffix(end)
        if bare != text and final_answer(bare) is not None:  # a stop text may be the brace that closes a box
            return bare
    cut = trace.finish == "length" and bool(trace.spans) and trace.spans[-1].address == TRUNK
    return without_cut_answer(text) if cut else text


def answer(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    sampling: Sampling,
    seed: int | str,
    *,
    prompt: Prompt | None = None,
    generator: Generator | None = None,
    explain: bool = False,
) -> list[Rollout]:
    """Generate `samples` answers to every problem and judge them. With several processes every process generates a
    share of the answers, and all of them return all rollouts.

    Args:
        seed: the i-th answer of the whole call has the seed "{seed}/{i}".
        prompt: text around every problem, and where its final answer may stand.
        generator: generates the answers; `make_generator(policy)` if None.
        explain: keep how every verdict came about.

    Returns:
        The rollouts, grouped by problem in the order of `problems`.

    Raises:
        UserError: a prompt and the longest answer to it do not fit into the model's positions.
    """
    prompt, generator = prompt or Prompt(), generator or make_generator(policy)
    requests = requests_of(policy, problems, samples, sampling, seed, prompt, task)
    repeated = [problem for problem in problems for _ in range(samples)]
    mine = processes.share(range(len(repeated)))
    traces = generator.traces([requests[i] for i in mine])
    answers = [(repeated[i], trace) for i, trace in zip(mine, traces, strict=True)]
    return processes.gather(judge(answers, task, policy, explain=explain, **reading_rules(prompt, sampling)))


def requests_of(
    policy: Policy,
    problems: Sequence[Problem],
    samples: int,
    sampling: Sampling,
    seed: int | str,
    prompt: Prompt,
    task: Task | None = None,
) -> list[Request]:
    """The requests for `samples` answers to every problem, grouped by problem; the i-th has the seed "{seed}/{i}".

    Args:
        task: says what a path concludes; see `control.concluded`.

    Raises:
        UserError: a prompt and the longest answer to it do not fit into the model's positions.
    """
    encoded = [prompt.encode(policy, problem.prompt, problem.before) for problem in problems]
    for problem, ids in zip(problems, encoded, strict=True):
        check_length(policy, len(ids), sampling, f"'{problem.id}'")
    repeated = [ids for ids in encoded for _ in range(samples)]
    conclude = partial(concluded, task=task)
    return [Request(ids, sampling, f"{seed}/{i}", conclude=conclude) for i, ids in enumerate(repeated)]


def reading_rules(prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    """The arguments of `judge` that follow from prompt and sampling."""
    return {"anywhere": prompt.final_answer == "anywhere", "stop": sampling.stop}
