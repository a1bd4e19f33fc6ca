"""A training step against TRL: GRPO from the first token drawn to the changed weights, and SFT on packed rows.

* GRPO, 64 answers in groups of 8 to prompts of 24 tokens: all of 128 tokens, or of unequal lengths of which the longest
  is 8 times the median. An answer ends where it is told to: ours by its budget, TRL's by an end of text that is forced
  there and banned before. Every second answer is right, so every answer has an advantage and is learnt from.
* SFT, 128 answers of a procedural teacher packed into rows of 256 and of 1,024 tokens; they do not see each other.

`ours` is `train.run_rl` and `train.run_sft` themselves, rewards and metrics included; only where the problems come from
and where the answers end is told to them. TRL is `GRPOTrainer` and `SFTTrainer`, from the start to the end of a step;
what a trainer does before and after it is not counted. Both learn in fp32 with the same loss and the same optimiser,
and the script checks that they took as many tokens and changed every weight, and in SFT that loss and gradient agree.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import trl
from datasets import Dataset, disable_progress_bars
from engine import unequal
from measure import alternate, arguments, endless, plain, policy, ratio, report
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer, pack_dataset

from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.trace import Trace
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.coldstart.settings import Data
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Engine
from parallel_r1.models.policy import Policy
from parallel_r1.training import loops as train
from parallel_r1.training.rewards.terms import accuracy
from parallel_r1.training.settings import RL, SFT, Optimizer

TRL = "TRL"
Step = Callable[[], float]
"""Makes a step and says how many seconds it took."""
RATE = 1e-6
"""The learning rate: so small that the policy is much the same in every round."""


@dataclass(frozen=True)
class Work:
    """What GRPO draws: to each prompt a group of answers, answer i with `lengths[i]` tokens."""

    name: str
    prompts: list[str]
    lengths: list[int]

    @property
    def group(self) -> int:
        """Answers to a prompt."""
        return len(self.lengths) // len(self.prompts)


class Told:
    """A task with the prompts of some work, whose every second answer is right."""

    name = "told"

    def __init__(self, work: Work) -> None:
        self.asked = cycle([Problem(str(index), prompt, "", self.name) for index, prompt in enumerate(work.prompts)])
        self.verdicts = cycle((True, False))

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return self.asked

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[bool]:
        return [next(self.verdicts) for _ in answers]


def works(options: argparse.Namespace) -> Iterator[Work]:
    """Equal and unequal lengths. A prompt is 12 digits, each with a blank or the end of the line after it."""
    groups, group, longest = (2, 2, 8) if options.quick else (8, 8, 128)
    digits = torch.randint(10, (groups, 12), generator=torch.Generator().manual_seed(options.seed)).tolist()
    prompts = [" ".join(map(str, row)) + "\n" for row in digits]
    count = groups * group
    yield Work(f"GRPO, equal: {count} answers of {longest} tokens", prompts, [longest] * count)
    lengths = unequal(count, longest // 8, options.seed)
    middle = sorted(lengths)[count // 2]
    name = f"GRPO, unequal: {count} answers of {min(lengths)} .. {max(lengths)} tokens, median {middle}"
    yield Work(name, prompts, lengths)


def grpo_by_us(policy: Policy, work: Work, options: argparse.Namespace, compiled: bool) -> Step:
    """Steps of `train.run_rl`."""
    stage = RL(
        kind="rl",
        task=Told.name,
        steps=options.runs + 1,
        sampling=plain(max(work.lengths)),
        optimizer=Optimizer(lr=RATE),
        micro_tokens=options.micro_tokens,
        packing=options.packing,
        problems=len(work.prompts),
        group=work.group,
    )
    steps = train.run_rl(
        endless(policy), stage, options.seed, engine=Engine(compile=compiled), task=Told(work), reward=accuracy()
    )

    def step() -> float:
        with patch.object(train, "make_generator", partial(OfLengths, work.lengths)):  # made in the first step
            started = time.perf_counter()
            update = next(steps)
            seconds = time.perf_counter() - started
        assert [rollout.total for rollout in update.rollouts] == work.lengths
        return seconds

    return step


class OfLengths:
    """A generator that gives every answer a budget of its own."""

    def __init__(self, lengths: Sequence[int], policy: Policy, engine: Engine) -> None:
        self.lengths, self.inner, self.counts = lengths, make_generator(policy, engine), Counts()

    def traces(self, requests: Sequence[Request]) -> list[Trace]:
        self.inner.counts = self.counts
        pairs = zip(requests, self.lengths, strict=True)
        return self.inner.traces([dataclasses.replace(one, sampling=plain(length)) for one, length in pairs])


class Ends(LogitsProcessor):
    """Row i ends with its token `lengths[i]`, and not before."""

    def __init__(self, lengths: Sequence[int], prompt: int, eos: int) -> None:
        self.last, self.eos = torch.tensor(lengths) + prompt - 1, eos

    def __call__(self, token_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = self.last == token_ids.shape[1]
        scores[ends] = -math.inf
        scores[:, self.eos] = torch.where(ends, 0.0, -math.inf)
        return scores


class Clock(TrainerCallback):
    """Seconds of a trainer's last step."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def settings(folder: str, options: argparse.Namespace, rows: int, micro_batches: int) -> dict[str, Any]:
    """What both trainers get: one step in fp32 with our optimiser, and nothing that costs time and is not needed."""
    ours = Optimizer(lr=RATE)
    return {
        "output_dir": folder,
        "max_steps": 1,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": micro_batches,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": ours.weight_decay,
        "adam_beta1": ours.betas[0],
        "adam_beta2": ours.betas[1],
        "max_grad_norm": ours.clip,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "seed": options.seed,
    }


def one_step(trainer: GRPOTrainer | SFTTrainer) -> Step:
    """Steps of a trainer, each a `train()` of its own; weights and moments stay between them."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)

    def step() -> float:
        trainer.train()
        assert trainer.state.global_step == 1
        return clock.seconds

    return step


def grpo_by_trl(policy: Policy, work: Work, options: argparse.Namespace, folder: str) -> Step:
    """Steps of a `GRPOTrainer` without a reference model."""
    drawn: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        drawn[:] = map(len, completion_ids)
        return [float(index % 2 == 0) for index in range(len(drawn))]

    model, rows = policy.model, min(options.micro_rows, len(work.lengths))
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            **settings(folder, options, rows, len(work.lengths) // rows),
            num_generations=work.group,
            max_completion_length=max(work.lengths),
            beta=0.0,
            loss_type="dapo",
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": work.prompts}),
        processing_class=policy.tokenizer,
    )
    (prompt,) = {len(policy.encode(text)) for text in work.prompts}
    ends = Ends(work.lengths, prompt, policy.tokenizer.eos_token_id)
    model.generate = partial(model.generate, logits_processor=LogitsProcessorList([ends]))
    make = one_step(trainer)

    def step() -> float:
        seconds = make()
        assert drawn == work.lengths
        return seconds

    return step


@dataclass(frozen=True)
class Case:
    """The ways to take a step on as many tokens.

    Attributes:
        tokens: that a step learns from, prompts included.
        found: by way the loss and the norm of the gradient at every step, where all ways must find the same.
    """

    name: str
    tokens: int
    ways: dict[str, Step]
    found: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def check(self) -> None:
        """Compare what the ways have found."""
        for rounds in zip(*self.found.values(), strict=True):
            for name, numbers in zip(("loss", "gradient"), zip(*rounds, strict=True), strict=True):
                assert max(numbers) <= 1.001 * min(numbers), f"{name} of {', '.join(self.found)}: {numbers}"


def grpo(work: Work, subject: Policy, options: argparse.Namespace, folder: str) -> Case:
    """GRPO by us, by us with a compiled engine, and by TRL."""
    ways = {"ours": partial(grpo_by_us, compiled=False)}
    if options.compile:
        ways["ours, compiled"] = partial(grpo_by_us, compiled=True)
    ways[TRL] = partial(grpo_by_trl, folder=folder)
    prompts = sum(len(subject.encode(prompt)) for prompt in work.prompts) * work.group
    steps = {}
    for name, make in ways.items():
        mine = fresh(subject)
        steps[name] = learns(mine.model, make(mine, work, options))
    return Case(work.name, prompts + sum(work.lengths), steps)


def sft(row: int, subject: Policy, options: argparse.Namespace, folder: str) -> Case:
    """SFT by us and by TRL on the same answers in rows of the same length, all of them in every step."""
    count = 8 if options.quick else 128
    examples = list(islice(coldstart.examples(Data(tasks={"countdown-easy": 1.0}), options.seed), count))
    file = Path(folder) / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": each.prompt, "text": each.text}) + "\n" for each in examples))
    ours, theirs = fresh(subject), fresh(subject)
    stage = SFT(
        kind="sft",
        steps=options.runs + 1,
        scorer="causal",
        sampling=plain(row),
        optimizer=Optimizer(lr=RATE),
        micro_tokens=row,
        packing=True,
        data=Data(file=str(file)),
        batch=count,
    )
    updates = train.run_sft(ours, stage, options.seed)

    traces = [coldstart.to_trace(each, theirs, "sequential") for each in examples]
    dataset = Dataset.from_dict(
        {
            "input_ids": [[*trace.prompt_ids, *trace.token_ids] for trace in traces],
            "labels": [[-100] * len(trace.prompt_ids) + [*trace.token_ids] for trace in traces],
        }
    )
    tokens, rows = sum(map(len, dataset["input_ids"])), len(pack_dataset(dataset, row, "bfd"))
    trainer = SFTTrainer(
        model=theirs.model,
        args=SFTConfig(**settings(folder, options, 1, rows), packing=True, max_length=row),
        train_dataset=dataset,
        processing_class=theirs.tokenizer,
    )
    assert sum(map(len, trainer.train_dataset["input_ids"])) == tokens
    make = one_step(trainer)
    found: dict[str, list[tuple[float, float]]] = {"ours": [], TRL: []}

    def by_us() -> float:
        started = time.perf_counter()
        metrics = next(updates).metrics
        seconds = time.perf_counter() - started
        assert round(metrics["tokens_per_second"] * metrics["seconds"]) == tokens
        found["ours"].append((metrics["loss"], metrics["gradient_norm"]))
        return seconds

    def by_trl() -> float:
        seconds = make()
        metrics = trainer.state.log_history[0]
        found[TRL].append((metrics["loss"], metrics["grad_norm"]))
        return seconds

    ways = {"ours": learns(ours.model, by_us), TRL: learns(theirs.model, by_trl)}
    return Case(f"SFT: {count} answers, {tokens:,} tokens in rows of {row:,}", tokens, ways, found)


def fresh(policy: Policy) -> Policy:
    """A policy that learns without changing another; trainers also patch the models that they get."""
    return Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.tags)


def learns(model: PreTrainedModel, step: Step) -> Step:
    """The same step, which must change every weight."""

    def checked() -> float:
        before = [weight.detach().clone() for weight in model.parameters()]
        seconds = step()
        assert not any(map(torch.equal, before, model.parameters())), "a weight has not changed"
        return seconds

    return checked


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--micro-tokens", type=int, default=2048, help="of a micro-batch of ours in GRPO")
    parser.add_argument(
        "--case", action="append", choices=("equal", "unequal", "sft-256", "sft-1024"), help="repeatable; default: all"
    )
    parser.add_argument("--packing", action="store_true", help="answers to a prompt share it in ours")
    parser.add_argument("--micro-rows", type=int, default=64, help="answers of a micro-batch of TRL in GRPO")
    options = parser.parse_args()
    disable_progress_bars()
    rows: list[dict[str, object]] = []
    details = []
    with TemporaryDirectory() as folder:
        for name in options.model:
            subject = policy(name)
            equal, unequal = (partial(grpo, work) for work in works(options))
            makers = {"equal": equal, "unequal": unequal, "sft-256": partial(sft, 256), "sft-1024": partial(sft, 1024)}
            for case_name in options.case or makers:
                case = makers[case_name](subject, options, folder)
                times = alternate(case.ways, options.runs)
                case.check()
                rows += [
                    {"model": name, "case": case.name, **ratio(times, TRL, way)} for way in case.ways if way != TRL
                ]
                details.append({"model": name, "case": case.name, "tokens": case.tokens, "seconds": times})
    report(options, "train_step", "A training step against TRL", rows, details=details, trl=trl.__version__)


if __name__ == "__main__":
    main()
