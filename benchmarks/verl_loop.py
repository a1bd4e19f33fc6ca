"""What our agent loop adds to verl's single-turn loop, on answers without forks.

Both loops are built and run as verl's worker does it, for the same problems, against the same stub of a server, which
returns the same tokens after the time that a GPU would take (10 ms a token). Ours also verifies and rewards. Fixed
before it was run: 1,000 answers of 128 tokens, 256 at a time; seconds of ours / seconds of verl's (asked: at most
1.05), and the processor time that an answer takes beside the waiting.

Needs verl 0.9.1 (`make test-cluster` makes its environment).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
from measure import ROOT, alternate, arguments, ratio, report
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop  # noqa: F401
from verl.workers.rollout.replica import TokenOutput

from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.integrations.verl.settings import problem_to_json
from parallel_r1.tasks.load import load_task

TOKENS, STEP, AT_ONCE, GROUP = 128, 0.01, 256, 8


class Stub:
    """A server that needs time, and no processor."""

    def __init__(self, end: int) -> None:
        self.end = end

    async def generate(self, request_id: str, *, prompt_ids: Any, sampling_params: Any, **_: Any) -> TokenOutput:
        await asyncio.sleep(TOKENS * STEP)
        tokens = [10 + (position * 7) % 40 for position in range(TOKENS - 1)]
        return TokenOutput(
            token_ids=[*tokens, self.end],
            log_probs=[-0.5] * TOKENS,
            stop_reason="completed",
            extra_fields={"min_global_steps": 0, "max_global_steps": 0},
        )


def settings_file(folder: Path) -> Path:
    """The settings of a stage, as `stage.write_stage` writes them."""
    path = folder / "settings.json"
    sampling = Sampling(sampler="causal_join", paths=4, budget=Budget(total=2 * TOKENS, critical_path=2 * TOKENS))
    values = {
        "task": "countdown-easy",
        "validation": "countdown-easy",
        "reward": "alternate(accuracy(), bonus(0.2), period=10, second=2)",
        "sampling": sampling.model_dump(mode="json"),
        "prompt": {},
        "seed": 0,
        "rollouts_every": 1000,
        "steps": 1000,
        "group": GROUP,
        "validated": 1,
        "ends": [],
        "rows": 453,
        "imports": [],
        "patience": 60,
    }
    path.write_text(json.dumps(values))
    return path


def run(target: dict[str, Any], rows: list[dict[str, Any]], common: dict[str, Any]) -> None:
    """Answer all rows, so many at a time, as verl's worker does."""

    async def answer(row: dict[str, Any], slots: asyncio.Semaphore) -> None:
        async with slots:
            loop = hydra.utils.instantiate(config=target, **common)
            await loop.run({"temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs": True}, **row)

    async def every() -> None:
        slots = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(answer(row, slots) for row in rows))

    asyncio.run(every())


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    count = 64 if options.quick else 1000
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/tiny-base")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    problems = load_task("countdown-easy").problems("train", 0)
    rows = []
    for index in range(count // GROUP):
        problem = next(problems)
        info = {"index": index, "split": "train", "problem": problem_to_json(problem)}
        row = {"raw_prompt": [{"role": "user", "content": problem.prompt}], "extra_info": info, "global_steps": 2}
        rows += [{**row, "uid": f"{index}", "session_id": number} for number in range(GROUP)]
    rollout = {"prompt_length": 64, "response_length": 2 * TOKENS, "full_determinism": False}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "trainer_config": DictConfigWrap(config=config),
            "server_manager": Stub(tokenizer.eos_token_id),
            "tokenizer": tokenizer,
            "processor": None,
            "hf_model_type": None,
            "dataset_cls": SimpleNamespace,
            "data_config": DictConfigWrap(config.data),
            "tools": ToolListWrap([]),
        }
        path = settings_file(Path(folder))
        ours = {"_target_": "parallel_r1.integrations.verl.loop.ForkJoinLoop", "stage": str(path)}
        verls = {"_target_": "verl.experimental.agent_loop.single_turn_agent_loop.SingleTurnAgentLoop"}
        spent: dict[str, list[float]] = {"ours": [], "verl": []}

        def timed(name: str, target: dict[str, Any]) -> None:
            began = time.process_time()
            run(target, rows, common)
            spent[name].append(time.process_time() - began)

        took = alternate({"ours": lambda: timed("ours", ours), "verl": lambda: timed("verl", verls)}, options.runs)
    row = {
        "answers": count,
        "at_once": AT_ONCE,
        **ratio(took, "ours", "verl"),
        "processor_ms_per_answer": {name: round(1000 * min(values) / count, 3) for name, values in spent.items()},
        "times": took,
    }
    report(options, "verl_loop", "agent loop", [row])


if __name__ == "__main__":
    main()
