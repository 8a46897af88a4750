"""Win, lose and tie rates of side-by-side votes, with the uncertainty that the paper leaves out (sec. 4).

The paper reports win and lose rates in per cent, without intervals or tests. Ours differ on purpose: the *prompt* is
the unit. Votes on one prompt (by several raters, for several seeds) resemble each other, so a rate is the mean over
prompts of the share of votes on each prompt, its interval is a bootstrap over prompts, and the sign test counts
prompts. Expect half-widths, at a win rate of 68 %, of 2.3 points with 1 600 prompts, 9 with 100, over 20 with 16.

A table of votes has a row for every vote: key (the pair), rater, decision ("A", "B", "tie", "both", "neither"),
side_order ("AB": A on the left, "BA"). "both" and "neither" count as ties, as in the paper.
`emu_data.votes.vote.votes_to_frame` makes it from the votes that `emu_data.votes.vote.counted` returns: one per rater
and pair, without repeated showings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are first used

from emu_data.votes.intervals import Interval, bootstrap_rate, exact_rate, paired_difference

VOTE_COLUMNS = ("key", "rater", "decision", "side_order")
DECISIONS = ("A", "B", "tie", "both", "neither")


@dataclass(frozen=True)
class Preference:
    """The result of one side-by-side round, model A against model B. Rates are in per cent of votes, with equal weight
    for each prompt.

    decisions: the rate of each decision. num_prompts_won: prompts on which A got more votes than B; a prompt with equal
    votes is level. decided_win: the share of the prompts that are not level which A won, in per cent. sign_test_p: the
    two-sided p of that share being half (1.0 if all are level). win_less_lose: prompts won minus prompts lost, in
    points of all prompts.
    """

    num_prompts: int
    num_pairs: int
    num_raters: int
    num_votes: int
    win: Interval
    lose: Interval
    tie: Interval
    decisions: dict[str, float]
    num_prompts_won: int
    num_prompts_lost: int
    num_prompts_level: int
    decided_win: Interval
    win_less_lose: Interval
    sign_test_p: float


@dataclass(frozen=True)
class PositionBias:
    """How often the left picture was chosen, of the votes that chose one. p_value: two-sided, of "half the time"."""

    num_choices: int
    left_share: float  # 0..1; NaN without choices
    p_value: float


@dataclass(frozen=True)
class SelfConsistency:
    """How consistent raters are: of the pairs shown to a rater again with swapped sides, the share with the same
    decision (NaN if there are none).
    """

    num_repeats: int
    same_share: float  # 0..1


def summarise_preference(
    votes: pd.DataFrame,
    prompt_of: Mapping[str, str] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    num_resamples: int = 9999,
) -> Preference:
    """Return rates, intervals and the sign test of a round's counted votes.

    prompt_of: key of a pair -> its prompt, if a prompt has several pairs (seeds); without it each pair is its own
    prompt. confidence: 0..1. Raises ValueError for an empty table, a table that `check_table` refuses, or a pair
    without a prompt.
    """
    check_table(votes)
    if votes.empty:
        raise ValueError("there are no votes to summarise")
    shares = share_by_prompt(votes, prompt_of)
    rng = np.random.default_rng(seed)
    ties = shares[["tie", "both", "neither"]].sum(axis=1).to_numpy()
    won, lost = shares["A"].to_numpy(), shares["B"].to_numpy()
    num_won, num_lost = int((won > lost).sum()), int((won < lost).sum())
    return Preference(
        num_prompts=len(shares),
        num_pairs=votes["key"].nunique(),
        num_raters=votes["rater"].nunique(),
        num_votes=len(votes),
        win=bootstrap_rate(100 * won, rng, confidence, num_resamples),
        lose=bootstrap_rate(100 * lost, rng, confidence, num_resamples),
        tie=bootstrap_rate(100 * ties, rng, confidence, num_resamples),
        decisions={str(name): float(100 * shares[name].mean()) for name in DECISIONS},
        num_prompts_won=num_won,
        num_prompts_lost=num_lost,
        num_prompts_level=len(shares) - num_won - num_lost,
        decided_win=decided_rate(num_won, num_lost, confidence),
        win_less_lose=paired_difference(num_won, num_lost, len(shares), confidence),
        sign_test_p=sign_test(num_won, num_lost),
    )


def check_table(votes: pd.DataFrame) -> None:
    """Raise ValueError for missing columns, unknown decisions, or a rater with more than one vote on a pair."""
    missing = [name for name in VOTE_COLUMNS if name not in votes.columns]
    if missing:
        raise ValueError(f"the votes table lacks {', '.join(missing)}; it needs {', '.join(VOTE_COLUMNS)}")
    unknown = set(votes["decision"]) - set(DECISIONS)
    if unknown:
        raise ValueError(f"decisions {sorted(unknown)} are not of a side-by-side round ({', '.join(DECISIONS)})")
    twice = votes[votes.duplicated(["rater", "key"])]
    if len(twice):
        rater, key = twice.iloc[0][["rater", "key"]]
        raise ValueError(f"{rater} has more than one vote on {key}: pass the votes that counted() returns")


def share_by_prompt(votes: pd.DataFrame, prompt_of: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return the share (0..1) of each decision among the votes on each prompt: index prompt, columns DECISIONS. Raises
    ValueError if a pair has no prompt in `prompt_of`.
    """
    keys = votes["key"].astype(str)
    if prompt_of is not None:
        unknown = sorted(set(keys) - set(prompt_of))
        if unknown:
            raise ValueError(f"{len(unknown)} pairs have no prompt, the first is {unknown[0]}")
        keys = keys.map(dict(prompt_of))
    counts = pd.crosstab(keys, votes["decision"]).reindex(columns=list(DECISIONS), fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0).rename_axis("prompt")


def decided_rate(num_won: int, num_lost: int, confidence: float = 0.95) -> Interval:
    """Return the share of the decided prompts that A won, in per cent, with Clopper and Pearson's exact interval
    (1934).

    The interval is above 50 exactly if the sign test rejects in A's favour. Without decided prompts it is 0 to 100, and
    the estimate NaN.
    """
    return exact_rate(num_won, num_won + num_lost, confidence)


def sign_test(num_won: int, num_lost: int) -> float:
    """Return the two-sided p of `num_won` against `num_lost` prompts under a fair coin; 1.0 without prompts."""
    num_decided = num_won + num_lost
    return float(scipy.stats.binomtest(num_won, num_decided, 0.5).pvalue) if num_decided else 1.0


def position_bias(votes: pd.DataFrame) -> PositionBias:
    """Test whether raters prefer one side.

    Sides are drawn by a fair coin for each rater and pair. So without a bias each choice is on the left with
    probability 1/2, independently of the others and of which model is better: an exact binomial test on single votes is
    valid here, although votes on one prompt resemble each other.
    """
    check_table(votes)
    chosen = votes.loc[votes["decision"].isin(["A", "B"])]
    if chosen.empty:
        return PositionBias(0, float("nan"), 1.0)
    num_left = int((chosen["decision"] == chosen["side_order"].str[0]).sum())
    return PositionBias(
        len(chosen), num_left / len(chosen), float(scipy.stats.binomtest(num_left, len(chosen), 0.5).pvalue)
    )


def self_consistency(votes: pd.DataFrame, repeats: pd.DataFrame) -> SelfConsistency:
    """Compare each repeated vote (`emu_data.votes.vote.counted_repeats`) with the rater's counted vote on the pair."""
    check_table(votes)
    check_table(repeats)
    both = repeats.merge(votes, on=["rater", "key"], suffixes=("_repeat", "_first"))
    same = (both["decision_repeat"] == both["decision_first"]).mean() if len(both) else float("nan")
    return SelfConsistency(len(both), float(same))
