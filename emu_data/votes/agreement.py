"""How much raters agree: Krippendorff's alpha with its interval, and Gwet's AC1, from votes.

The paper reports no agreement. Kappa collapses if one decision is rare (1 to 10 % kept, as in the last round of
curation); alpha does so in part, AC1 does not, so both are shown. One person agrees with the consensus on appeal 65 to
78 % of the time, so a low alpha is to be expected there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emu_data.votes.intervals import Interval
from emu_data.votes.vote import Vote, check_counted

NAN = float("nan")
UNDEFINED = Interval(NAN, NAN, NAN)
NUM_RESAMPLES = 2000  # of alpha's bootstrap: its limits then vary by about 0.01 between seeds; chosen here


@dataclass(frozen=True)
class Agreement:
    """Agreement in one round. Coefficients are at most 1 (full agreement); 0 is what chance gives.

    raw_agreement: the share (0..1) of pairs of votes on one item that are equal. krippendorff_alpha: with its 95 %
    interval. Values are NaN if undefined: with fewer than two items that two raters saw, or (alpha) a single decision.
    num_items counts the items that at least two raters saw; num_raters and num_votes count those on them.
    """

    num_items: int
    num_raters: int
    num_votes: int
    raw_agreement: float
    krippendorff_alpha: Interval
    gwet_ac1: float


def measure_agreement(votes: Sequence[Vote]) -> Agreement:
    """Return the agreement of one round's counted votes (`vote.counted`).

    Decisions are nominal. Items that only one rater saw do not count, except for how common each decision is, which AC1
    needs. Raises ValueError for votes that `counted` did not return.
    """
    check_counted(votes)
    if not votes:
        return Agreement(0, 0, 0, NAN, UNDEFINED, NAN)
    frame = pd.DataFrame({"key": [v.key for v in votes], "rater": [v.rater for v in votes]})
    frame["code"], decisions = pd.factorize(np.array([v.decision for v in votes], dtype=object), sort=True)
    codes = frame.pivot(index="key", columns="rater", values="code").to_numpy(float)  # NaN where not seen
    counts = np.stack([(codes == code).sum(1) for code in range(len(decisions))], 1)
    codes = codes[counts.sum(1) >= 2]
    num_items, num_votes = len(codes), int(np.isfinite(codes).sum())
    num_raters = int(np.isfinite(codes).any(0).sum())
    if not num_items:
        return Agreement(0, 0, 0, NAN, UNDEFINED, NAN)
    raw, ac1 = raw_agreement(counts), gwet_ac1(counts)
    has_contrast = len(np.unique(codes[np.isfinite(codes)])) > 1
    if not has_contrast:  # all votes are equal: full agreement, which alpha cannot distinguish from chance
        return Agreement(num_items, num_raters, num_votes, raw, UNDEFINED, ac1)
    if num_items < 2:
        return Agreement(num_items, num_raters, num_votes, raw, UNDEFINED, NAN)
    return Agreement(num_items, num_raters, num_votes, raw, krippendorff_alpha(codes), ac1)


def krippendorff_alpha(codes: np.ndarray) -> Interval:
    """Return alpha for nominal decisions, with the 95 % interval of Krippendorff's bootstrap, which resamples pairs of
    votes.

    codes: (items, raters), the decision's number, NaN if the rater did not see the item; at least two different
    numbers.
    """
    import evalica

    found = evalica.alpha_bootstrap(pd.DataFrame(codes.T), "nominal", n_resamples=NUM_RESAMPLES, random_state=0)
    return Interval(found.alpha, found.low, found.high)


def raw_agreement(counts: np.ndarray) -> float:
    """Return the share (0..1) of pairs of votes on an item that are equal, averaged over items with two or more votes.

    counts: (items, decisions), the number of raters with that decision; at least one item with two votes.
    """
    counts = counts[counts.sum(1) >= 2]
    num = counts.sum(1)
    return float(np.mean((counts * (counts - 1)).sum(1) / (num * (num - 1))))


def gwet_ac1(counts: np.ndarray) -> float:
    """Return Gwet's AC1, (p_a - p_e) / (1 - p_e), for any number of raters and nominal decisions; votes may be missing.

    counts: (items, decisions), the number of raters with that decision; at least one item with two votes. p_a is
    `raw_agreement`; p_e = sum over the q decisions of pi_k (1 - pi_k) / (q - 1), where pi_k is the mean over items,
    including those with a single vote, of the share of votes that are k (Gwet 2008, British Journal of Mathematical and
    Statistical Psychology 61:29; for missing votes Gwet 2014, Handbook of Inter-Rater Reliability, 4th ed.). With a
    single decision AC1 is 1, since all agree.
    """
    counts = counts[counts.sum(1) > 0]
    num_decisions = int((counts.sum(0) > 0).sum())
    if num_decisions == 1:
        return 1.0
    pi = (counts / counts.sum(1, keepdims=True)).mean(0)
    by_chance = float((pi * (1 - pi)).sum()) / (num_decisions - 1)
    return (raw_agreement(counts) - by_chance) / (1 - by_chance)
