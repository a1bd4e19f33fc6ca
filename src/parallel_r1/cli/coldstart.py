"""The command that collects example answers from a teacher model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, load_policy, one_of, print_json, quiet
from parallel_r1.cli.data import DataDir
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.coldstart.collect import Limits, Respondent
    from parallel_r1.coldstart.filters import Sieve
    from parallel_r1.coldstart.journal import Ask, Journal
    from parallel_r1.generation.settings import Engine, Sampling
    from parallel_r1.tasks.base import Task
    from parallel_r1.tasks.prompts import Prompt

Kind = Literal["server", "self"]
ASKING, KEEPING = "Server and its costs", "Filters of answers"
"""Titles of option panels in the help."""


@app.command()
@options.shared(total=3000, critical_path=3000, path_tokens=1000, rows=64, without=("final_answer",))
def coldstart(
    sampling: Sampling,
    engine: Engine,
    prompt: Prompt,
    problems: Annotated[str, typer.Option(help="Tasks, with commas between them: gsm8k, jsonl:PATH, ..")] = "",
    model: Annotated[
        str, typer.Option(help="The teacher's name on its server; with --teacher self a model folder.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="The folder of responses. Given again, the command goes on there.")
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="server: a model behind an OpenAI-compatible API, with --temperature and --top-p; self: a model "
            "folder, with all options of Sampling, Engine and Prompt."
        ),
    ] = "server",
    samples: Annotated[int, typer.Option(min=1, help="Answers to every problem.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems of every task. Default: all.")] = None,
    seed: options.Seed = 0,
    base_url: Annotated[
        str,
        typer.Option(
            help="The server, such as http://localhost:8000/v1. The key is $OPENAI_API_KEY.", rich_help_panel=ASKING
        ),
    ] = "",
    instruction_file: Annotated[
        Path | None,
        typer.Option(
            help="A text file with {problem} in it, sent to the server instead of our instruction.",
            rich_help_panel=ASKING,
        ),
    ] = None,
    show_instruction: Annotated[
        bool, typer.Option("--show-instruction", help="Print our instruction and stop.", rich_help_panel=ASKING)
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer, its reasoning included.", rich_help_panel=ASKING)
    ] = 8192,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at the same time.", rich_help_panel=ASKING)] = 16,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a request counts as failed.", rich_help_panel=ASKING)
    ] = 600.0,
    retries: Annotated[
        int,
        typer.Option(min=0, help="How often a failed request is sent again.", rich_help_panel=ASKING),
    ] = 8,
    prompt_price: Annotated[
        float, typer.Option(min=0.0, help="Price of a million prompt tokens.", rich_help_panel=ASKING)
    ] = 0.0,
    answer_price: Annotated[
        float, typer.Option(min=0.0, help="Price of a million tokens of answers.", rich_help_panel=ASKING)
    ] = 0.0,
    most_money: Annotated[
        float | None, typer.Option(min=0.0, help="Stop when this much is spent.", rich_help_panel=ASKING)
    ] = None,
    most_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop when prompts and answers have used this many tokens.")
    ] = None,
    patience: Annotated[int, typer.Option(min=1, help="Stop when this many responses in a row were rejected.")] = 100,
    words: Annotated[int, typer.Option(min=1, help="Most words of an answer.", rich_help_panel=KEEPING)] = 2000,
    alike: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Largest self-BLEU between an answer's paths.", rich_help_panel=KEEPING),
    ] = 0.5,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Also keep answers without a fork.", rich_help_panel=KEEPING)
    ] = False,
    any_language: Annotated[
        bool, typer.Option("--any-language", help="Also keep answers that are not in English.", rich_help_panel=KEEPING)
    ] = False,
    data_dir: DataDir = None,
    imports: options.Imports = None,
    as_json: options.AsJson = False,
) -> None:
    """Ask a teacher model for answers with forks, and keep the correct, well-formed ones for supervised fine-tuning.

    Every response is saved at once. After an interruption the same command continues and sends no request twice."""
    from parallel_r1.coldstart.instruction import instruction as ours

    if show_instruction:
        print(ours(), end="")
        return
    one_of("--teacher", teacher, Kind)
    required = {"--problems": problems, "--model": model, "--out": out}
    required |= {"--base-url": base_url} if teacher == "server" else {}
    for option, value in required.items():
        if not value:
            raise UserError(f"{option}", "none", "see parallel-r1 coldstart --help")
    assert out is not None
    from parallel_r1.answers.shape import need_sacrebleu
    from parallel_r1.coldstart.ask_server import Server
    from parallel_r1.coldstart.collect import ANSWERS, Limits, problems_of
    from parallel_r1.coldstart.filters import Sieve
    from parallel_r1.coldstart.journal import Ask, Journal
    from parallel_r1.tasks.base import statement_of
    from parallel_r1.tasks.datasets.rows import check_writable
    from parallel_r1.tasks.load import load_task

    check_writable(out / ANSWERS)
    need_sacrebleu()
    sieve = Sieve(words, alike, sequential, any_language)
    limits = Limits(most_tokens, most_money, prompt_price, answer_price, patience)
    respondent: Respondent
    if teacher == "server":
        text = _instruction(instruction_file) if instruction_file else ours()
        respondent = Server(
            base_url, model, text, sampling.temperature, sampling.top_p, max_tokens, concurrency, timeout, retries
        )
    else:
        from parallel_r1.coldstart.ask_self import Own

        quiet()
        respondent = Own(load_policy(model, engine), model, sampling, seed, engine, prompt)
    tasks = {name.strip(): load_task(name.strip(), data_dir=data_dir) for name in problems.split(",")}
    statements = [(one, statement_of(task, one)) for task in tasks.values() for one in problems_of(task, seed, limit)]
    asks = [Ask(problem, statement, sample) for sample in range(samples) for problem, statement in statements]
    with Journal(out, respondent.settings) as journal:
        if not as_json:
            left = sum(ask.key not in journal.responses for ask in asks)
            console.print(
                f"{len(statements):,} problems, {len(asks):,} answers, {left:,} to be asked for; writing to {out}",
                soft_wrap=True,
                highlight=False,
            )
        _collect(respondent, tasks, asks, journal, sieve, limits, as_json)


def _collect(
    respondent: Respondent,
    tasks: dict[str, Task],
    asks: list[Ask],
    journal: Journal,
    sieve: Sieve,
    limits: Limits,
    as_json: bool,
) -> None:
    """Ask for all answers that the journal lacks, with a progress bar, and print what was kept, after an interruption
    too."""
    from parallel_r1.coldstart.collect import Collection
    from parallel_r1.report.progress import AskProgress
    from parallel_r1.report.tables import print_collected

    with AskProgress(console, sum(ask.key not in journal.responses for ask in asks)) as progress:
        collection = Collection(tasks, asks, journal, sieve, limits, (lambda _: None) if as_json else progress)
        try:
            collection.run(respondent)
        finally:
            if as_json:
                print_json(collection.to_json())
            elif statistics := collection.statistics():
                print_collected(console, statistics)
    if not as_json:
        if collection.over:
            console.print(f"stopped: {collection.over}", highlight=False, soft_wrap=True)
        console.print(
            f"{collection.kept:,} answers to imitate are in {journal.folder}", highlight=False, soft_wrap=True
        )


def _instruction(path: Path) -> str:
    """Read the file of --instruction-file."""
    if not path.is_file():
        raise UserError(
            "a text file for --instruction-file", f"no file {path}", "--show-instruction prints ours to begin with"
        )
    text = path.read_text(encoding="utf-8")
    if "{problem}" not in text:
        raise UserError(
            "an instruction with {problem} in it", f"none in {path}", "write {problem} where the statement goes"
        )
    return text
