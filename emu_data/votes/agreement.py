"""Do raters agree: Krippendorff's alpha and Gwet's AC1 on votes.

The paper reports no agreement. Kappa collapses when one decision is rare (1 to 10 % of keeps, as in the last
stage of curation): alpha does too, in part, AC1 does not, so both are shown. One person agrees with the
consensus on appeal 65 to 78 % of the time; a low alpha is to be expected there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import krippendorff
import numpy as np
import pandas as pd
from irrCAC.raw import CAC

from emu_data.votes.vote import Vote, check_counted

NAN = float("nan")


@dataclass(frozen=True)
class Agreement:
    """Agreement of one round. Coefficients are at most 1 (full agreement), 0 at what chance gives.

    `raw_agreement` is the share (0..1) of pairs of votes on one item that are
    equal. They are NaN where they are undefined: fewer than two items that two raters saw, or (alpha) one
    decision only.
    """

    num_items: int
    num_raters: int
    num_votes: int
    raw_agreement: float
    krippendorff_alpha: float
    gwet_ac1: float


def measure_agreement(votes: Sequence[Vote]) -> Agreement:
    """Agreement of the counted votes of one round (`votes.counted`).

    Decisions are nominal. Items that only one rater saw do not count. Raises ValueError for votes that are
    not counted ones.
    """
    check_counted(votes)
    rows = [(vote.key, vote.rater, vote.decision) for vote in votes]
    frame = pd.DataFrame(rows, columns=["key", "rater", "v"])
    table = frame.pivot(index="key", columns="rater", values="v")
    table = table.loc[table.notna().sum(axis=1) >= 2]
    num_votes = int(table.notna().to_numpy().sum())
    if table.empty:
        return Agreement(0, 0, 0, NAN, NAN, NAN)
    table = table.dropna(axis=1, how="all")
    decisions = sorted({vote.decision for vote in votes})
    counts = np.stack([(table == decision).sum(axis=1).to_numpy() for decision in decisions], axis=1)
    of_item = counts.sum(axis=1)
    raw = float(np.mean((counts * (counts - 1)).sum(axis=1) / (of_item * (of_item - 1))))
    has_contrast = int((counts.sum(axis=0) > 0).sum()) > 1
    if not has_contrast:  # every vote the same: full agreement, which alpha cannot tell from chance
        return Agreement(len(table), table.shape[1], num_votes, raw, NAN, 1.0)
    if len(table) < 2:
        return Agreement(1, table.shape[1], num_votes, raw, NAN, NAN)
    alpha = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
    ac1 = CAC(table.reset_index(drop=True)).gwet()["est"]["coefficient_value"]
    return Agreement(len(table), table.shape[1], num_votes, raw, float(alpha), float(ac1))
