"""How many prompts a verdict would need, at given rates, to be reached in POWER of all rounds."""

import math
from collections.abc import Callable

from scipy import stats

from emu_data.votes.intervals import Interval, exact_rate, is_above, paired_difference

POWER = 0.8  # the usual one
MOST = 1_000_000  # beyond it nobody asks, and the exact interval takes seconds


def trials_for_share(share: float, bound: float, confidence: float = 0.95, power: float = POWER) -> int | None:
    """Trials after which the lower end of a share's interval passes `bound`, where `share` (both 0..1) is the truth.

    One proportion against a fixed one, the variance under each hypothesis its own (Fleiss, Levin and Paik 2003,
    Statistical Methods for Rates and Proportions, eq. 4.14 for one sample), and at least as many as the exact interval
    needs to pass with that very share. None where the share itself is not above the bound, or
    so little that more than MOST would be needed.
    """
    if not share > bound:
        return None
    z, z_power = _z(confidence), float(stats.norm.ppf(power))
    spread = z * math.sqrt(bound * (1 - bound)) + z_power * math.sqrt(share * (1 - share))
    return _first(
        (spread / (share - bound)) ** 2,
        lambda n: exact_rate(share * n, n, confidence),
        lambda i: is_above(i, 100 * bound),
    )


def prompts_for_non_inferiority(
    win: float, lose: float, margin: float, confidence: float, power: float = POWER, at_least: int = 1
) -> int | None:
    """Prompts after which the lower end of win less lose passes -`margin`, where the rates (all 0..1) are the truth.

    The variance of a paired difference is (win + lose - (win - lose)^2) / n (Connor 1987, Biometrics 43:207;
    here around -`margin` instead of 0); and at least as many as the score interval needs to pass with those very
    rates, which is what counts where nothing was decided. None where win less lose is not above
    -`margin`, or so little that more than MOST would be needed.
    """
    difference = win - lose
    if not difference > -margin:
        return None
    spread = (_z(confidence) + float(stats.norm.ppf(power))) ** 2 * (win + lose - difference**2)
    return _first(
        max(at_least, spread / (difference + margin) ** 2),
        lambda n: paired_difference(win * n, lose * n, n, confidence),
        lambda i: is_above(i, -100 * margin),
    )


def _first(start: float, interval: Callable[[int], Interval], passes: Callable[[Interval], bool]) -> int | None:
    """The first number from `start` on whose interval passes; all later ones do, since it only narrows."""
    if start > MOST:
        return None
    low = high = max(1, math.ceil(start - 1e-9))
    while not passes(interval(high)):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(interval(middle)) else (middle + 1, high)
    return high


def _z(confidence: float) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2))
