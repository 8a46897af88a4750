"""How many prompts a verdict needs, at given true rates, to be reached in a share POWER of all rounds."""

import math
from collections.abc import Callable

import scipy  # its parts are loaded when they are first used

from emu_data.votes.intervals import Interval, exact_rate, is_above, paired_difference

POWER = 0.8  # the conventional value (Cohen 1988)
MOST = 1_000_000  # more prompts are not realistic, and the exact interval takes seconds; chosen here


def trials_for_share(share: float, bound: float, confidence: float = 0.95, power: float = POWER) -> int | None:
    """Return the number of trials after which the lower end of a share's interval passes `bound` if the true share is
    `share` (both 0..1).

    It tests one proportion against a fixed one, with the variance of each hypothesis (Fleiss, Levin and Paik 2003,
    Statistical Methods for Rates and Proportions, eq. 4.14 for one sample), and returns at least as many trials as the
    exact interval needs to pass with exactly that share. None if the share is not above the bound, or so little above
    that more than MOST would be needed.
    """
    if not share > bound:
        return None
    z, z_power = _z(confidence), float(scipy.special.ndtri(power))
    spread = z * math.sqrt(bound * (1 - bound)) + z_power * math.sqrt(share * (1 - share))
    return _first(
        (spread / (share - bound)) ** 2,
        lambda n: exact_rate(share * n, n, confidence),
        lambda i: is_above(i, 100 * bound),
    )


def prompts_for_non_inferiority(
    win: float, lose: float, margin: float, confidence: float, power: float = POWER, at_least: int = 1
) -> int | None:
    """Return the number of prompts after which the lower end of win minus lose passes -`margin` if these rates (all
    0..1) are true. at_least: never return fewer prompts.

    The variance of a paired difference is (win + lose - (win - lose)^2) / n (Connor 1987, Biometrics 43:207; here
    around -`margin` instead of 0). The result is at least as many prompts as the score interval needs to pass with
    exactly these rates, which decides if all prompts are ties. None if win minus lose is not above -`margin`, or so
    little above that more than MOST would be needed.
    """
    difference = win - lose
    if not difference > -margin:
        return None
    spread = (_z(confidence) + float(scipy.special.ndtri(power))) ** 2 * (win + lose - difference**2)
    return _first(
        max(at_least, spread / (difference + margin) ** 2),
        lambda n: paired_difference(win * n, lose * n, n, confidence),
        lambda i: is_above(i, -100 * margin),
    )


def _first(start: float, interval: Callable[[int], Interval], passes: Callable[[Interval], bool]) -> int | None:
    """Return the first number from `start` on whose interval passes; all larger ones pass too, as it only narrows."""
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
    return float(scipy.special.ndtri(0.5 + confidence / 2))
