"""The side-by-side reports: which of two contestants wins on appeal, and on faithfulness (paper sec. 4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.votes.agreement import Agreement
from emu_data.votes.vote import Vote, describe_voters, votes_to_frame
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
    preference: "Preference",
    votes: list[Vote],
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

    votes: those that count (emu_data.votes.vote.counted). prompts: columns key, prompt, one row a pair.
    pictures: of the two contestants, uint8 (N, H, W, 3) in the order of the prompts. votes_head: the head hash
    of the log that holds the votes, by which it can be checked later. judge_error: of the model that voted on known
    pairs, see known_pairs.JudgeError.
    """
    saved: dict[str, Picture] = {}
    (first, second), (of_first, of_second) = comparison, pictures
    rows = save_pairs(prompts, {second: of_second, first: of_first}, saved)  # the candidate stands right
    frame = votes_to_frame(votes)
    counts = pd.crosstab(frame["key"], frame["decision"]).reindex(prompts["key"], fill_value=0)
    by_rater = pd.crosstab(frame["rater"], frame["decision"], normalize="index") * 100
    names = ["A", "tie", "B"] if axis == "appeal" else ["A", "both", "neither", "B"]
    for row, (_, given) in zip(rows, counts.iterrows(), strict=True):
        row["votes"] = {name: int(given.get(name, 0)) for name in names}
    voters = describe_voters(votes)
    data = {
        "axis": axis,
        "comparison": list(comparison),
        **describe_run(run, voters),
        "voters": voters,
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
    """The win and lose rates with intervals, and the paper's, for Dagster's pages. candidate: the name of A."""
    rows: list[tuple[str, Any]] = [(f"{candidate} wins, ours", preference.win)]
    rows += [(f"{candidate} wins, {figure['name']}", figure["win"]) for figure in PREFERENCE[axis]]
    rows += [(f"{candidate} loses, ours", preference.lose)]
    rows += [(f"{candidate} loses, {figure['name']}", figure["lose"]) for figure in PREFERENCE[axis]]
    title = f"{axis}: {preference.num_prompts} prompts, {preference.num_raters} raters, 95 % intervals"
    return interval_picture(rows, "per cent of votes", title)
