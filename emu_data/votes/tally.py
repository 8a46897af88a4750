"""From votes to a decision for each picture (paper sec. 3.3, items 5 and 6: generalists, then specialists).

The paper gives no rule for how its annotators' votes were put together; these are ours. The same for people
and for the rubric panel: what only a rubric has (a score) is used only to order pictures that the votes
leave level.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import pandas as pd

from emu_data.votes.vote import CURATION_DECISIONS, Vote, check_counted

Rule = Literal["any", "majority"]


def tally(votes: Sequence[Vote], rule: Rule = "majority") -> pd.DataFrame:
    """A row for each picture that the counted votes of one round are about (`votes.counted`), best first.

    Columns: key, num_votes, num_keep, keep_share (0..1), mean_score (0..1, NaN for people), by_people (whether a
    person voted), goes_on, reason (the commonest reason among the drops, "" if none). `rule` "any": one keep is
    enough (recall); "majority": more keeps than drops (precision). Order: goes_on, keep_share, by_people (of two
    that all kept, the one that people kept comes first), mean_score, key; so it does not depend on the order of
    votes of different raters. Raises ValueError for votes that are not counted ones, or of a side-by-side round.
    """
    check_counted(votes)
    if any(vote.decision not in CURATION_DECISIONS for vote in votes):
        raise ValueError("side-by-side votes have no keep or drop; use emu_data.votes.preference for them")
    by_key: dict[str, list[Vote]] = {}
    for vote in votes:
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
                "by_people": any(vote.rater_kind == "person" for vote in own),
                "goes_on": goes_on,
                # Counter breaks ties by first appearance; by name, the order of the votes does not matter.
                "reason": min(reasons, key=lambda reason: (-reasons[reason], reason)) if reasons else "",
            }
        )
    columns = ["key", "num_votes", "num_keep", "keep_share", "mean_score", "by_people", "goes_on", "reason"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(
        ["goes_on", "keep_share", "by_people", "mean_score", "key"],
        ascending=[False, False, False, False, True],
        ignore_index=True,
    )


def choose(table: pd.DataFrame, at_most: int | None = None) -> list[str]:
    """Keys of a `tally` that go on, best first, no more than `at_most` of them.

    Fewer than `at_most` come back if the votes let fewer through: a stage of precision is not filled up with
    drops.
    """
    return table.loc[table["goes_on"].astype(bool), "key"].tolist()[:at_most]
