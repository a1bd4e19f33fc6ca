"""Commands that generate answers, show them, and compute their rewards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, load_policy, print_json, quiet, warn
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.answers.trace import Trace
    from parallel_r1.generation.settings import Engine, Sampling
    from parallel_r1.models.policy import Policy
    from parallel_r1.tasks.prompts import Prompt


@app.command()
@options.shared(paths=4, without=("final_answer",))
def generate(
    model: options.ModelPath,
    sampling: Sampling,
    engine: Engine,
    prompt: Prompt,
    question: Annotated[
        str | None, typer.Option("--prompt", help="The prompt, such as -e 'Use 3, 5, 7 to make 26.\\n'.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--prompt-file", help="A text file with the prompt; line breaks at its end count too."),
    ] = None,
    seed: options.Seed = 0,
    escapes: options.Escapes = False,
    as_json: options.AsJson = False,
) -> None:
    """Generate one answer and watch trunk, paths and summary grow, every path in its colour."""
    text = _question(question, file, escapes)
    from parallel_r1.answers.visibility import latency
    from parallel_r1.generation.generator import make_generator
    from parallel_r1.generation.request import Request
    from parallel_r1.generation.rollouts import check_length
    from parallel_r1.report.answers import LiveAnswer

    quiet()
    policy = load_policy(model, engine)
    prompt_ids = prompt.encode(policy, text)
    check_length(policy, len(prompt_ids), sampling)
    generator, request = make_generator(policy, engine), Request(prompt_ids, sampling, f"{seed}/0")
    if as_json:
        print_json(_answer_json(policy, generator.traces([request])[0]))
        return
    console.print((prompt.instruction + text).strip(), style="bold", markup=False, highlight=False)
    with LiveAnswer(console, policy.decode) as live:
        (trace,) = generator.traces([request], on_token=live)
    console.print(
        f"{trace.finish}; forks {trace.forks}; critical path {latency(trace)}, tokens {len(trace.token_ids)}",
        style="dim",
    )
    for defect in trace.defects:
        console.print(f"{defect.kind} at token {defect.at}: {defect.message}", style="red", markup=False)


def _question(text: str | None, file: Path | None, escapes: bool) -> str:
    """The text of --prompt or of --prompt-file."""
    if (text is None) == (file is None):
        raise UserError("either --prompt or --prompt-file", "neither" if text is None else "both", "give one of them")
    if file is None:
        assert text is not None
        return options.plain_text("prompt", text, escapes)
    if not file.is_file():
        raise UserError("a text file for --prompt-file", f"no file {file}", "check the path")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError("a text file in UTF-8 for --prompt-file", f"{file}: {error}", "convert it") from error


def _answer_json(policy: Policy, trace: Trace) -> dict[str, Any]:
    """The answer as `generate --json` prints it."""
    from parallel_r1.answers.visibility import latency

    return {
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


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A run folder, or a file in its rollouts/.")],
    count: Annotated[int, typer.Option(min=1, help="Number of answers of a file to show.")] = 4,
    first: Annotated[int, typer.Option(min=0, help="Number of answers to skip before the first.")] = 0,
    as_json: options.AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write all answers as timelines to this HTML file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --html: a model whose tokenizer gives every token its text.", show_default="the run's"),
    ] = None,
    imports: options.Imports = None,
) -> None:
    """Show a run's table, or answers as trees with every path in its colour; with --html answers as timelines."""
    from itertools import islice

    if html is not None:
        _show_html(path, html, model, as_json)
        return
    if path.is_dir():
        table = path / "table.md"
        if not table.is_file():
            unfinished = (path / "recipe.toml").is_file()
            fix = (
                f"`parallel-r1 watch {path}` shows a run that goes on"
                if unfinished
                else "give a run, or a rollouts file"
            )
            raise UserError("a run folder with table.md", f"none in {path}", fix)
        if as_json:
            from parallel_r1.runs.folder import RunFolder

            print_json(RunFolder(path).evaluations)
        else:
            from parallel_r1.report.grid import ResultsMarkdown

            console.print(ResultsMarkdown(table.read_text(encoding="utf-8")))
        return
    if not path.is_file():
        raise UserError("a run folder or a rollouts file", f"no file {path}", "check the path")
    from parallel_r1.answers.rollout import read_jsonl, to_json

    rollout = None
    for rollout in islice(read_jsonl(path), first, first + count):
        if as_json:
            print_json(to_json(rollout))
        else:
            from parallel_r1.report.answers import print_rollout

            print_rollout(console, rollout)
    if rollout is None:
        fix = "give a smaller --first" if first else "give another file"
        raise UserError(f"an answer to show, after the first {first}", f"no more in {path}", fix)


def _show_html(path: Path, out: Path, model: str | None, as_json: bool) -> None:
    """Write the answers of a run or of a file into one page."""
    from itertools import chain

    from parallel_r1.files import write_text
    from parallel_r1.report.pages.page import check_new
    from parallel_r1.report.pages.saved import shown_answers, tokenizer_of
    from parallel_r1.report.pages.viewer import viewer_page

    check_new(out, "--html")
    quiet()
    notes: set[str] = set()
    title = path.resolve().name if path.is_dir() else path.stem
    answers = shown_answers(path, notes)
    if (first := next(answers, None)) is None:
        raise UserError("answers to show", f"none in {path}", "give a file of answers, or a run that has saved some")
    write_text(out, viewer_page(title, chain([first], answers), tokenizer_of(path, model)))
    for note in sorted(notes):
        warn(note)
    if as_json:
        print_json({"html": str(out)})
    else:
        console.print(f"the answers are in {out}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def rewards(
    file: Annotated[Path, typer.Argument(help="A file in a run's rollouts/, or one written by eval --rollouts.")],
    reward: Annotated[str, typer.Option(help="A reward, as in a recipe: bonus(0.2), alternate(accuracy(), bonus()).")],
    step: Annotated[int, typer.Option(min=1, help="The training step, for rewards that change with it.")] = 1,
    imports: options.Imports = None,
    as_json: options.AsJson = False,
) -> None:
    """Compute the reward of every answer in a file and show it term by term, one line per answer."""
    from parallel_r1.training.rewards.base import apply_reward
    from parallel_r1.training.rewards.language import parse_reward

    parsed = parse_reward(reward)
    if not file.is_file():
        raise UserError("a file of rollouts", f"no file {file}", "check the path")
    from parallel_r1.answers.rollout import group, read_jsonl

    rollouts = list(read_jsonl(file))
    rewarded = {
        id(rollout): again.terms or {}
        for members in group(rollouts)
        for rollout, again in zip(members.rollouts, apply_reward(members, parsed, step).rollouts, strict=True)
    }
    for rollout in rollouts:  # in the order of the file
        problem, terms = rollout.problem.id, rewarded[id(rollout)]
        total = sum(terms.values())
        if as_json:
            print_json({"id": problem, "reward": total, "terms": terms})
        else:
            parts = "  ".join(f"{name} {value:+.3f}" for name, value in terms.items())
            console.print(f"{total:+.3f}  {parts}  [{problem}]", markup=False, highlight=False, soft_wrap=True)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def score() -> None:
    """The name of `rewards` before version 0.2."""
    raise UserError("the command rewards", "score, its name before version 0.2", "write parallel-r1 rewards FILE ..")
