"""An estimate with its interval: exact and score intervals for counts, which decide, and bootstraps (BCa: Efron 1987),
which are shown. None of them becomes a point where there is little to go by.

Each kind of number has one function, whoever asks: a count of yes and no `exact_rate`, a mean of rates `bootstrap_rate`
(which gives a count's interval where every rate is 0 or 100, since that is a count), any other mean `bootstrap_mean`, a
difference of paired counts `paired_difference`, an area under a curve `auc_interval`, what is a mean of nothing
`spread_interval`. So 39 of 40 has one interval wherever it is shown.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, all in the unit of the estimate (per cent for rates)."""

    estimate: float
    low: float
    high: float


MIN_BOOTSTRAP = 10  # values below which a bootstrap is not asked, since it can only repeat the few; chosen here


def is_above(interval: Interval, bound: float) -> bool:
    """Whether the whole interval lies above `bound`. What is not known (NaN) is not above anything."""
    return interval.low > bound


def is_below(interval: Interval, bound: float) -> bool:
    """Whether the whole interval lies below `bound`. What is not known (NaN) is not below anything."""
    return interval.high < bound


def exact_rate(num: float, total: float, confidence: float = 0.95) -> Interval:
    """Per cent of `total` trials that `num` are, with the exact interval of Clopper and Pearson 1934.

    By quantiles of the beta distribution, so that `num` may be a sum of shares (0..total). No trials: 0 to 100, the
    estimate NaN. Raises ValueError for counts that are none.
    """
    if not 0 <= num <= total:
        raise ValueError(f"{num} of {total} is no share; give a number from 0 to the total")
    if not total:
        return Interval(float("nan"), 0.0, 100.0)
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, num, total - num + 1)) if num else 0.0
    high = float(stats.beta.isf(tail, num + 1, total - num)) if num < total else 1.0
    return Interval(100 * num / total, 100 * low, 100 * high)


def paired_difference(num_won: float, num_lost: float, num_pairs: float, confidence: float = 0.95) -> Interval:
    """Win rate less lose rate in points (-100..100), with the score interval for paired proportions of Tango 1998
    (Stat. Med. 17:891): all differences that a score test does not reject. Yang, Sun and Hardin 2013 (Stat. Med.
    32:1336) give the same limits as roots of a polynomial.

    Pairs that nothing decides count: they make the difference small. Nothing decided in n pairs is no certainty: the
    interval is then plus and minus z^2 / (n + z^2). No pairs: -100 to 100, the estimate NaN. Raises ValueError for
    counts that do not fit.
    """
    if num_won < 0 or num_lost < 0 or num_won + num_lost > num_pairs * (1 + 1e-9):  # shares of a number add up so far
        raise ValueError(f"{num_won} won and {num_lost} lost of {num_pairs} pairs: the counts do not fit")
    if not num_pairs:
        return Interval(float("nan"), -100.0, 100.0)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    estimate = (num_won - num_lost) / num_pairs

    def score(difference: float) -> float:
        """Standard deviations by which the data lie above `difference`; falls as that rises."""
        # the lost pairs' probability that fits best, given the difference (Tango 1998, eq. 14)
        linear = (2 * num_pairs - num_won + num_lost) * difference - num_won - num_lost
        square = linear**2 + 8 * num_pairs * num_lost * difference * (1 - difference)
        lost = (max(square, 0.0) ** 0.5 - linear) / (4 * num_pairs)
        variance = num_pairs * (2 * lost + difference * (1 - difference))
        above = num_pairs * (estimate - difference)
        if variance <= 0:  # nothing but this difference fits, or all others
            return math.copysign(math.inf, above) if above else 0.0
        return above / variance**0.5

    edge = 1e-12  # at -1 and 1 themselves the variance is 0
    low = high = estimate
    if estimate > -1:
        low = float(optimize.brentq(lambda d: min(score(d), 2 * z) - z, -1 + edge, estimate))  # type: ignore
    if estimate < 1:
        high = float(optimize.brentq(lambda d: max(score(d), -2 * z) + z, estimate, 1 - edge))  # type: ignore
    return Interval(100 * estimate, 100 * low, 100 * high)


def auc_interval(value: float, num_first: int, num_second: int, confidence: float = 0.95) -> Interval:
    """The interval of an AUC (0..1) over so many rows of either kind: Newcombe's method 5 (2006, Stat. Med. 25:559).

    It takes Hanley and McNeil's variance at each end, so that an AUC of 1 in a few rows is no certainty.
    """
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    half = (num_first + num_second) / 2 - 1

    def variance(auc: float) -> float:
        spread = 1 + half * ((1 - auc) / (2 - auc) + auc / (1 + auc))
        return auc * (1 - auc) * spread / (num_first * num_second)

    def beyond(auc: float) -> float:
        return abs(auc - value) - z * math.sqrt(variance(auc))

    near = 1e-9  # at 0 and 1 themselves the variance is 0, and the estimate its own limit
    low = 0.0 if value <= near else float(optimize.brentq(beyond, 0.0, min(value, 1 - near)))  # type: ignore
    high = 1.0 if value >= 1 - near else float(optimize.brentq(beyond, max(value, near), 1.0))  # type: ignore
    return Interval(value, low, high)


def bootstrap_mean(
    values: np.ndarray, rng: np.random.Generator, confidence: float = 0.95, num_resamples: int = 9999
) -> Interval:
    """Mean of (N,) independent values with a BCa bootstrap interval; of fewer than MIN_BOOTSTRAP, with Student's.

    Values that are all equal do not tell how far their mean would stray, and neither does one value alone: low and
    high are NaN. Raises ValueError for no values or values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a mean needs a list of at least one value; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
    mean = float(values.mean())
    if np.all(values == values[0]):
        return Interval(mean, float("nan"), float("nan"))
    if len(values) < MIN_BOOTSTRAP:
        half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values))
        return Interval(mean, mean - half, mean + half)
    interval = stats.bootstrap(
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
    """`measure` of all `num` rows (it is given their numbers), plus and minus 1.96 standard deviations of it over
    resampled ones. For what a resample lifts, so that percentiles of it would not hold the estimate.

    Where no draw differs from another the spread says nothing: NaN.
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
    """Mean of (N,) rates in per cent (0..100), as `bootstrap_mean`; never a point.

    Where every rate is 0 or 100 they are a count, which has the interval of `exact_rate` like any other. Where values
    are few or all equal a bootstrap would claim too much, or certainty: then `exact_rate` is given, too, as if each
    value were a single trial (no rate of this mean varies more than those do), so 16 of 16 reach down to 79.4 %.
    """
    values = np.asarray(values, dtype=float)
    is_count = bool(np.isin(values, (0, 100)).all())
    if len(values) and (is_count or len(values) < MIN_BOOTSTRAP or np.all(values == values[0])):
        return exact_rate(float(np.clip(values.sum() / 100, 0, len(values))), len(values), confidence)
    return bootstrap_mean(values, rng, confidence, num_resamples)
