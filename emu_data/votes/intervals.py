"""Estimates with intervals: exact and score intervals for counts, on which gates decide, and bootstraps (BCa: Efron
1987), which are only shown. None of them shrinks to a point if there are few data.

Each kind of number has one function, whoever uses it: `exact_rate` for a count of yes and no, `bootstrap_rate` for a
mean of rates (if every rate is 0 or 100, that is a count and gets a count's interval), `bootstrap_mean` for any other
mean, `paired_difference` for a difference of paired counts, `auc_interval` for an area under a curve,
`spread_interval` for a number that is not a mean. So 39 of 40 has the same interval wherever it is shown.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are first used


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, all in the unit of the estimate (per cent for rates)."""

    estimate: float
    low: float
    high: float


MIN_BOOTSTRAP = 10  # values; with fewer there is no bootstrap, since it could only repeat those few; chosen here


def is_above(interval: Interval, bound: float) -> bool:
    """Whether the whole interval is above `bound`; False if it is unknown (NaN)."""
    return interval.low > bound


def is_below(interval: Interval, bound: float) -> bool:
    """Whether the whole interval is below `bound`; False if it is unknown (NaN)."""
    return interval.high < bound


def exact_rate(num: float, total: float, confidence: float = 0.95) -> Interval:
    """Return `num` of `total` trials in per cent, with the exact interval of Clopper and Pearson 1934.

    It is computed by quantiles of the beta distribution, so `num` may be a sum of shares (0..total). Without trials the
    interval is 0 to 100 and the estimate NaN. Raises ValueError unless 0 <= num <= total.
    """
    if not 0 <= num <= total:
        raise ValueError(f"{num} of {total} is not a share; give a number from 0 to the total")
    if not total:
        return Interval(float("nan"), 0.0, 100.0)
    tail = (1 - confidence) / 2
    low = float(scipy.special.betaincinv(num, total - num + 1, tail)) if num else 0.0
    high = float(scipy.special.betainccinv(num + 1, total - num, tail)) if num < total else 1.0
    return Interval(100 * num / total, 100 * low, 100 * high)


def paired_difference(num_won: float, num_lost: float, num_pairs: float, confidence: float = 0.95) -> Interval:
    """Return win rate minus lose rate in points (-100..100), with the score interval for paired proportions of Tango
    1998 (Stat. Med. 17:891): all differences that a score test does not reject. Yang, Sun and Hardin 2013 (Stat. Med.
    32:1336) give the same limits as roots of a polynomial.

    Ties count: they make the difference smaller. If all n pairs are ties, the interval is plus and minus
    z^2 / (n + z^2), not a point. Without pairs it is -100 to 100 and the estimate NaN. Raises ValueError if the counts
    do not fit together.
    """
    if num_won < 0 or num_lost < 0 or num_won + num_lost > num_pairs * (1 + 1e-9):  # sums of shares are inexact
        raise ValueError(f"{num_won} won and {num_lost} lost of {num_pairs} pairs: the counts do not fit together")
    if not num_pairs:
        return Interval(float("nan"), -100.0, 100.0)
    z = float(scipy.special.ndtri(0.5 + confidence / 2))
    estimate = (num_won - num_lost) / num_pairs

    def score(difference: float) -> float:
        """Return by how many standard deviations the data exceed `difference`; decreasing in `difference`."""
        # the maximum-likelihood probability of losing, given the difference (Tango 1998, eq. 14)
        linear = (2 * num_pairs - num_won + num_lost) * difference - num_won - num_lost
        square = linear**2 + 8 * num_pairs * num_lost * difference * (1 - difference)
        lost = (max(square, 0.0) ** 0.5 - linear) / (4 * num_pairs)
        variance = num_pairs * (2 * lost + difference * (1 - difference))
        above = num_pairs * (estimate - difference)
        if variance <= 0:  # only this difference fits the data, or it does not fit at all
            return math.copysign(math.inf, above) if above else 0.0
        return above / variance**0.5

    edge = 1e-12  # keeps away from -1 and 1, where the variance is 0
    low = high = estimate
    if estimate > -1:
        low = float(scipy.optimize.brentq(lambda d: min(score(d), 2 * z) - z, -1 + edge, estimate))  # type: ignore
    if estimate < 1:
        high = float(scipy.optimize.brentq(lambda d: max(score(d), -2 * z) + z, estimate, 1 - edge))  # type: ignore
    return Interval(100 * estimate, 100 * low, 100 * high)


def auc_interval(value: float, num_first: int, num_second: int, confidence: float = 0.95) -> Interval:
    """Return an AUC (0..1) with its interval, from the numbers of rows of both kinds: Newcombe's method 5 (2006, Stat.
    Med. 25:559).

    It takes Hanley and McNeil's variance at each end of the interval, so that an AUC of 1 from a few rows does not look
    certain.
    """
    z = float(scipy.special.ndtri(0.5 + confidence / 2))
    half = (num_first + num_second) / 2 - 1

    def variance(auc: float) -> float:
        spread = 1 + half * ((1 - auc) / (2 - auc) + auc / (1 + auc))
        return auc * (1 - auc) * spread / (num_first * num_second)

    def beyond(auc: float) -> float:
        return abs(auc - value) - z * math.sqrt(variance(auc))

    near = 1e-9  # at 0 and 1 the variance is 0, and the estimate its own limit
    low = 0.0 if value <= near else float(scipy.optimize.brentq(beyond, 0.0, min(value, 1 - near)))  # type: ignore
    high = 1.0 if value >= 1 - near else float(scipy.optimize.brentq(beyond, max(value, near), 1.0))  # type: ignore
    return Interval(value, low, high)


def bootstrap_mean(
    values: np.ndarray, rng: np.random.Generator, confidence: float = 0.95, num_resamples: int = 9999
) -> Interval:
    """Return the mean of (N,) independent values with a BCa bootstrap interval; with fewer than MIN_BOOTSTRAP values,
    with Student's.

    If all values are equal, or there is only one, nothing is known about the mean's spread: low and high are NaN.
    Raises ValueError if there are no values, or some are not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a mean needs at least one value in one dimension, but the shape is {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
    mean = float(values.mean())
    if np.all(values == values[0]):
        return Interval(mean, float("nan"), float("nan"))
    if len(values) < MIN_BOOTSTRAP:
        half = float(scipy.stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * scipy.stats.sem(values))
        return Interval(mean, mean - half, mean + half)
    interval = scipy.stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=num_resamples,
        method="BCa",
        rng=rng,
        vectorized=True,
        batch=1000,
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high))


def spread_interval(
    measure: Callable[[np.ndarray], float], num: int, rng: np.random.Generator, num_resamples: int = 100
) -> Interval:
    """Return `measure` (which receives row numbers) of all `num` rows, plus and minus 1.96 of its standard deviations
    over resampled rows. It is for numbers that resampling increases, so that percentiles would not contain the
    estimate.

    If all resamples give the same number, the interval is NaN.
    """
    estimate = measure(np.arange(num))
    resampled = [measure(rng.integers(num, size=num)) for _ in range(num_resamples)]
    half = 1.96 * float(np.std(resampled, ddof=1))
    if not half:
        half = float("nan")
    return Interval(estimate, estimate - half, estimate + half)


def bootstrap_rate(
    values: np.ndarray, rng: np.random.Generator, confidence: float = 0.95, num_resamples: int = 9999
) -> Interval:
    """Return the mean of (N,) rates in per cent (0..100) as `bootstrap_mean` does, but never with a point as interval.

    If every rate is 0 or 100, they are a count and get the interval of `exact_rate`. If there are few values, or all
    are equal, a bootstrap would claim too much; then `exact_rate` is used as well, as if each value were a single trial
    (no rates with this mean vary more), so that 16 of 16 have the lower limit 79.4 %.
    """
    values = np.asarray(values, dtype=float)
    is_count = bool(np.isin(values, (0, 100)).all())
    if len(values) and (is_count or len(values) < MIN_BOOTSTRAP or np.all(values == values[0])):
        return exact_rate(float(np.clip(values.sum() / 100, 0, len(values))), len(values), confidence)
    return bootstrap_mean(values, rng, confidence, num_resamples)
