"""The agent loop that verl calls for every answer: draws forks with verl's servers, and judges them.

verl builds an object of the class for every answer, by the YAML file that `stage` writes.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from parallel_r1.answers.rollout import Problem, Rollout, to_json
from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.control import concluded
from parallel_r1.generation.request import Request
from parallel_r1.generation.rollouts import judge, reading_rules
from parallel_r1.generation.settings import Sampling
from parallel_r1.generation.vllm.client import Call
from parallel_r1.integrations.verl.draw import Continued, Drawn, Patience, draw
from parallel_r1.integrations.verl.judge import Groups, figures, row
from parallel_r1.integrations.verl.settings import LoopSettings, problem_from_json, read_settings
from parallel_r1.integrations.verl.structure import FIELD, columns, pack
from parallel_r1.models.policy import Policy
from parallel_r1.models.tokens import tag_ids

PROCESS = uuid.uuid4().hex[:8]
"""In the names of the files that this process writes: processes of two nodes may have the same number."""
GROUPS = Groups()
"""The groups whose answers this process draws: verl has one object of the loop for every answer."""


class ForkJoinLoop(AgentLoopBase):
    """Draws one answer that may fork, and judges it.

    Args:
        stage: the file of `settings.read_settings`.
    """

    def __init__(self, *, trainer_config: Any, server_manager: Any, tokenizer: Any, stage: str, **_: Any) -> None:
        # Not verl's own: it would build, for every answer, what puts messages into a model family's chat template.
        # Prompts are encoded here as they are everywhere in this package.
        self.rollout_config = trainer_config.config.actor_rollout_ref.rollout
        self.server_manager, self.tokenizer = server_manager, tokenizer
        self.loop = asyncio.get_running_loop()
        self.stage: LoopSettings = read_settings(stage)
        self.policy = _outline(tokenizer, self.stage.ends, self.stage.rows)

    async def run(self, sampling_params: dict[str, Any], **row_of_data: Any) -> AgentLoopOutput:
        """Draw and judge an answer to the problem in a row of our Parquet files."""
        if "session_id" not in row_of_data:
            raise UserError("verl's trainer v1", "the old one", "leave trainer.use_v1 at True")
        number, step = int(row_of_data["session_id"]), int(row_of_data["global_steps"])
        key = f"{row_of_data['uid']}"
        try:
            return await self._answer(sampling_params, row_of_data["extra_info"], key, number, step)
        except BaseException as error:
            GROUPS.fail(key, error)
            raise

    async def _answer(
        self, sampling_params: dict[str, Any], info: dict[str, Any], key: str, number: int, step: int
    ) -> AgentLoopOutput:
        stage, validates = self.stage, info["split"] != "train"
        problem, task = problem_from_json(info["problem"]), stage.validation if validates else stage.task
        prompt_ids = self._prompt(problem)
        seed = f"{stage.seed}/{step}/{info['split']}/{info['index']}/{number}"
        request = Request(prompt_ids, self._sampling(sampling_params), seed, conclude=partial(concluded, task=task))
        began = time.time()
        drawn = await self._draw(request, key)
        ended = time.time()
        rules = reading_rules(stage.prompt, stage.sampling)
        judging = partial(judge, [(problem, drawn.trace)], task, self.policy, **rules)
        (rollout,) = await self.loop.run_in_executor(None, judging)
        if not validates:
            rollout = await GROUPS.reward(key, number, rollout, stage.group, stage.reward, step)
        times = {"began": began, "ended": ended}
        self._write(rollout, info["split"], step, {"group": int(info["index"]), "number": number}, drawn, times)
        return self._output(rollout, drawn, ended - began)

    def _prompt(self, problem: Problem) -> Sequence[int]:
        """The tokens of a problem's prompt.

        Raises:
            UserError: more tokens than verl would keep.
        """
        ids = self.stage.prompt.encode(self.policy, problem.prompt, problem.before)
        most = self.rollout_config.prompt_length
        if len(ids) > most:
            raise UserError(
                f"a prompt of at most {most} tokens, which verl keeps",
                f"{len(ids)} in problem '{problem.id}'",
                "raise data.max_prompt_length",
            )
        return ids

    def _sampling(self, params: dict[str, Any]) -> Sampling:
        """The stage's sampling, at the temperature that verl asks for: validation may have another one."""
        sampling = self.stage.sampling
        wanted = float(params["temperature"])
        return sampling if sampling.temperature == wanted else sampling.model_copy(update={"temperature": wanted})

    async def _draw(self, request: Request, key: str) -> Drawn:
        """Draw an answer. All its calls have one id, so that verl sends them to one server, whose prefix cache has what
        they share."""
        stage = self.stage

        async def send(call: Call) -> Continued:
            output = await self.server_manager.generate(
                request_id=f"{key}/{request.seed}", prompt_ids=list(call.context), sampling_params=params_of(call)
            )
            more = output.extra_fields
            versions = (more.get("min_global_steps"), more.get("max_global_steps"))
            known = None if None in versions else (int(versions[0]), int(versions[1]))
            return Continued(output.token_ids, output.log_probs or [], int(more.get("num_cached_tokens") or 0), known)

        patience = Patience(whole=stage.patience)
        return await draw(send, request, self.policy.tags, decode=self.policy.decode, patience=patience)

    def _write(
        self, rollout: Rollout, split: str, step: int, key: dict[str, int], drawn: Drawn, times: dict[str, float]
    ) -> None:
        """Append an answer to the files of this process: its figures in training; all of it in validation, and from
        time to time in training.

        Args:
            key: the number of its problem, and its own among the answers to it.
            times: when drawing it began and ended.
        """
        stage, end, trains = self.stage, f"{step}.{PROCESS}.jsonl", split == "train"
        if trains:
            counts = drawn.counts
            more = {"read": counts.prefilled, "cached": counts.cached, "decoded": counts.decoded}
            more |= {"closed_paths": counts.closed, "repeated": drawn.repeated}
            _append(stage.folder / "figures" / f"step-{end}", {**key, **times, **row(rollout), **more})
        if not trains or step in (1, stage.steps) or step % stage.rollouts_every == 0:
            name = "step" if trains else "validation"
            _append(stage.folder / "answers" / f"{name}-{end}", {**key, "answer": to_json(rollout)})

    def _output(self, rollout: Rollout, drawn: Drawn, seconds: float) -> AgentLoopOutput:
        """The answer as a row of verl."""
        trace: Trace = rollout.trace
        ids, mask, logprobs = columns(trace)
        first, last = drawn.versions or (0, 0)
        reward = float(rollout.correct) if rollout.reward is None else rollout.reward
        return AgentLoopOutput(
            prompt_ids=list(trace.prompt_ids),
            response_ids=ids,
            response_mask=mask,
            response_logprobs=logprobs,
            reward_score=reward,
            num_turns=2,
            metrics=AgentLoopMetrics(generate_sequences=seconds),
            extra_fields={
                FIELD: pack(trace),
                "reward_extra_info": figures(rollout),
                "min_global_steps": first,
                "max_global_steps": last,
                "turn_scores": [],
                "tool_rewards": [],
            },
        )


def params_of(call: Call) -> dict[str, Any]:
    """A call as the sampling parameters of verl's vLLM server: `logprobs` is a flag there, and texts arrive whole."""
    params = {**call.params, "logprobs": True, "repetition_penalty": 1.0}
    del params["stream_interval"]
    return params


@cache
def _outline(tokenizer: Any, ends: tuple[int, ...], rows: int) -> Policy:
    """The tokenizer with its tags; there are no weights in this process."""
    return Policy(None, tokenizer, tag_ids(tokenizer, ends, rows))


def _append(path: Path, values: dict[str, Any]) -> None:
    """Append one line to a file that only this process writes."""
    line = json.dumps(values, ensure_ascii=False) + "\n"
    try:
        file = path.open("a", encoding="utf-8", errors="backslashreplace")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", errors="backslashreplace")
    with file:
        file.write(line)
