"""The reports of the studies: other families of networks, and other tunings of the same one (Emu paper, sec. 4.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from emu_data.votes.intervals import Interval
from emu_reports.charts import Series, line_chart
from emu_reports.page import Card, Run, describe_run, write_report

if TYPE_CHECKING:
    from emu_data.votes.preference import Preference

NOT_PEOPLE = "rubric panels, not people"


@dataclass(frozen=True)
class Outcome:
    """What a tuning did, compared with the model before it (B of the preferences). num_learned: pictures learned.
    copies: per cent of the drawn pictures that are nearly one of those. variety: how far a prompt's pictures are from
    each other, 0..2. faithfulness: None if the judge knows the subject of no prompt.
    """

    name: str
    num_learned: int
    appeal: "Preference"
    faithfulness: "Preference | None"
    copies_before: Interval
    copies_after: Interval
    variety_before: Interval
    variety_after: Interval
    verdict: str

    def metrics(self) -> dict[str, float]:
        """Return its figures for MLflow, by the name of the tuning."""
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


@dataclass(frozen=True)
class Arm:
    """An arm of the tuning study. part: what differs, "share", "length", "chosen_by" or "captions". share: of the
    curated set. budget: what is equal among shares, "steps" or "epochs"."""

    part: str
    share: float
    budget: str
    num_steps: int
    seed: int
    outcome: Outcome


PARTS = {
    "share": "How few pictures",
    "length": "For how long",
    "chosen_by": "Chosen by whom",
    "captions": "Which captions",
}


def write_tuning_report(
    directory: Path, arms: Sequence[Arm], prompts: Sequence[str], sheet: Image.Image | None, run: Run
) -> dict[str, Any]:
    """Write the page and return what its report.json holds. arms: none if there is no study; then there is
    no card either. sheet: a row of pictures per arm of the first seed, of `prompts`."""
    data = {
        **describe_run(run, *([NOT_PEOPLE] if arms else [])),
        "arms": arms,
        "parts_shown": [
            {"title": PARTS[part], "part": part} for part in PARTS if any(one.part == part for one in arms)
        ],
        "prompts": prompts,
        "trade_off": find_trade_off(arms),
    }
    pictures = {} if sheet is None else {"sheet": sheet}
    charts = {part: _curves(arms, part) for part in ("share", "length") if any(one.part == part for one in arms)}
    cards = [Card("tuning", 71)] if arms else []
    return write_report(directory, "tuning", data, pictures, charts, cards)


def find_trade_off(arms: Sequence[Arm]) -> list[dict[str, float]]:
    """Return, of each length of the whole set's tuning, what it won and what it cost: steps, appeal (points of prompts
    won minus lost), faithfulness (likewise) and near_copies (per cent)."""
    found = []
    for one in sorted((one for one in arms if one.part == "length"), key=lambda one: one.num_steps):
        faithful = one.outcome.faithfulness
        found.append(
            {
                "steps": one.num_steps,
                "appeal": one.outcome.appeal.win_less_lose.estimate,
                "faithfulness": float("nan") if faithful is None else faithful.win_less_lose.estimate,
                "near_copies": one.outcome.copies_after.estimate,
            }
        )
    return found


def _curves(arms: Sequence[Arm], part: str) -> str:
    """Return an SVG: appeal, won minus lost, over pictures (a line per budget, means over seeds) or over steps."""
    lines: dict[str, dict[float, list[float]]] = {}
    for one in (one for one in arms if one.part == part):
        x = float(one.outcome.num_learned if part == "share" else one.num_steps)
        names = ["equal steps", "equal epochs"] if one.share == 1 else [f"equal {one.budget}"]
        for name in names if part == "share" else ["appeal"]:
            lines.setdefault(name, {}).setdefault(x, []).append(one.outcome.appeal.win_less_lose.estimate)
        if part == "length" and one.outcome.faithfulness is not None:
            cost = one.outcome.faithfulness.win_less_lose.estimate
            lines.setdefault("faithfulness", {}).setdefault(x, []).append(cost)
    series = [
        Series(name, sorted(points), [sum(points[x]) / len(points[x]) for x in sorted(points)], name in SOFT_LINES)
        for name, points in lines.items()
    ]
    return line_chart(series, "pictures learned" if part == "share" else "steps", "won less lost")


SOFT_LINES = ("equal epochs", "faithfulness")
