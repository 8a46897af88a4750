"""Confidence sequences: intervals that hold at all times at once, so that one may look as often as one likes.

An interval for a fixed number of prompts that is looked at after each of them excludes the truth at some look in about
three of ten rounds. The chance that a confidence sequence ever does is at most 1 - confidence.

The construction is the hedged capital process of Waudby-Smith and Ramdas (2024, "Estimating means of bounded random
variables by betting", J. R. Stat. Soc. B 86:1, arXiv 2010.09686, Theorem 3): somebody bets against each possible mean;
what they own is a martingale if that mean is the true one; a mean is out once they own 1 / (1 - confidence) times what
they began with (Ville's inequality). The authors' package, confseq, has no wheels and its source wants Boost, so these
few lines are ours. Symbols are the paper's.
"""

import numpy as np

from emu_data.votes.intervals import Interval

THETA = 0.5  # share of the money that bets on a higher mean; the paper's default
C = 0.5  # of the money is the most that one bet may lose; the paper recommends 1/2 or 3/4
STEP = 0.001  # between the means that are tried: a tenth of a point, which is what pages show; chosen here
BLOCK = 1024  # values at a time: 8 MB per array; chosen here


def log_capital(values: np.ndarray, means: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Return the log of the capital against each mean after each value: (N, M). It begins with 0.

    values: (N,) in 0..1 in the order in which they came, whose expectation, given those before, is always the same.
    means: (M,) in 0..1.
    """
    more, less = _log_gains(values, _bets(values, 1 - confidence), means)
    return _hedged(np.cumsum(more, axis=0), np.cumsum(less, axis=0))


def anytime_mean(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the mean (0..1) of (N,) values in 0..1 with the present end of its confidence sequence, rounded outwards
    by STEP at most. No values: 0 to 1, the estimate NaN. Raises ValueError for other values.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or (values > 1).any():
        raise ValueError("a confidence sequence needs a list of values from 0 to 1")
    if not len(values):
        return Interval(float("nan"), 0.0, 1.0)
    means = np.linspace(0.0, 1.0, round(1 / STEP) + 1)
    bets = _bets(values, 1 - confidence)
    more, less = np.zeros_like(means), np.zeros_like(means)
    for start in range(0, len(values), BLOCK):
        part = slice(start, start + BLOCK)
        gains = _log_gains(values[part], bets[part], means)
        more, less = more + gains[0].sum(0), less + gains[1].sum(0)
    capital = _hedged(more, less)
    (standing,) = np.nonzero(capital < max(-np.log(1 - confidence), capital.min() + 1e-12))
    low, high = max(0, standing[0] - 1), min(len(means) - 1, standing[-1] + 1)
    return Interval(float(values.mean()), float(means[low]), float(means[high]))


def _bets(values: np.ndarray, alpha: float) -> np.ndarray:
    """The predictable plug-in bets of eq. 26, (N,): each knows only the values before it."""
    t = np.arange(1, len(values) + 1)
    mean = (0.5 + np.cumsum(values)) / (t + 1)
    variance = (0.25 + np.cumsum((values - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.sqrt(2 * np.log(2 / alpha) / (before * t * np.log(t + 1)))


def _log_gains(values: np.ndarray, bets: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much each value multiplies what was bet on a higher mean, and on a lower one: logs, (N, M) each."""
    with np.errstate(divide="ignore"):  # against a mean of 0 or of 1 no bet is too large
        on_more, on_less = np.minimum(bets[:, None], C / means), np.minimum(bets[:, None], C / (1 - means))
    above = values[:, None] - means
    return np.log1p(on_more * above), np.log1p(-on_less * above)


def _hedged(more: np.ndarray, less: np.ndarray) -> np.ndarray:
    return np.maximum(np.log(THETA) + more, np.log(1 - THETA) + less)
