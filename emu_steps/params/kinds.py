"""The types in sections of params.yaml: numbers with their ranges, texts, and names that are checked.

Upper bounds without a source are chosen here, far above any useful value, so that a typing error (1e30, a pasted key)
is refused at once instead of failing hours later.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


class Section(BaseModel):
    """A part of params.yaml: unknown entries, NaN and infinities are refused; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _is_no_switch(value: Any) -> Any:
    """Refuse true and false, which Python would treat as numbers."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_is_no_switch)]
Number = Annotated[float, BeforeValidator(_is_no_switch)]

Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"\S")]  # not blank; 4096: Linux's limit for paths

Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[Whole, Field(gt=0, le=10**12)]  # of pictures, rows, resamples
Few = Annotated[Whole, Field(gt=0, le=10_000)]  # of workers, threads, raters, folds, tokens
Steps = Annotated[Whole, Field(gt=0, le=10**9)]  # optimiser steps
StepsOrNone = Annotated[Whole, Field(ge=0, le=10**9)]
Batch = Annotated[Whole, Field(gt=0, le=2**20)]  # rows per optimiser step, over all processes
Pixels = Annotated[Whole, Field(gt=0, le=16_384)]  # pixels per side
Channels = Annotated[Whole, Field(gt=0, le=16_384)]
Layers = Annotated[Whole, Field(gt=0, le=64)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]  # the range that every generator in use accepts
LearningRate = Annotated[Number, Field(gt=0, le=1)]
Weight = Annotated[Number, Field(ge=0, le=100)]  # of a loss
Voters = Literal["people, then panel", "people", "panel"]  # whose votes decide: emu_steps.voting
Cosine = Annotated[Number, Field(ge=-1, le=1)]


def refuse(section: BaseModel, wrong: Mapping[tuple[str | int, ...], str]) -> None:
    """Raise an error that pydantic collects, with a message for each wrong entry below `section`, by its path. Do
    nothing if `wrong` is empty.

    It is called from a validator of `section`, so that its messages are reported together with those of other entries.
    """
    if wrong:
        details = [
            InitErrorDetails(type=PydanticCustomError("reference", "{why}", {"why": why}), loc=path, input=None)
            for path, why in wrong.items()
        ]
        raise ValidationError.from_exception_data(type(section).__name__, details)


def unknown_names(path: tuple[str | int, ...], names: Iterable[str], allowed: Iterable[str]) -> dict[Any, str]:
    """Return the path of each name that is not allowed -> a message that lists the allowed names; for `refuse`."""
    known = list(allowed)
    message = "there is no {!r}; there are: {}"
    return {
        (*path, i): message.format(name, ", ".join(known) or "none")
        for i, name in enumerate(names)
        if name not in known
    }
