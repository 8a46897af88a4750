"""An estimate with its interval, and bootstrap of means (scipy.stats.bootstrap, BCa: Efron 1987)."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, all in the unit of the estimate (per cent for rates)."""

    estimate: float
    low: float
    high: float


def bootstrap_mean(
    values: np.ndarray, rng: np.random.Generator, confidence: float = 0.95, num_resamples: int = 9999
) -> Interval:
    """Mean of (N,) independent values with a BCa bootstrap interval.

    Values that are all equal leave a bootstrap nothing to show: low and high are then the mean itself. One
    value alone has no interval either: low and high are NaN. Raises ValueError for no values or values that
    are not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a mean needs a list of at least one value; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    if np.all(values == values[0]):
        return Interval(mean, mean, mean)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=num_resamples,
        method="BCa",
        random_state=rng,
        vectorized=True,
        batch=1000,
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high))


def bootstrap_rate(
    values: np.ndarray, rng: np.random.Generator, confidence: float = 0.95, num_resamples: int = 9999
) -> Interval:
    """Mean of (N,) rates in per cent (0..100), as `bootstrap_mean`, honest at the ends.

    If all values are 0 or all are 100 a bootstrap would claim certainty; then the exact binomial bound of
    Clopper and Pearson 1934 for N out of N is given (two-sided, so 16 of 16 reach down to 79.4 %).
    """
    values = np.asarray(values, dtype=float)
    if len(values) and np.all(values == values[0]) and values[0] in (0.0, 100.0):
        exact = stats.binomtest(len(values), len(values)).proportion_ci(confidence, method="exact")
        bound = 100 * float(exact.low)
        return Interval(100.0, bound, 100.0) if values[0] else Interval(0.0, 0.0, 100.0 - bound)
    interval = bootstrap_mean(values, rng, confidence, num_resamples)
    if len(values) == 1:
        return Interval(interval.estimate, 0.0, 100.0)
    return interval
