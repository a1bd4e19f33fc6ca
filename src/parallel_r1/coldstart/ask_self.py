"""Ask the user's own model: its answers, of which the rules of `filters.py` keep the correct and well written ones.

Source: rejection sampling without a teacher, as in NPR (arXiv 2512.07461).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from parallel_r1.coldstart.journal import Ask, Response
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.rollouts import check_length
from parallel_r1.generation.scheduler import Drawing
from parallel_r1.generation.settings import Sampling
from parallel_r1.generation.threads import Answer
from parallel_r1.models.policy import Policy


@dataclass(frozen=True)
class Own:
    """A policy as its own teacher.

    Attributes:
        policy: with the six tags.
        name: the model's folder or hub id.
        sampling: how it draws.
        seed: an answer depends on nothing but the seed, the problem and the number of the sample.
    """

    policy: Policy
    name: str
    sampling: Sampling
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the answers depend on."""
        sampling = self.sampling.model_dump(mode="json", exclude={"rows", "memory", "compile"})
        return {"teacher": "self", "model": self.name, "seed": self.seed, "sampling": sampling}

    def ask(self, asks: Sequence[Ask], take: Callable[[Response], bool]) -> None:
        """Draw until every answer has been taken, or `take` says that it is enough. The prompt is the one that the
        model will learn with.

        Raises:
            UserError: a prompt and its answer may be longer than the model reads.
        """
        policy, sampling = self.policy, self.sampling
        drawing = Drawing(LocalEngine(policy.model), policy.tags, sampling.rows, sampling.memory, decode=policy.decode)
        waiting, under_way = deque(asks), dict[Answer, Ask]()
        go_on = True
        while go_on and (waiting or under_way):
            while waiting and len(under_way) < sampling.rows:
                ask = waiting.popleft()
                prompt = policy.encode(ask.problem.prompt)
                check_length(policy, len(prompt), sampling)
                seed = "/".join(map(str, (self.seed, *ask.key)))
                under_way[drawing.submit(prompt, sampling, seed)] = ask
            for answer in drawing.step():
                trace, ask = answer.trace(0), under_way.pop(answer)
                text = policy.decode(trace.token_ids)
                sizes = len(trace.prompt_ids), len(trace.token_ids)
                go_on &= take(Response(*ask.key, text, trace.finish, *sizes))
