"""The instruction that asks a teacher for answers with forks."""

from __future__ import annotations

from importlib.resources import files

from parallel_r1.answers.schemas import DEFAULT


def instruction() -> str:
    """Our instruction, with an example of a fork and with `{problem}` where the statement goes."""
    text = files("parallel_r1.coldstart").joinpath("instruction.txt").read_text(encoding="utf-8")
    paths = ("one line of thought", "another line of thought")
    return text.replace("{fork}", DEFAULT.write(paths, "what they found, compared, and what the solution goes on with"))
