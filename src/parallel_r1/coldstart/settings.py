"""What a recipe may say of the answers to imitate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.settings import Count, Section, Share


class Data(Section):
    """What supervised fine-tuning reads: a file of answers, or what a procedural teacher writes.

    Attributes:
        file: JSONL or parquet with the columns prompt and text; then no other field but `format` may be given.
        format: the schema of the answers in the file: a name, or a TOML file. They are put into that of the model.
        tasks: task -> weight, for the teacher.
        rehearse: task -> weight, for what the base could do already; in the share `rehearsal` of the examples. These
            are sequential answers whose first token, the choice between forking and not, is given: they keep the
            skill and teach nothing about when to fork.
        parallel: the share of the other answers that have a fork.
        paths: paths of a fork.
        tries: how many tries the teacher makes in a path.
        sequential_tries: and in an answer without a fork, or after a fork in which no path succeeded.
    """

    file: str | None = None
    format: str = DEFAULT.name
    tasks: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    rehearse: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    rehearsal: Share = 0.0
    parallel: Share = 0.0
    paths: Annotated[int, Field(ge=2)] = 2
    tries: Count = 3
    sequential_tries: Count = 5

    @model_validator(mode="after")
    def one_source(self) -> Data:
        if (self.file is None) == (not self.tasks):
            raise ValueError("exactly one of file and tasks must be given")
        others = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.file is not None and (useless := sorted({*others} - {"file", "format"})):
            raise ValueError(f"{useless[0]} has no effect beside file: leave it out")
        if self.file is None and "format" in others:
            raise ValueError("format has no effect without file: leave it out")
        if (self.rehearsal > 0) != bool(self.rehearse):
            raise ValueError("rehearse and rehearsal go together: tasks, and the share of examples from them")
        return self
