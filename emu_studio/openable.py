"""Rounds that a lead may open from the page. Whoever starts the server says which, and where pictures are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emu_studio.items import NewItem
from emu_studio.plan import RoundPlan

Tell = Callable[[int, int], object]  # is told how many pictures are done, and of how many


@dataclass(frozen=True)
class Openable:
    """A round that is ready to be opened. plan: as proposed; the lead may change it before. items: finds what is
    shown, and says meanwhile how far it is; it may take minutes, and raises ValueError with what is missing."""

    plan: RoundPlan
    items: Callable[[Tell], Sequence[NewItem]]


Registry = Callable[[], Mapping[str, Openable]]  # the rounds by name, as they are at the moment
