"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(help="A recipe, such as recipes/tiny/demo.toml.")]
ModelPath = Annotated[str, typer.Argument(help="A Hugging Face model folder or hub id, with the six tags.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value: --set section.key=value. Repeatable.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="The run folder: a new one, or one in which this recipe was broken off. Default: runs/NAME."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Also tell tensorboard, wandb, mlflow or trackio the metrics. Repeatable."),
]
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
