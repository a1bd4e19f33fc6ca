"""Commands that draw answers, show them and score them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, quiet, sampling_of
from parallel_r1.errors import UserError


@app.command()
def generate(
    model: options.ModelPath,
    prompt: Annotated[str, typer.Option(help="What the model reads, such as 'Use 3, 5, 7 to make 26.\\n'.")],
    sampler: options.SamplerName = "isolated",
    paths: options.Paths = 4,
    temperature: options.Temperature = 1.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer after this text. Repeatable.")] = None,
    seed: options.Seed = 0,
    total: options.Total = 512,
    critical_path: options.Critical = 256,
    path_tokens: options.PathBudget = 128,
    forks: options.Forks = 4,
    as_json: options.AsJson = False,
) -> None:
    """Draw one answer and watch trunk, paths and summary grow, each path in its colour."""
    sampling = sampling_of(
        sampler=sampler,
        paths=paths,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=tuple(stop or ()),
        total=total,
        critical_path=critical_path,
        path_tokens=path_tokens,
        forks=forks,
    )
    from parallel_r1 import models
    from parallel_r1.answers.visibility import latency
    from parallel_r1.generation.local.engine import LocalEngine
    from parallel_r1.generation.rollouts import check_length
    from parallel_r1.generation.scheduler import draw
    from parallel_r1.report.answers import LiveAnswer

    quiet()
    policy = models.load(model)
    text = prompt.replace("\\n", "\n")  # a shell's plain quotes keep the two characters
    prompt_ids = policy.encode(text)
    check_length(policy, len(prompt_ids), sampling)

    def drawn(on_token: Any = None) -> Any:
        return draw(
            LocalEngine(policy.model),
            policy.tags,
            [prompt_ids],
            sampling,
            seed,
            on_token=on_token,
            decode=policy.decode,
        )[0]

    if as_json:
        trace = drawn()
    else:
        console.print(text.strip(), style="bold", markup=False, highlight=False)
        with LiveAnswer(console, policy.decode) as live:
            trace = drawn(live)
    if as_json:
        print(
            json.dumps(
                {
                    "text": policy.decode(trace.token_ids),
                    "finish": trace.finish,
                    "forks": trace.forks,
                    "critical_path": latency(trace),
                    "total": len(trace.token_ids),
                    "defects": [vars(defect) for defect in trace.defects],
                    "spans": [
                        {
                            "text": text,
                            "address": span.address,
                            "sampled": span.sampled,
                            "logprobs": span.logprobs,
                        }
                        for span, text in zip(trace.spans, trace.texts(policy.decode), strict=True)
                    ],
                }
            )
        )
    else:
        console.print(
            f"{trace.finish}; forks {trace.forks}; critical path {latency(trace)}, tokens {len(trace.token_ids)}",
            style="dim",
        )
        for defect in trace.defects:
            console.print(f"{defect.kind} at token {defect.at}: {defect.message}", style="red", markup=False)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A run folder, or a file of its rollouts/.")],
    count: Annotated[int, typer.Option(min=1, help="How many answers of a file to show.")] = 4,
    first: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Show a run's table, or answers as trees with every path in its colour."""
    from itertools import islice

    if path.is_dir():
        table = path / "table.md"
        if not table.is_file():
            raise UserError("a run folder with table.md", f"none in {path}", "give a finished run or a rollouts file")
        files = sorted(path.glob("eval/*.json"), key=lambda file: file.stat().st_mtime)
        if as_json:
            print(json.dumps([json.loads(file.read_text(encoding="utf-8")) for file in files]))
        else:
            from rich.markdown import Markdown

            console.print(Markdown(table.read_text(encoding="utf-8")))
        return
    if not path.is_file():
        raise UserError("a run folder or a rollouts file", f"no file {path}", "check the path")
    from parallel_r1.answers.rollout import read_jsonl, to_json

    for rollout in islice(read_jsonl(path), first, first + count):
        if as_json:
            print(json.dumps(to_json(rollout)))
        else:
            from parallel_r1.report.answers import print_rollout

            print_rollout(console, rollout)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="A file of a run's rollouts/, or of `eval --rollouts`.")],
    reward: Annotated[str, typer.Option(help="A reward, as in a recipe: bonus(0.2), alternate(accuracy(), bonus()).")],
    step: Annotated[int, typer.Option(min=1, help="The training step, for rewards that change with it.")] = 1,
    as_json: options.AsJson = False,
) -> None:
    """What answers earn under a reward, and what for: one line for each, its terms add up to its reward."""
    from parallel_r1.training.rewards.base import apply_reward
    from parallel_r1.training.rewards.language import parse_reward

    parsed = parse_reward(reward)
    if not file.is_file():
        raise UserError("a file of rollouts", f"no file {file}", "check the path")
    from parallel_r1.answers.rollout import group, read_jsonl

    rollouts = list(read_jsonl(file))
    rewarded = {members.problem.id: iter(apply_reward(members, parsed, step).rollouts) for members in group(rollouts)}
    for problem in (rollout.problem.id for rollout in rollouts):  # in the order of the file
        terms = next(rewarded[problem]).terms or {}
        total = sum(terms.values())
        if as_json:
            print(json.dumps({"id": problem, "reward": total, "terms": terms}))
        else:
            parts = "  ".join(f"{name} {value:+.3f}" for name, value in terms.items())
            console.print(f"{total:+.3f}  {parts}  [{problem}]", markup=False, highlight=False, soft_wrap=True)
