"""The reports of the studies: other families of networks, and other tunings of the same one (Emu paper, sec. 4.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from emu_data.votes.intervals import Interval
from emu_reports.page import Card, Run, describe_run, write_report

if TYPE_CHECKING:
    from emu_data.votes.preference import Preference

NOT_PEOPLE = "rubric panels, not people"


@dataclass(frozen=True)
class Outcome:
    """What a tuning did, compared with the model before it (B of the preferences). num_tuned_on: pictures. copies: per
    cent of the drawn pictures that are nearly one of those. variety: how far a prompt's pictures are from each other,
    0..2. faithfulness: None if the judge knows the subject of no prompt.
    """

    name: str
    num_tuned_on: int
    appeal: "Preference"
    faithfulness: "Preference | None"
    copies_before: Interval
    copies_after: Interval
    variety_before: Interval
    variety_after: Interval
    verdict: str

    def metrics(self) -> dict[str, float]:
        """Return its figures for MLflow, by the name of what was tuned."""
        found = {
            "appeal_win": self.appeal.win.estimate,
            "appeal_lose": self.appeal.lose.estimate,
            "near_copies": self.copies_after.estimate,
            "variety": self.variety_after.estimate,
        }
        if self.faithfulness is not None:
            found["faithfulness_win_less_lose"] = self.faithfulness.win_less_lose.estimate
        return {f"{name}_{self.name}": value for name, value in found.items()}


def write_generality_report(
    directory: Path, outcomes: Sequence[Outcome], prompts: Sequence[str], sheet: Image.Image | None, run: Run
) -> dict[str, Any]:
    """Write the page and return what its report.json holds. outcomes: of each family, none if no family was trained;
    then there is no card either. sheet: a row of pictures per family before and after, of `prompts`."""
    data = {**describe_run(run, *([NOT_PEOPLE] if outcomes else [])), "outcomes": outcomes, "prompts": prompts}
    pictures = {} if sheet is None else {"sheet": sheet}
    cards = [Card("generality", 70)] if outcomes else []
    return write_report(directory, "generality", data, pictures, cards=cards)
