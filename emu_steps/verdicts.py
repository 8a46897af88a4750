"""Verdicts from the numbers of a report: one function per gate, used by Dagster's checks, the registry and the pages.

A gate passes only if a whole confidence interval is on the right side of its bound. No decided prompts, too few prompts
or an untested judge mean refusal, and the reason says how many prompts would decide. The functions take counts of
prompts (or pictures) and compute the interval themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from emu_data.formatting import format_percent, format_share, format_signed, format_significant
from emu_data.votes.intervals import exact_rate, is_above, is_below, paired_difference
from emu_data.votes.power import POWER, prompts_for_non_inferiority, trials_for_share

CONFIDENCE = 0.95  # of the intervals on which gates decide; the conventional value
# Two one-sided tests at 5 % use the 90 % interval (Schuirmann 1987); Tango 1998 (sec. 6.1) does so too.
NON_INFERIORITY_CONFIDENCE = 0.90
# With fewer prompts the score interval is not reliable: with 3 prompts a model that is 5 points worse would pass in up
# to 11 % of rounds, with 5 or more in at most 7.3 %, instead of the nominal 5 % (all outcomes enumerated, docs/log.md).
# Chosen here.
MIN_PROMPTS = 20
NOT_JUDGED = "faithfulness: no prompt was judged, so nothing is shown"
# Assumed share above the bound, to say how many prompts would be needed if none was decided; chosen here.
SUPPOSED_GAIN = 0.10


@dataclass(frozen=True)
class Verdict:
    """Whether a gate passes, and why, in one sentence."""

    passed: bool
    reason: str


def appeal_verdict(
    num_won: int, num_lost: int, num_prompts: int, min_win: float, confidence: float = CONFIDENCE
) -> Verdict:
    """Pass if the whole exact interval of the share of decided prompts that were won is above `min_win` (0..1).

    Raises ValueError if more prompts were won and lost than there are.
    """
    num_decided = num_won + num_lost
    if num_decided > num_prompts:
        raise ValueError(
            f"{num_won} won and {num_lost} lost of only {num_prompts} prompts: the counts contradict each other"
        )
    found = exact_rate(num_won, num_decided, confidence)
    passed = is_above(found, 100 * min_win)
    text = f"appeal: {num_won} won and {num_lost} lost of {num_prompts} prompts"
    if not num_decided:
        supposed = min(min_win + SUPPOSED_GAIN, (1 + min_win) / 2)
        needed = trials_for_share(supposed, min_win, confidence)
        return Verdict(
            False,
            f"{text}, so nothing is shown; {needed} decided prompts would show a win of {_percent(supposed)} {_POWER}",
        )
    text += (
        f": {format_percent(found.estimate)} of the decided, at least {format_percent(found.low)} "
        f"({_percent(confidence)}), required above {_percent(min_win)}"
    )
    if not passed:
        needed = trials_for_share(num_won / num_decided, min_win, confidence)
        text += _needed(needed, "decided prompts", num_decided, num_prompts)
    return Verdict(passed, text)


def faithfulness_verdict(
    num_won: int,
    num_lost: int,
    num_prompts: int,
    margin: float,
    judge: Verdict,
    confidence: float = NON_INFERIORITY_CONFIDENCE,
) -> Verdict:
    """Pass if the whole score interval of wins minus losses is above -`margin` (points, 0..100), and the judge may be
    trusted.

    judge: the verdict of `judge_verdict` on the judge that voted.
    """
    found = paired_difference(num_won, num_lost, num_prompts, confidence)
    is_harmless = num_prompts >= MIN_PROMPTS and is_above(found, -margin)
    text = f"faithfulness: {num_won} won and {num_lost} lost of {num_prompts} prompts" if num_prompts else NOT_JUDGED
    if num_prompts:
        text += (
            f": {format_signed(found.estimate)} points, at least {format_signed(found.low)} "
            f"(one-sided {_percent(0.5 + confidence / 2)}), required above −{format_significant(margin)}"
        )
    if not is_harmless:
        win, lose = (num_won / num_prompts, num_lost / num_prompts) if num_prompts else (0.0, 0.0)
        needed = prompts_for_non_inferiority(win, lose, margin / 100, confidence, at_least=MIN_PROMPTS)
        text += _needed(needed, "prompts", num_prompts, num_prompts)
    return Verdict(is_harmless and judge.passed, f"{text}; {judge.reason}")


def judge_verdict(num_wrong: int, num_pairs: int, max_error: float, confidence: float = CONFIDENCE) -> Verdict:
    """Pass if the whole exact interval of the share of known pairs that a judge decides wrongly is below `max_error`
    (0..1).
    """
    if not num_pairs:
        return Verdict(False, "the judge's error is unknown: it was not tested on any pair")
    passed, text = _share_below("the judge is wrong on", num_wrong, num_pairs, "known pairs", max_error, confidence)
    return Verdict(passed, text)


def copy_verdict(
    num_near: int,
    num_pictures: int,
    max_share: float,
    others: Mapping[str, tuple[int, int]] | None = None,
    confidence: float = CONFIDENCE,
) -> Verdict:
    """Pass if the whole exact interval of the share of the candidate's pictures that are suspected copies is below
    `max_share` (0..1).

    others: other contestants, or "real" -> (suspected copies, pictures), only shown for comparison.
    """
    if not num_pictures:
        return Verdict(False, "near-copies: the candidate has no pictures")
    passed, text = _share_below("near-copies:", num_near, num_pictures, "pictures", max_share, confidence)
    compared = [
        f"{who} {format_percent(exact_rate(near, num).estimate)}" for who, (near, num) in (others or {}).items() if num
    ]
    return Verdict(passed, text + (f" ({', '.join(compared)})" if compared else ""))


def _share_below(head: str, num: int, total: int, noun: str, bound: float, confidence: float) -> tuple[bool, str]:
    found = exact_rate(num, total, confidence)
    passed = is_below(found, 100 * bound)
    text = (
        f"{head} {num} of {total} {noun}: {format_percent(found.estimate)}, at most {format_percent(found.high)} "
        f"({_percent(confidence)}), required below {_percent(bound)}"
    )
    if not passed:
        text += _needed(trials_for_share(1 - num / total, 1 - bound, confidence), noun, total, total)
    return passed, text


_POWER = f"in {format_share(POWER)} of rounds"


def _needed(needed: int | None, noun: str, num: int, num_all: int) -> str:
    """Say how many prompts, pairs or pictures (`noun`) would decide. num: how many there were, of `num_all` in the
    round.
    """
    if needed is None:
        return f"; at this rate more {noun} would not show it"
    whole = f" ({round(needed * num_all / num)} in all)" if num and num != num_all else ""
    return f"; at this rate {needed} {noun}{whole} would show it {_POWER}"


def _percent(share: float) -> str:
    return f"{format_significant(100 * share)} %"
