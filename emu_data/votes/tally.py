"""From votes to a decision for each picture (paper sec. 3.3, items 5 and 6: generalists, then specialists).

The paper does not say how its annotators' votes were combined; these rules are chosen here. They are the same for
people and for the rubric panel: scores, which only a rubric has, only order pictures with equal votes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import pandas as pd

from emu_data.votes.vote import CURATION_DECISIONS, Vote, check_counted

Rule = Literal["any", "majority"]


def tally(votes: Sequence[Vote], rule: Rule = "majority") -> pd.DataFrame:
    """Return a row for each picture with counted votes (`vote.counted`) of one round, the best first.

    Columns: key, num_votes, num_keep, keep_share (0..1), mean_score (0..1, NaN for people), by_people (whether a
    person voted), goes_on, reason (the most frequent one among the drops, "" if none). `rule` "any": one keep is
    enough (recall); "majority": more keeps than drops (precision). Rows are sorted by goes_on, keep_share, by_people
    (people's choices come before the panel's), mean_score and key, so the result does not depend on the order of the
    votes. Raises ValueError for votes that `counted` did not return, or votes of a side-by-side round.
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
                # Ties are broken by name, since Counter breaks them by the order of the votes.
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
    """Return the keys of a `tally` that go on, the best first, at most `at_most` of them.

    If fewer go on, fewer are returned: a round for precision is not filled up with dropped pictures.
    """
    return table.loc[table["goes_on"].astype(bool), "key"].tolist()[:at_most]
