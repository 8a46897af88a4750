"""How often the judge errs if the right answer is known: on real pictures that it has not seen, with captions.

A judge that cannot tell pictures apart finds no model worse than another, so its verdicts on faithfulness are only as
good as its answers here ("assay sensitivity", ICH E10, sec. 1.5). The pairs are simple ones of real pictures: on
generated pictures it may err more often, so its error here is a lower limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emu_data.votes.intervals import Interval, exact_rate
from emu_data.votes.items import Pair
from emu_data.votes.vote import Vote, votes_to_frame
from emu_models.evaluation.faithfulness import FaithfulnessPanel
from emu_models.evaluation.judge import Judge

RIGHT = ("A", "neither", "B", "both")  # right answers, taken in turn by the pairs
UNDECIDED = "undecided"  # no decision has more of the raters' votes than every other


@dataclass(frozen=True)
class JudgeError:
    """A judge's error on known pairs. error: per cent, with the exact 95 % interval; each pair is one trial.

    by_right: right answer -> (pairs decided rightly, all pairs).
    """

    num_pairs: int
    num_wrong: int
    error: Interval
    by_right: dict[str, tuple[int, int]]


def draw_known_pairs(captions: Sequence[str], seed: int) -> pd.DataFrame:
    """Draw pairs of N pictures with these captions: columns a, b (indices of pictures), caption, right.

    Each picture is the first of one pair, so that pairs are nearly independent. The right answers take turns: the
    picture is A, or B, beside a picture with another caption; or both pictures show its caption; or neither shows the
    pair's caption, which is a third picture's. If a pair cannot be made because no other picture has this caption, or
    all have it, it becomes another kind of pair or is left out.
    """
    order = np.random.default_rng(seed).permutation(len(captions))
    rows = []
    for place, first in enumerate(order):
        following = [int(i) for i in np.roll(order, -place)[1:]]
        others = [i for i in following if captions[i] != captions[first]]
        same = [i for i in following if captions[i] == captions[first]]
        thirds = [i for i in others if captions[i] != captions[others[0]]]
        right = RIGHT[place % len(RIGHT)]
        if right == "both" and not same or right == "neither" and not thirds:
            right = "A" if place % 2 else "B"
        if right == "both":
            rows.append((int(first), same[0], captions[first], right))
        elif not others:
            continue
        elif right == "neither":
            rows.append((int(first), others[0], captions[thirds[0]], right))
        else:
            pair = (int(first), others[0]) if right == "A" else (others[0], int(first))
            rows.append((*pair, captions[first], right))
    return pd.DataFrame(rows, columns=["a", "b", "caption", "right"])


def decide_together(votes: Sequence[Vote]) -> pd.Series:
    """Return the most frequent decision on each pair (index key), UNDECIDED if two are equally frequent."""
    decisions = votes_to_frame(votes)
    counts = pd.crosstab(decisions["key"], decisions["decision"])
    is_level = counts.eq(counts.max(axis=1), axis=0).sum(axis=1) > 1
    return counts.idxmax(axis=1).mask(is_level, UNDECIDED)


def measure_judge(
    judge: Judge,
    images: np.ndarray,
    captions: Sequence[str],
    all_captions: Sequence[str],
    seed: int = 0,
) -> tuple[JudgeError, pd.DataFrame]:
    """Return the judge's error on pairs of uint8 (N, H, W, 3) real pictures that it did not learn from, and the pairs
    with a column `decision`. all_captions: those to compare with a picture's own, including `captions`.
    """
    pairs = draw_known_pairs(captions, seed)
    if not len(pairs):
        return JudgeError(0, 0, exact_rate(0, 0), {}), pairs.assign(decision=pd.Series(dtype=object))
    keys = [f"{i:06d}" for i in range(len(pairs))]
    asked = zip(keys, images[pairs["a"]], images[pairs["b"]], pairs["caption"], strict=True)
    votes = FaithfulnessPanel(judge, all_captions).vote([Pair(*pair) for pair in asked])
    pairs = pairs.assign(decision=decide_together(votes).loc[keys].to_numpy())
    is_right = pairs["decision"] == pairs["right"]
    by_right = {
        str(right): (int(found.sum()), len(found)) for right, found in is_right.groupby(pairs["right"], sort=True)
    }
    num_wrong = int((~is_right).sum())
    return JudgeError(len(pairs), num_wrong, exact_rate(num_wrong, len(pairs)), by_right), pairs
