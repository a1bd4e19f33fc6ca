"""The base class of all settings, and the number types that they share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
    """A table of a recipe. Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
