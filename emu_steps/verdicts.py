"""What the numbers of a report allow: one function a gate, used by Dagster's checks, the registry and the pages.

A gate passes where an interval lies wholly on the right side of its bound, and nowhere else: nothing decided, too few
prompts or a judge that nobody tested are refusals, each with the number of prompts that would decide. The functions
take counts, with the prompt (or picture) as the unit, and make the interval themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from emu_data.formatting import format_percent, format_share, format_signed, format_significant
from emu_data.votes.intervals import exact_rate, is_above, is_below, paired_difference
from emu_data.votes.power import POWER, prompts_for_non_inferiority, trials_for_share

CONFIDENCE = 0.95
# Two one-sided tests at 5 % look at the interval of 90 % (Schuirmann 1987); Tango 1998 (sec. 6.1) does so, too.
NON_INFERIORITY_CONFIDENCE = 0.90
# Below it the score interval is not trusted: with 3 prompts a model 5 points worse would pass in up to 11 % of rounds,
# from 5 prompts on in at most 7.3 %, where 5 % are promised (all outcomes enumerated, docs/log.md). Chosen here.
MIN_PROMPTS = 20
SUPPOSED_GAIN = 0.10  # share above the bound for which a number of prompts is named where nothing was decided


@dataclass(frozen=True)
class Verdict:
    """Whether a gate passes, and why in one sentence."""

    passed: bool
    reason: str


def appeal_verdict(
    num_won: int, num_lost: int, num_prompts: int, min_win: float, confidence: float = CONFIDENCE
) -> Verdict:
    """Passes where the share (0..1) of the decided prompts that were won is surely above `min_win`."""
    num_decided = num_won + num_lost
    if num_decided > num_prompts:
        raise ValueError(f"{num_won} won and {num_lost} lost of {num_prompts} prompts: the counts do not fit")
    found = exact_rate(num_won, num_decided, confidence)
    passed = is_above(found, 100 * min_win)
    told = f"appeal: of {num_prompts} prompts the candidate wins {num_won} and loses {num_lost}"
    if not num_decided:
        supposed = min(min_win + SUPPOSED_GAIN, (1 + min_win) / 2)
        needed = trials_for_share(supposed, min_win, confidence)
        return Verdict(
            False,
            f"{told}: nothing is decided, so nothing is shown; if it won {_percent(supposed)} of the decided ones, "
            f"{needed} decided prompts would show it {_POWER}",
        )
    told += (
        f": {format_percent(found.estimate)} of the decided, at least {format_percent(found.low)} "
        f"({_level(confidence)}), asked for is more than {_percent(min_win)}"
    )
    if not passed:
        needed = trials_for_share(num_won / num_decided, min_win, confidence)
        told += _needed(needed, "decided prompts", num_decided, num_prompts)
    return Verdict(passed, told)


def faithfulness_verdict(
    num_won: int,
    num_lost: int,
    num_prompts: int,
    margin: float,
    judge: Verdict,
    confidence: float = NON_INFERIORITY_CONFIDENCE,
) -> Verdict:
    """Passes where win less lose is surely above -`margin` (points, 0..100), by a judge that may be trusted.

    judge: what `judge_verdict` says of who voted.
    """
    found = paired_difference(num_won, num_lost, num_prompts, confidence)
    is_harmless = num_prompts >= MIN_PROMPTS and is_above(found, -margin)
    told = f"faithfulness: of {num_prompts} prompts the candidate wins {num_won} and loses {num_lost}"
    if num_prompts:
        told += (
            f": win less lose is {format_signed(found.estimate)} points, at least {format_signed(found.low)} "
            f"(one-sided {_percent(0.5 + confidence / 2)}), allowed is a loss of less than {format_significant(margin)}"
        )
    if not is_harmless:
        win, lose = (num_won / num_prompts, num_lost / num_prompts) if num_prompts else (0.0, 0.0)
        needed = prompts_for_non_inferiority(win, lose, margin / 100, confidence, at_least=MIN_PROMPTS)
        told += _needed(needed, "prompts", num_prompts, num_prompts)
    return Verdict(is_harmless and judge.passed, f"{told}; {judge.reason}")


def judge_verdict(num_wrong: int, num_pairs: int, max_error: float, confidence: float = CONFIDENCE) -> Verdict:
    """Passes where the share (0..1) of known pairs that a judge decides wrongly is surely below `max_error`."""
    if not num_pairs:
        return Verdict(False, "the judge's error is not known: it was tested on no pair")
    passed, told = _share_below("the judge is wrong on", num_wrong, num_pairs, "known pairs", max_error, confidence)
    return Verdict(passed, told)


def copy_verdict(
    num_near: int,
    num_pictures: int,
    max_share: float,
    others: Mapping[str, tuple[int, int]] | None = None,
    confidence: float = CONFIDENCE,
) -> Verdict:
    """Passes where the share (0..1) of the candidate's pictures that are suspected copies is surely below `max_share`.

    others: who else -> (suspected copies, pictures), to compare with; decides nothing.
    """
    if not num_pictures:
        return Verdict(False, "near-copies: there is no picture of the candidate to look at")
    passed, told = _share_below("near-copies:", num_near, num_pictures, "pictures", max_share, confidence)
    compared = [
        f"{format_percent(exact_rate(near, num).estimate)} of {who}"
        for who, (near, num) in (others or {}).items()
        if num
    ]
    return Verdict(passed, told + (f" (to compare: {', '.join(compared)})" if compared else ""))


def _share_below(head: str, num: int, total: int, noun: str, bound: float, confidence: float) -> tuple[bool, str]:
    found = exact_rate(num, total, confidence)
    passed = is_below(found, 100 * bound)
    told = (
        f"{head} {num} of {total} {noun}, {format_percent(found.estimate)}, at most {format_percent(found.high)} "
        f"({_level(confidence)}), allowed is less than {_percent(bound)}"
    )
    if not passed:
        told += _needed(trials_for_share(1 - num / total, 1 - bound, confidence), noun, total, total)
    return passed, told


_POWER = f"in {format_share(POWER)} of rounds"


def _needed(needed: int | None, noun: str, num: int, num_all: int) -> str:
    """What would decide, in words. num: how many there were, of `num_all` in the round."""
    if needed is None:
        return f"; at this rate more {noun} would not show it"
    whole = f" (about {round(needed * num_all / num)} in all)" if num and num != num_all else ""
    return f"; at this rate {needed} {noun}{whole} would show it {_POWER}"


def _level(confidence: float) -> str:
    return f"{_percent(confidence)} interval"


def _percent(share: float) -> str:
    return f"{format_significant(100 * share)} %"
