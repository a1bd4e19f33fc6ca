"""verl's configuration as words of its command line, which Hydra reads."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Raw(str):
    """A value as Hydra shall read it, from the command line."""


def arguments(keys: Mapping[str, Any], variables: Mapping[str, str]) -> list[str]:
    """The configuration as arguments of `python -m verl.trainer.main_ppo`."""
    remote = {f"+ray_kwargs.ray_init.runtime_env.env_vars.{key}": quoted(value) for key, value in variables.items()}
    return [f"{key}={text(value)}" for key, value in {**keys, **remote}.items()]


def text(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "True", False: "False", None: "null"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(text, value)) + "]"
    if isinstance(value, Raw) or not isinstance(value, str):
        return repr(value) if isinstance(value, float) else str(value)
    return value if PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false") else quoted(value)


PLAIN = re.compile(r"[A-Za-z/][\w./-]*", re.ASCII)
"""Texts that Hydra reads as they are."""


def quoted(text: str) -> Raw:
    """A text that Hydra reads as a text, whatever stands in it."""
    return Raw("'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")


def lines(arguments: Sequence[str]) -> Iterator[str]:
    """The launch command over several lines, for people and shells."""
    words = ["python -m verl.trainer.main_ppo", *(f"    {shlex.quote(argument)}" for argument in arguments)]
    for word in words[:-1]:
        yield word + " \\"
    yield words[-1]
