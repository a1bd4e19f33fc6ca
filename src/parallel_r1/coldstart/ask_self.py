"""Ask the user's own model: its answers, of which the rules of `filters.py` keep the correct and well written ones.

Source: rejection sampling without a teacher, as in NPR (arXiv 2512.07461).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallel_r1.answers.trace import Trace
from parallel_r1.coldstart.journal import Ask, Response
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.rollouts import check_length
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.prompts import Prompt


@dataclass(frozen=True)
class Own:
    """A policy as its own teacher.

    Attributes:
        policy: with the tags of a schema.
        name: the model's folder or hub id.
        sampling: how it draws.
        seed: an answer depends on nothing but the seed, the problem and the number of the sample.
        engine: what draws.
        prompt: the text around every problem.
    """

    policy: Policy
    name: str
    sampling: Sampling
    seed: int
    engine: Engine
    prompt: Prompt = field(default_factory=Prompt)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the answers depend on."""
        sampling = self.sampling.model_dump(mode="json")
        prompt = {"prompt": self.prompt.model_dump(mode="json")} if self.prompt != Prompt() else {}
        return {"teacher": "self", "model": self.name, "seed": self.seed, "sampling": sampling, **prompt}

    def ask(self, asks: Sequence[Ask], take: Callable[[Response], bool]) -> None:
        """Draw until every answer has been taken, or `take` says that it is enough. The prompt is the one that the
        model will learn with.

        Raises:
            UserError: a prompt and its answer may be longer than the model reads.
        """
        policy, requests = self.policy, []
        for ask in asks:
            prompt = self.prompt.encode(policy, ask.problem.prompt, ask.problem.before)
            check_length(policy, len(prompt), self.sampling, f"'{ask.problem.id}'")
            requests.append(Request(prompt, self.sampling, "/".join(map(str, (self.seed, *ask.key)))))
        generator = make_generator(policy, self.engine)
        done = False

        def on_trace(index: int, trace: Trace) -> None:
            nonlocal done
            if done or trace.finish == "cancelled":
                return
            text, sizes = policy.decode(trace.token_ids), (len(trace.prompt_ids), len(trace.token_ids))
            if not take(Response(*asks[index].key, text, trace.finish, *sizes)):
                done = True
                for other in range(len(asks)):
                    generator.cancel(other)

        generator.traces(requests, on_trace=on_trace)
