"""The base of all settings, and the kinds of numbers in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


Decay = Annotated[float, Field(ge=0, lt=1)]


Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
