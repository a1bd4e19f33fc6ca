"""The base class of all settings, and the number types that they share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction in 0..1."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""A decay rate in 0..1, 1 excluded."""
Count = Annotated[int, Field(ge=1)]
"""A positive integer."""


class Section(BaseModel):
    """A table of a recipe. Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
