"""From votes to a decision for each picture (paper sec. 3.3, items 5 and 6: generalists, then specialists).

The paper gives no rule for how its annotators' votes were put together; these are ours. The same for people
and for the rubric panel: what only a rubric has (a score) is used only to order pictures that the votes
leave level.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import pandas as pd

from emu_data.votes import CURATION_DECISIONS, Vote

Rule = Literal["any", "majority"]


def latest(votes: Sequence[Vote]) -> list[Vote]:
    """The last vote of each (round, rater, key, is_repeat), in order of first appearance: what counts."""
    last: dict[tuple[str, str, str, bool], Vote] = {}
    for vote in votes:
        last[(vote.round, vote.rater, vote.key, vote.is_repeat)] = vote
    return list(last.values())


def tally(votes: Sequence[Vote], rule: Rule = "majority") -> pd.DataFrame:
    """A row for each picture of one round, best first.

    Columns: key, num_votes, num_keep, keep_share (0..1), mean_score (0..1, NaN for people), goes_on, reason
    (the commonest reason among the drops, "" if none). `rule` "any": one keep is enough (recall);
    "majority": more keeps than drops (precision). Order: goes_on, keep_share, mean_score, key; so it does
    not depend on the order of votes of different raters. Raises ValueError for votes of several rounds or of
    a side-by-side round.
    """
    counted = [vote for vote in latest(votes) if not vote.is_repeat]
    rounds = {vote.round for vote in counted}
    if len(rounds) > 1:
        raise ValueError(f"votes of several rounds ({', '.join(sorted(rounds))}): tally one round at a time")
    if any(vote.decision not in CURATION_DECISIONS for vote in counted):
        raise ValueError("side-by-side votes have no keep or drop; use emu_models.evaluation.preference for them")
    by_key: dict[str, list[Vote]] = {}
    for vote in counted:
        by_key.setdefault(vote.key, []).append(vote)
    rows = []
    for key, own in by_key.items():
        num_keep = sum(vote.decision == "keep" for vote in own)
        scores = [vote.score for vote in own if vote.score is not None]
        reasons = Counter(vote.reason for vote in own if vote.decision == "drop" and vote.reason)
        goes_on = num_keep >= 1 if rule == "any" else 2 * num_keep > len(own)
        rows.append(
            {
                "key": key,
                "num_votes": len(own),
                "num_keep": num_keep,
                "keep_share": num_keep / len(own),
                "mean_score": sum(scores) / len(scores) if scores else float("nan"),
                "goes_on": goes_on,
                # Counter breaks ties by first appearance; by name, the order of the votes does not matter.
                "reason": min(reasons, key=lambda reason: (-reasons[reason], reason)) if reasons else "",
            }
        )
    columns = ["key", "num_votes", "num_keep", "keep_share", "mean_score", "goes_on", "reason"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(
        ["goes_on", "keep_share", "mean_score", "key"],
        ascending=[False, False, False, True],
        ignore_index=True,
    )


def choose(table: pd.DataFrame, at_most: int | None = None) -> list[str]:
    """Keys of a `tally` that go on, best first, no more than `at_most` of them.

    Fewer than `at_most` come back if the votes let fewer through: a stage of precision is not filled up with
    drops.
    """
    return table.loc[table["goes_on"].astype(bool), "key"].tolist()[:at_most]
