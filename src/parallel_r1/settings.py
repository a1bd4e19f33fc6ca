"""The base class of all settings, and the number types that they share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from parallel_r1.errors import UserError, nearest

Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction in 0..1."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""A decay rate in 0..1, 1 excluded."""
Count = Annotated[int, Field(ge=1)]
"""A positive integer."""


def _is_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .+-]*", name):
        raise ValueError("it names a folder: begin it with a letter or digit, go on with these, spaces, and . + - _")
    return name


Name = Annotated[str, AfterValidator(_is_name)]
"""A name that a folder has too, so that it cannot lead out of its parent folder."""


class Section(BaseModel):
    """A table of a recipe. Immutable; an unknown key is an error.

    Raises:
        UserError: a call with an unknown key or with a value out of range. `model_validate`, which reads whole recipes,
            raises pydantic's `ValidationError`, which knows all mistakes and where they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self._explain(error) from None

    # Without this mark of pydantic's own, `model_validate` would call `__init__` for every table inside a table.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def _explain(cls, error: ValidationError) -> UserError:
        """The first mistake in a call as one line; an unknown key comes first, as it may be a missing one misspelt."""
        first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
        *above, key = ".".join(str(part) for part in first["loc"]).rsplit(".", 1)
        if first["type"] == "extra_forbidden":
            known = list(cls.model_fields)
            advice = nearest(key, known) if not above else "see the fields of its class"
            return UserError(f"a field of {'.'.join([cls.__name__, *above])}", f"'{key}'", advice)
        name = ".".join([*above, key]) or "values"
        value = "" if isinstance(first["input"], dict) else f" = {first['input']!r:.60}"
        return UserError(f"a valid {cls.__name__}", f"{name}{value}", first["msg"].removeprefix("Value error, "))


def flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as one, with keys joined by dots.

    Args:
        above: put before every key.
    """
    entries: dict[str, Any] = {}
    for name, value in table.items():
        entries |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return entries
