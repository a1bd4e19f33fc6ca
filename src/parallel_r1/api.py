"""The functions of the public API. Everything here is exported by `parallel_r1` itself.

Settings that have many fields may be given as keyword arguments: `generate(policy, prompt, paths=4, temperature=0.7)`
is `generate(policy, prompt, sampling=Sampling(paths=4, temperature=0.7))`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from parallel_r1.answers.rollout import Message
from parallel_r1.answers.schemas import Schema
from parallel_r1.answers.trace import EXACT_SCORER, Sampler, Scorer
from parallel_r1.coldstart.examples import Example, checked, read_examples
from parallel_r1.errors import UserError, nearest
from parallel_r1.evaluation import parity as parity_module
from parallel_r1.evaluation.folder import EvaluationFolder
from parallel_r1.evaluation.measure import Result, draw, held_out, summarise
from parallel_r1.evaluation.session import Session
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.rollouts import check_length
from parallel_r1.generation.settings import Branches, Budget, Engine, Sampling
from parallel_r1.generation.training_card import departures, read_card
from parallel_r1.models.policy import Policy
from parallel_r1.models.tokens import Form, read_chat
from parallel_r1.report.answer import Answer
from parallel_r1.settings import Section
from parallel_r1.tasks.base import Task
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.loops import Step, run_rl, run_sft
from parallel_r1.training.mismatch import Mismatch
from parallel_r1.training.rewards.base import as_reward, check_forks
from parallel_r1.training.rewards.language import parse_reward
from parallel_r1.training.rewards.outcome import Outcome, Terms
from parallel_r1.training.settings import RL, SFT


def generate(
    policy: Policy,
    prompt: str | Sequence[str] | Sequence[Mapping[str, str]],
    *,
    form: Form | None = None,
    samples: int = 1,
    seed: int | str = 0,
    sampling: Sampling | None = None,
    engine: Engine | None = None,
    on_token: Callable[[int, tuple[tuple[int, int], ...], int, bool], None] | None = None,
    **options: Any,
) -> list[Answer]:
    """Generate answers that may fork.

    Args:
        prompt: one text, or several; or the messages of one chat, such as `[{"role": "user", "content": "Hi"}]`, the
            last of them the user's.
        form: "plain" for text, "chat" for the model's own chat template, which messages need. If None, as the weights
            were trained; plain without a training card.
        samples: number of answers to every prompt.
        seed: the same seed, prompts and policy give the same answers.
        sampling: the distribution and the budget. If None, the settings of the training card in the weights' folder, or
            the defaults of `Sampling` without a card.
        engine: rows, memory, compile, device; the defaults of `Engine` if None.
        on_token: called as `on_token(answer, address, token, sampled)` for every token, as it is sampled or given.
        options: fields of `Sampling`, `Budget` and `Branches`, such as `paths=4` or `critical_path=64`; they win
            over `sampling`.

    Returns:
        The answers, grouped by prompt in the order of `prompt`.

    Raises:
        UserError: an unknown option or a value out of range; an empty prompt, or one that leaves too few of the model's
            positions for the answer; a chat for a model without a template.
    """
    _check_count("samples", samples)
    settings, trained = _settings(policy, sampling, None, options)
    form = trained.form if form is None else form
    _check_name("form", form, Form)
    prompts = _prompts(prompt)
    encoded = [policy.encode_prompt(text, form, before) for text, before in prompts]
    for ids in encoded:
        check_length(policy, len(ids), settings)
    asked = [(text, ids) for (text, _), ids in zip(prompts, encoded, strict=True) for _ in range(samples)]
    requests = [Request(ids, settings, f"{seed}/{index}") for index, (_, ids) in enumerate(asked)]
    traces = make_generator(policy, engine).traces(requests, on_token=on_token)
    return [Answer(text, trace, trace.texts(policy.decode)) for (text, _), trace in zip(asked, traces, strict=True)]


def evaluate(
    policy: Policy,
    task: str | Task,
    *,
    problems: int = 200,
    samples: int = 8,
    split: Split = "test",
    seed: int = 1234,
    sampling: Sampling | None = None,
    prompt: Prompt | None = None,
    engine: Engine | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Result:
    """Measure a policy on problems that it was not trained on.

    Args:
        task: the name of a registered task or of a public set of problems, or a task object.
        problems: number of problems; all of the split if it has fewer.
        samples: number of answers to every problem, the k of mean@k and pass@k.
        split: the split to take the problems from: "test", "validation" or "train".
        seed: chooses the problems and seeds the answers.
        sampling, engine, options: as for `generate`.
        prompt: text around every problem, and where its final answer may stand; None as for `sampling`.
        out: a folder that keeps every answer as it is drawn, as `parallel-r1 eval --out` does, so that the same call
            goes on after an interruption; `compare` and `show` read it. None keeps nothing.

    Returns:
        The metrics with 95 % intervals; `result.compare(other)` gives the paired difference to another result.

    Raises:
        UserError: an unknown task or option, a task without problems in this split; `out` with an evaluation of other
            settings, or of other weights.
    """
    _check_count("problems", problems)
    _check_count("samples", samples)
    _check_name("split", split, Split)
    settings, prompt = _settings(policy, sampling, prompt, options)
    chosen = load_task(task)
    if out is not None:
        asked = {chosen.name: samples}
        name = policy.source or "weights in memory"
        session = Session(name, [chosen], asked, problems, seed, settings, prompt, split=split)
        engine = engine or Engine()
        (measured,) = session.run(policy, engine, EvaluationFolder(Path(out)), session.settings(engine))
        return measured.result
    held = held_out(chosen, problems, seed, split)
    return summarise(
        draw(policy, chosen, held, samples, settings, seed, prompt=prompt, generator=make_generator(policy, engine))
    )


def sft(
    policy: Policy,
    data: str | Path | Iterable[Example | tuple[str, str]],
    *,
    steps: int,
    batch: int = 64,
    seed: int = 0,
    **settings: Any,
) -> Iterator[Step]:
    """Fine-tune a policy on example answers. The weights change in place, one update per item taken from the iterator.

    Args:
        data: a JSONL or parquet file with the columns `prompt` and `text`, or (prompt, text) pairs; the answers are
            written in the schema of the policy.
        steps: number of updates.
        batch: number of answers in an update.
        seed: determines the order of the answers.
        settings: keys of an sft stage of a recipe, such as `optimizer={"lr": 1e-4}`, `sampling={"sampler": ..}`.

    Yields:
        The steps, with `.metrics`.

    Raises:
        UserError: an unknown key or a value out of range; data that cannot be read; a malformed answer.
    """
    schema = policy.tags.schema
    if isinstance(data, str | Path):
        source, examples = str(data), read_examples(Path(data), schema)
    else:
        source, examples = "(given in Python)", [_example(item, number, schema) for number, item in enumerate(data)]
    if not examples:
        raise UserError("answers to imitate", "none", "give at least one (prompt, text) pair")
    _refuse_recipe_keys(settings)
    values = {**settings, "kind": "sft", "steps": steps, "batch": batch, "data": {"file": source}}
    stage = _section(SFT, values)
    policy.source = None  # the weights are about to change
    return run_sft(policy, stage, seed, examples=examples)


def rl(
    policy: Policy,
    task: str | Task,
    reward: str | Callable[[Outcome], Terms | float] = "accuracy()",
    *,
    steps: int,
    problems: int = 16,
    group: int = 8,
    seed: int = 0,
    engine: Engine | None = None,
    **settings: Any,
) -> Iterator[Step]:
    """Train a policy by reinforcement learning. The weights change in place, one step per item taken from the iterator.

    Args:
        task: the name of a registered task or of a public set of problems, or a task object.
        reward: an expression of the reward language such as "accuracy()", a call of a function decorated with
            `@reward`, or any function of an `Outcome` that returns terms or a number.
        steps: number of batches of rollouts.
        problems, group: number of problems in a batch, and of answers to every problem.
        seed: determines the order of the problems, and seeds the answers.
        engine: settings of generation; the defaults of `Engine` if None.
        settings: keys of an rl stage of a recipe, such as `algorithm={"name": "gspo"}`, `optimizer={"lr": 1e-6}`,
            `sampling=Sampling(paths=4)`.

    Yields:
        The steps, with `.metrics` and `.rollouts`.

    Raises:
        UserError: an unknown task, reward or key; a value out of range. An exception in your own reward or task is
            raised unchanged.
    """
    _refuse_recipe_keys(settings)
    chosen = load_task(task)
    earn = parse_reward(reward) if isinstance(reward, str) else as_reward(reward)
    values = {**settings, "kind": "rl", "task": chosen.name, "reward": repr(earn), "steps": steps}
    stage = _section(RL, {**values, "problems": problems, "group": group})
    check_forks(earn, stage.sampling.opens_forks)
    policy.source = None  # the weights are about to change
    return run_rl(policy, stage, seed, engine=engine, task=chosen, reward=earn)


def train(
    recipe: str | Path,
    *,
    out: str | Path,
    overrides: Sequence[str] = (),
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> list[Result]:
    """Run every stage of a recipe, as `parallel-r1 train` does, without printing. After an interruption the same call
    continues the run.

    Args:
        recipe: a recipe file.
        out: the run folder: a new one, or that of an interrupted run of this recipe.
        overrides: changes of the recipe, such as "stages.hard.steps=10".
        on_row: called with every row of metrics.

    Returns:
        The evaluations in the order of the stages, the base model first.

    Raises:
        UserError: the recipe is invalid, a file or package that it needs is missing, or the folder holds anything but a
            run of this recipe.
    """
    from parallel_r1.runs import curriculum
    from parallel_r1.runs.folder import RunFolder
    from parallel_r1.runs.recipe_check import check
    from parallel_r1.runs.recipe_file import load_recipe

    loaded = load_recipe(Path(recipe), list(overrides))
    check(loaded)
    policy = curriculum.build_policy(loaded)
    run = RunFolder.create(Path(out), loaded)
    results = curriculum.train(loaded, policy, run, on_row or (lambda row: None))
    run.finish()
    return results


def parity(
    policy: Policy,
    sampler: Sampler = "isolated",
    scorer: Scorer | None = None,
    *,
    paths: int = 2,
    answers: int = 8,
    forks: int = 3,
    seed: int = 0,
    engine: Engine | None = None,
) -> Mismatch:
    """Measure how far the log-probabilities of a sampler and a scorer differ, on answers into which forks are forced.

    Args:
        sampler: how the answers are generated.
        scorer: how they are scored; the sampler's exact partner if None, so that only rounding differs.
        paths: number of paths of every fork.
        answers, forks: number of answers, and of forks in every answer.
        seed: seeds the answers.
        engine: settings of generation; the defaults of `Engine` if None.
    """
    _check_name("sampler", sampler, Sampler)
    if scorer is not None:
        _check_name("scorer", scorer, Scorer)
    for name, count in (("paths", paths), ("answers", answers), ("forks", forks)):
        _check_count(name, count)
    scorers: tuple[Scorer, ...] = (scorer or EXACT_SCORER[sampler],)
    (result,) = parity_module.measure(
        policy, sampler, scorers, paths, answers=answers, forks=forks, seed=seed, engine=engine
    )
    return result


def _prompts(prompt: Any) -> list[tuple[str, tuple[Message, ...]]]:
    """The prompts of `generate`: texts, with the messages before them."""
    if isinstance(prompt, str):
        return [(prompt, ())]
    if isinstance(prompt, Sequence) and all(isinstance(text, str) for text in prompt):
        return [(text, ()) for text in prompt]
    if isinstance(prompt, Sequence) and any(isinstance(message, Mapping) for message in prompt):
        return [read_chat(prompt)]
    raise UserError("a prompt, or a list of prompts, as text", f"{prompt!r:.60}", "give generate(policy, 'Use 1, ..')")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"a whole number above 0 for {name}", repr(value), f"give {name}=1 or more")


def _check_name(name: str, value: object, names: Any) -> None:
    """Refuse a value that is none of a Literal's."""
    if value not in get_args(names):
        raise UserError(
            f"{name} one of {', '.join(get_args(names))}", repr(value), nearest(str(value), get_args(names))
        )


def _refuse_recipe_keys(settings: dict[str, Any]) -> None:
    """Refuse keys of a stage that mean something in a recipe only."""
    for key in ("kind", "start", "stop", "save_rollouts_every"):
        if key in settings:
            raise UserError("keys that one stage alone can honour", key, "leave it out, or use a recipe and pr.train")


def _example(item: object, number: int, schema: Schema) -> Example:
    """An item of `data` in `sft`; a pair is written in the schema of the policy."""
    if not isinstance(item, Example):
        pair = tuple(item) if isinstance(item, tuple | list) else ()
        if len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise UserError(
                "(prompt, text) pairs of two texts that are not empty",
                f"{item!r:.60} as item {number}",
                "give pairs, Example objects, or the path of a file",
            )
        item = Example(*pair, schema=schema)
    return checked(item, f"answer {number}")


def _settings(
    policy: Policy, sampling: Sampling | None, prompt: Prompt | None, options: dict[str, Any]
) -> tuple[Sampling, Prompt]:
    """The settings to generate with: the caller's, else those of the training card, else the defaults. Warns if they
    differ from the training of the weights."""
    if sampling is not None and not isinstance(sampling, Sampling):
        raise UserError(
            "a Sampling object", f"{sampling!r:.60}", "give sampling=pr.Sampling(..), or its fields by name"
        )
    if prompt is not None and not isinstance(prompt, Prompt):
        raise UserError("a Prompt object", f"{prompt!r:.60}", "give prompt=pr.Prompt(instruction=..)")
    card = read_card(policy.source) if policy.source else None
    if card is None:
        return _changed(sampling or Sampling(), options), prompt or Prompt()
    sampling = _changed(sampling or card.sampling, options)
    for departure in departures(card, sampling, prompt or card.prompt):
        warnings.warn(f"the weights in {policy.source} were trained with {departure}", stacklevel=3)
    return sampling, prompt or card.prompt


def _changed(base: Sampling, options: dict[str, Any]) -> Sampling:
    """`base` with fields of `Sampling`, `Budget` and `Branches` replaced by `options`."""
    sections: dict[str, Any] = {}
    for name, section in (("budget", Budget), ("branches", Branches)):
        whole = options.pop(name, getattr(base, name))
        fields = whole.model_dump() if isinstance(whole, Section) else dict(whole)
        sections[name] = fields | {key: options.pop(key) for key in list(options) if key in section.model_fields}
    return _section(Sampling, {**base.model_dump(), **options, **sections})


def _section(section: type[Any], values: dict[str, Any]) -> Any:
    """Validate the values of a section of settings; a mistake is a `UserError` of one line."""
    from parallel_r1.runs.recipe_file import validated

    sections = {name: value.model_dump() for name, value in values.items() if isinstance(value, Section)}
    return validated(section, {**values, **sections}, Path("the arguments"))
