"""The command line. Every command imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from rich.console import Console

from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.config import Sampling

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Teach language models to think in parallel: fork, explore several paths at once, join, go on.",
)
console = Console()

RecipePath = Annotated[Path, typer.Argument(help="A recipe, such as recipes/tiny/demo.toml.")]
ModelPath = Annotated[str, typer.Argument(help="A Hugging Face model folder or hub id, with the six tags.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value: --set section.key=value. Repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; must be new. Default: runs/NAME.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
SamplerName = Annotated[str, typer.Option(help="How answers are drawn: isolated, causal_join or sequential.")]
ScorerName = Annotated[str, typer.Option(help="How answers are scored: isolated, replay or causal.")]
Paths = Annotated[int, typer.Option(min=1, max=64, help="Paths of every fork.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="1 is the raw policy, 0 the most probable token.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw from the k most probable tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the tokens that make up this probability.")]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out tokens below this share of the best one.")]
Seed = Annotated[int, typer.Option(help="The same seed draws the same answers.")]
Total = Annotated[int, typer.Option(min=1, help="Budget: all tokens of an answer, over all paths.")]
Critical = Annotated[int, typer.Option(min=1, help="Budget: tokens one after the other, the answer's latency.")]
PathBudget = Annotated[int, typer.Option("--path-tokens", min=1, help="Budget: tokens of one path.")]
Forks = Annotated[int, typer.Option(min=0, help="Budget: forks of an answer.")]


@app.command()
def demo(
    out: Out = None,
    overrides: Overrides = None,
    recipe: Annotated[Path, typer.Option(help="The recipe to run.")] = Path("recipes/tiny/demo.toml"),
) -> None:
    """Watch a tiny model learn to think in parallel: the whole curriculum beside plain GRPO, in minutes on a CPU."""
    _run(recipe, out, overrides, None)


@app.command()
def train(recipe: RecipePath, out: Out = None, overrides: Overrides = None) -> None:
    """Run every stage of a recipe: a curriculum."""
    _run(recipe, out, overrides, None)


@app.command()
def sft(recipe: RecipePath, out: Out = None, overrides: Overrides = None) -> None:
    """Run the supervised stages of a recipe only."""
    _run(recipe, out, overrides, "sft")


@app.command()
def rl(recipe: RecipePath, out: Out = None, overrides: Overrides = None) -> None:
    """Run the reinforcement-learning stages of a recipe only. Give the start with --set model.path=FOLDER."""
    _run(recipe, out, overrides, "rl")


def _run(path: Path, out: Path | None, overrides: list[str] | None, kind: Literal["sft", "rl"] | None) -> None:
    from parallel_r1.config import load_recipe

    recipe = load_recipe(path, overrides)
    if kind is not None:
        recipe = recipe.only(kind)
    from parallel_r1 import display, report
    from parallel_r1.run_folder import RunFolder
    from parallel_r1.train import build_policy, check, train

    _quiet()
    check(recipe)
    folder = out or _free_folder(Path("runs") / recipe.name)
    RunFolder.check_vacant(folder)
    policy = build_policy(recipe)
    run = RunFolder.create(folder, recipe)
    console.print(f"writing to {run.path}", soft_wrap=True, highlight=False)
    with display.RunProgress(console) as progress:
        results = train(recipe, policy, run, progress)
    if results:
        (run.path / "table.md").write_text(report.markdown(results, recipe.compare), encoding="utf-8")
        display.results(console, results, recipe.compare)
    if not report.picture(report.read_metrics(run.path / "metrics.jsonl"), run.path / "curves.png"):
        console.print("no picture: it needs an RL stage and `pip install parallel-r1[plot]`")
    console.print(f"everything is in {run.path}", soft_wrap=True, highlight=False)


def _free_folder(wanted: Path) -> Path:
    """The wanted folder, or the first of NAME-2, NAME-3, .. that does not exist."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _quiet() -> None:
    """No progress bars of libraries between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@app.command("eval")
def evaluate(
    model: ModelPath,
    task: Annotated[list[str], typer.Option(help="A task, such as countdown-hard. Repeatable.")],
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each problem: the k of mean@k.")] = 8,
    sampler: SamplerName = "isolated",
    paths: Paths = 4,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 1234,
    total: Total = 512,
    critical_path: Critical = 256,
    path_tokens: PathBudget = 128,
    forks: Forks = 4,
    rollouts: Annotated[Path | None, typer.Option(help="Write the answers to this JSONL file, for `show`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on held-out problems: mean@k and pass@k with intervals, parallel ratio, latency."""
    budget = _budget(total, critical_path, path_tokens, forks)
    shape = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampling = _sampling(sampler=sampler, paths=paths, budget=budget, **shape)
    from parallel_r1 import display, models
    from parallel_r1.evaluate import answer, held_out, summarise
    from parallel_r1.rollout import write_jsonl
    from parallel_r1.tasks import load_task

    _quiet()
    chosen = [load_task(name) for name in task]
    if rollouts is not None and rollouts.exists():
        raise UserError("a new file for --rollouts", f"{rollouts} exists", "give another name")
    policy = models.load(model)
    drawn = [answer(policy, each, held_out(each, problems, seed), samples, sampling, seed) for each in chosen]
    results = [summarise(answers, model) for answers in drawn]
    if rollouts is not None:
        write_jsonl(rollouts, [rollout for answers in drawn for rollout in answers])
    if as_json:
        print(json.dumps([result.to_json() for result in results]))
    else:
        display.results(console, results, ())


@app.command()
def generate(
    model: ModelPath,
    prompt: Annotated[str, typer.Option(help="What the model reads, such as 'Use 3, 5, 7 to make 26.\\n'.")],
    sampler: SamplerName = "isolated",
    paths: Paths = 4,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer after this text. Repeatable.")] = None,
    seed: Seed = 0,
    total: Total = 512,
    critical_path: Critical = 256,
    path_tokens: PathBudget = 128,
    forks: Forks = 4,
    as_json: AsJson = False,
) -> None:
    """Draw one answer and watch trunk, paths and summary grow, each path in its colour."""
    budget = _budget(total, critical_path, path_tokens, forks)
    shape = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampling = _sampling(sampler=sampler, paths=paths, budget=budget, stop=tuple(stop or ()), **shape)
    from parallel_r1 import display, models
    from parallel_r1.attention import latency
    from parallel_r1.engines.local import LocalEngine
    from parallel_r1.fork_join import draw

    _quiet()
    policy = models.load(model)
    text = prompt.replace("\\n", "\n")  # a shell's plain quotes keep the two characters
    prompt_ids = policy.encode(text)
    models.check_length(policy, len(prompt_ids), sampling)

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
        with display.LiveAnswer(console, policy.decode) as live:
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
                            "text": policy.decode(span.token_ids),
                            "address": span.address,
                            "sampled": span.sampled,
                            "logprobs": span.logprobs,
                        }
                        for span in trace.spans
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


def _budget(total: int, critical_path: int, path: int, forks: int) -> dict[str, int]:
    return {"total": total, "critical_path": critical_path, "path": path, "forks": forks}


def _sampling(**values: Any) -> Sampling:
    """How answers are drawn, from the options of a command."""
    from pydantic import ValidationError

    from parallel_r1.config import Sampling
    from parallel_r1.trace import Sampler

    _one_of("--sampler", values["sampler"], Sampler)
    try:
        return Sampling.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UserError(
            f"a valid --{option}", repr(first["input"]), first["msg"].removeprefix("Value error, ")
        ) from error


def _one_of(option: str, value: str, names: Any) -> None:
    """Refuse a value that is none of a Literal's."""
    from parallel_r1.errors import nearest

    known = get_args(names)
    if value not in known:
        raise UserError(f"{option} one of {', '.join(known)}", f"'{value}'", nearest(value, known))


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A run folder, or a file of its rollouts/.")],
    count: Annotated[int, typer.Option(min=1, help="How many answers of a file to show.")] = 4,
    first: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    as_json: AsJson = False,
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
    from parallel_r1.rollout import read_jsonl, to_json

    for rollout in islice(read_jsonl(path), first, first + count):
        if as_json:
            print(json.dumps(to_json(rollout)))
        else:
            from parallel_r1 import display

            display.rollout(console, rollout)


@app.command()
def parity(
    model: ModelPath,
    sampler: SamplerName = "isolated",
    scorer: ScorerName = "isolated",
    paths: Paths = 2,
    every: Annotated[bool, typer.Option("--all", help="Compare every sampler with every scorer.")] = False,
    answers: Annotated[int, typer.Option(min=1, help="How many answers to compare on.")] = 8,
    forks: Annotated[int, typer.Option(min=1, help="Forks in each answer.")] = 3,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Check that what is sampled is what is scored: compare log-probabilities on answers with forks."""
    from parallel_r1 import display, models
    from parallel_r1.parity import measure
    from parallel_r1.trace import Sampler, Scorer

    _one_of("--sampler", sampler, Sampler)
    _one_of("--scorer", scorer, Scorer)
    _quiet()
    policy = models.load(model)
    samplers, scorers = (get_args(Sampler), get_args(Scorer)) if every else ((sampler,), (scorer,))
    found = [
        pair
        for name in samplers
        for pair in measure(policy, name, scorers, paths, answers=answers, forks=forks, seed=seed)
    ]
    if as_json:
        rows = [vars(pair) for pair in found]
        one = {key: value for key, value in rows[0].items() if key not in ("sampler", "scorer", "exact")}
        print(json.dumps(rows if every else one))
    else:
        display.parity(console, found)


@app.command()
def check(
    file: Annotated[str, typer.Argument(help='JSONL with {"text": ..} on every line; - reads standard input.')],
) -> None:
    """Check the format of answers: prints one JSON object per line with every defect. Exit code 1 if any is invalid."""
    invalid = False
    for line in _lines(file):
        found = _check_line(line)
        invalid |= not found["valid"]
        print(json.dumps(found, ensure_ascii=False))
    raise typer.Exit(1 if invalid else 0)


def _lines(file: str) -> Iterator[bytes]:
    """The lines of a file or of standard input that are not blank."""
    if file != "-" and not Path(file).is_file():
        raise UserError("a JSONL file, or - for standard input", f"no file {file}", "check the path")
    with sys.stdin.buffer if file == "-" else Path(file).open("rb") as stream:
        yield from (line for line in stream if line.strip())


def _check_line(line: bytes) -> dict[str, Any]:
    from parallel_r1.trace import parse_text

    try:
        text = json.loads(line)["text"]
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}, not a string")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        message = 'expected {"text": ..}, found ' + f"{type(error).__name__}: {error}"
        defect = {"kind": "broken-line", "at": at, "message": message}
        return {"valid": False, "defects": [defect], "forks": 0, "paths": [], "relative_positions": []}
    found = parse_text(text)
    return {
        "valid": not found.defects,
        "defects": [vars(defect) for defect in found.defects],
        "forks": len(found.fork_at),
        "paths": found.paths,
        "relative_positions": [round(at / len(text), 4) for at in found.fork_at],
    }


@app.command()
def inspect(
    model: ModelPath,
    text: Annotated[str, typer.Option(help="An answer, with its tags.")],
    scorer: ScorerName = "isolated",
    picture: Annotated[Path | None, typer.Option(help="Draw it into this PNG, SVG or PDF file instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how an answer is laid out: every token's address and position, who sees whom, the critical path."""
    from parallel_r1.attention import layout
    from parallel_r1.models import load_tokenizer, tag_ids
    from parallel_r1.trace import Scorer, parse

    _one_of("--scorer", scorer, Scorer)
    _quiet()
    tokenizer = load_tokenizer(model)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    trace = parse(token_ids, tag_ids(tokenizer))
    laid = layout(trace.runs, scorer)  # type: ignore[arg-type]
    by_token = [span.address for span in trace.spans for _ in span.token_ids]
    addresses = [by_token[token] for token in laid.source]  # under `replay` paths are there twice
    laid_ids = [token_ids[token] for token in laid.source]
    tokens = [str(tokenizer.decode([token])) for token in laid_ids]
    if as_json:
        print(
            json.dumps(
                {
                    "tokens": tokens,
                    "token_ids": laid_ids,
                    "addresses": addresses,
                    "positions": laid.positions.tolist(),
                    "mask": laid.mask().astype(int).tolist(),
                    "critical_path": laid.critical_path,
                    "total": len(token_ids),
                }
            )
        )
        return
    if picture:
        from parallel_r1.report import relation

        relation(laid, tokens, addresses, f"scorer {scorer}", picture)
        console.print(f"wrote {picture}")
        return
    from rich.table import Table
    from rich.text import Text

    from parallel_r1.display import colour

    table = Table("token", "position", "address", "sees")
    for token, position, address, row in zip(tokens, laid.positions, addresses, laid.mask(), strict=True):
        seen = "".join("█" if sees else "·" for sees in row)
        table.add_row(
            Text(repr(token)[1:-1], colour(address)),
            str(position),
            " > ".join(f"{fork + 1}.{path + 1}" for fork, path in address),
            seen,
        )
    console.print(table)
    console.print(f"critical path {laid.critical_path}, tokens {len(token_ids)}")


def main() -> None:
    """Run the command line; a mistake of the user is one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
