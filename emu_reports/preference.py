"""The side-by-side reports: which of two contestants wins on appeal, and on faithfulness (paper sec. 4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.votes.agreement import Agreement
from emu_data.votes.vote import Vote, votes_to_frame
from emu_reports.charts import interval_picture
from emu_reports.evaluation import save_pairs
from emu_reports.page import Card, Picture, Run, describe_run, write_report
from emu_reports.paper import PREFERENCE

if TYPE_CHECKING:
    from emu_data.votes.preference import PositionBias, Preference, SelfConsistency

Axis = Literal["appeal", "faithfulness"]


def write_preference_report(
    directory: Path,
    axis: Axis,
    preference: "Preference | None",
    votes: list[Vote],
    voters: str,
    prompts: pd.DataFrame,
    comparison: tuple[str, str],
    pictures: tuple[np.ndarray, np.ndarray],
    agreement: Agreement,
    bias: "PositionBias",
    consistency: "SelfConsistency",
    votes_head: str,
    run: Run,
    judge_error: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the page and return what its report.json holds. A is the first of `comparison`, B the second.

    preference: None if there are no votes, which the page then explains. votes: those that count
    (emu_data.votes.vote.counted). voters: who cast them, in words. prompts: columns key, prompt; one row per pair.
    pictures: the two contestants' pictures, each uint8 (N, H, W, 3) in the order of the prompts. votes_head: the head
    hash of the votes' log, with which the log can be verified later. judge_error: the error on known pairs of the model
    that voted, see known_pairs.JudgeError.
    """
    saved: dict[str, Picture] = {}
    (first, second), (of_first, of_second) = comparison, pictures
    rows = save_pairs(prompts, {second: of_second, first: of_first}, saved)  # the candidate is on the right
    frame = votes_to_frame(votes)
    counts = pd.crosstab(frame["key"], frame["decision"]).reindex(prompts["key"], fill_value=0)
    by_rater = (pd.crosstab(frame["rater"], frame["decision"], normalize="index") if votes else pd.DataFrame()) * 100
    names = ["A", "tie", "B"] if axis == "appeal" else ["A", "both", "neither", "B"]
    for row, (_, given) in zip(rows, counts.iterrows(), strict=True):
        row["votes"] = {name: int(given.get(name, 0)) for name in names}
    data = {
        "axis": axis,
        "comparison": list(comparison),
        **describe_run(run, voters),
        "voters": voters,
        "num_prompts": len(prompts),
        "num_votes_of_people": sum(vote.rater_kind == "person" for vote in votes),
        "preference": preference,
        "agreement": agreement,
        "bias": bias,
        "consistency": consistency,
        "votes_head": votes_head,
        "judge_error": judge_error,
        "paper": PREFERENCE[axis],
        "decisions": names,
        "raters": [
            {"name": str(rater), "rates": {name: float(given.get(name, 0.0)) for name in names}}
            for rater, given in by_rater.iterrows()
        ],
        "pairs": rows,
    }
    place = {"appeal": 20, "faithfulness": 30}[axis]
    return write_report(directory, "preference", data, saved, cards=[Card("preference", place)])


def picture_preference(axis: Axis, candidate: str, preference: "Preference") -> Image.Image:
    """Return a picture of our win and lose rates with intervals, and of the paper's rates, for Dagster's pages.
    candidate: the name of A.
    """
    rows: list[tuple[str, Any]] = [(f"{candidate} wins, ours", preference.win)]
    rows += [(f"{candidate} wins, {figure['name']}", figure["win"]) for figure in PREFERENCE[axis]]
    rows += [(f"{candidate} loses, ours", preference.lose)]
    rows += [(f"{candidate} loses, {figure['name']}", figure["lose"]) for figure in PREFERENCE[axis]]
    title = f"{axis}: {preference.num_prompts} prompts, {preference.num_raters} raters, 95 % intervals"
    return interval_picture(rows, "per cent of votes", title)
