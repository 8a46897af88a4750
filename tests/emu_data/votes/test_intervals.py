"""Intervals by which gates decide: published examples, coverage, and that none becomes a point."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from emu_data.formatting import format_percent
from emu_data.gate_quality import _row
from emu_data.votes.intervals import (
    MIN_BOOTSTRAP,
    Interval,
    bootstrap_mean,
    bootstrap_rate,
    exact_rate,
    is_above,
    is_below,
    paired_difference,
)
from emu_data.votes.preference import decided_rate, summarise_preference
from emu_steps.verdicts import judge_verdict

COUNTS = st.tuples(*[st.integers(0, 60)] * 3).map(lambda c: (c[0], c[1], sum(c)))  # won, lost, pairs


@pytest.mark.parametrize(
    ("counts", "confidence", "low", "high"),
    [
        ((9, 3, 32), 0.95, -0.027, 0.390),  # Tango 1998, sec. 6.2: sleeping difficulties
        ((0, 1, 44), 0.90, -0.096, 0.037),  # Tango 1998, sec. 6.1: contact lenses
        ((16, 8, 86), 0.95, -0.020, 0.207),  # Agresti and Min 2005, a cross-over study
        ((1, 7, 21), 0.95, -0.517, -0.026),  # Fagerland, Lydersen and Laake 2014: Bentur et al.'s children
    ],
)
def test_the_paired_difference_agrees_with_published_examples(counts, confidence, low, high):
    found = paired_difference(*counts, confidence=confidence)
    assert found.low / 100 == pytest.approx(low, abs=5e-4) and found.high / 100 == pytest.approx(high, abs=5e-4)


@settings(deadline=None)
@given(COUNTS.filter(lambda c: c[2] > 0 and 0 < abs(c[0] - c[1]) < c[2]), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_its_limits_are_roots_of_the_closed_form(counts, confidence):
    """The polynomial of Yang, Sun and Hardin 2013, derived there from the same score statistic."""
    won, lost, num = counts
    z2 = float(stats.norm.ppf(0.5 + confidence / 2)) ** 2
    delta, sum_ = won - lost, won + lost
    coefficients = (
        num**2 * (num / z2 + 1) ** 2,
        -num * delta * (num / z2 + 1) * (4 * num / z2 + 1),
        2 * num * delta**2 * (3 * num / z2 + 2) / z2 - num**2 * (sum_ / z2 + 1),
        num * delta * (2 * sum_ / z2 + 1) - delta**3 * (4 * num / z2 + 1) / z2,
        delta**2 * (delta**2 / z2 - sum_) / z2,
    )
    found = paired_difference(won, lost, num, confidence)
    roots = np.roots(coefficients)
    for limit in (found.low / 100, found.high / 100):
        assert abs(limit) == pytest.approx(1, abs=1e-6) or np.abs(roots - limit).min() < 1e-5


@settings(deadline=None)
@given(COUNTS)
def test_the_paired_difference_contains_its_estimate_and_is_not_a_point(counts):
    found = paired_difference(*counts)
    assert -100 <= found.low < found.high <= 100
    assert np.isnan(found.estimate) or found.low <= found.estimate <= found.high
    mirrored = paired_difference(counts[1], counts[0], counts[2])
    assert mirrored.low == pytest.approx(-found.high, abs=1e-6)


def test_if_nothing_is_decided_the_paired_difference_says_how_little_that_is():
    z2 = float(stats.norm.ppf(0.975)) ** 2
    for num in (1, 5, 40, 1000):
        assert paired_difference(0, 0, num).low == pytest.approx(-100 * z2 / (num + z2))
    assert paired_difference(0, 0, 0) == paired_difference(0, 0, 0, 0.5) or np.isnan(
        paired_difference(0, 0, 0).estimate
    )


@pytest.mark.parametrize("num", [20, 40, 100])
@pytest.mark.parametrize(("win", "lose"), [(0.37, 0.21), (0.05, 0.1), (0.01, 0.06), (0.5, 0.5)])
def test_the_lower_limit_is_above_the_truth_about_as_often_as_it_says(num, win, lose):
    drawn = np.random.default_rng(0).multinomial(num, [win, lose, 1 - win - lose], size=1500)
    counts, times = np.unique(drawn, axis=0, return_counts=True)
    too_high = [paired_difference(int(w), int(lost), num, 0.90).low > 100 * (win - lose) for w, lost, _ in counts]
    # 5 % are promised; enumerated over all rates it is at most 7.3 % from 20 prompts on; 3 binomial errors are 2 points
    assert times[too_high].sum() / times.sum() < 0.093


@settings(deadline=None)
@given(st.integers(0, 80), st.integers(0, 80), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_exact_rate_is_that_of_scipy_and_not_a_point(num, others, confidence):
    total = num + others
    found = exact_rate(num, total, confidence)
    assert 0 <= found.low < found.high <= 100
    if total:
        exact = stats.binomtest(num, total).proportion_ci(confidence, method="exact")
        assert (found.low, found.high) == pytest.approx((100 * exact.low, 100 * exact.high), abs=1e-8)


@pytest.mark.parametrize("counts", [(3, 2), (-1, 2), (1, 0)])
def test_inconsistent_counts_are_refused(counts):
    with pytest.raises(ValueError, match="is not a share"):
        exact_rate(*counts)
    with pytest.raises(ValueError, match="do not fit"):
        paired_difference(*counts, num_pairs=0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=14), st.integers(0, 5))
def test_a_bootstrapped_rate_is_never_a_point(raters, same):
    rng = np.random.default_rng(0)
    for values in (20.0 * np.array(raters), np.full(len(raters), 20.0 * same)):
        found = bootstrap_rate(values, rng, num_resamples=199)
        assert 0 <= found.low < found.high <= 100


def test_a_mean_of_equal_values_has_no_interval_and_few_values_have_students():
    rng = np.random.default_rng(0)
    for values in (np.array([3.0]), np.full(40, 3.0)):
        found = bootstrap_mean(values, rng)
        assert found.estimate == 3 and np.isnan([found.low, found.high]).all()
        assert not is_above(found, -1e9) and not is_below(found, 1e9)
    few = np.random.default_rng(1).normal(size=MIN_BOOTSTRAP - 1)
    exact = stats.t.interval(0.95, len(few) - 1, few.mean(), stats.sem(few))
    found = bootstrap_mean(few, rng)
    assert (found.low, found.high) == pytest.approx(exact)


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(0, 5), st.floats(0, 5), st.floats(0, 5), st.floats(0, 5), st.floats(-5, 5))
def test_a_wider_interval_is_on_no_side_if_a_narrower_one_is_not(at, below, above, more_below, more_above, bound):
    narrow = Interval(at, at - below, at + above)
    wide = Interval(at, narrow.low - more_below, narrow.high + more_above)
    assert is_above(narrow, bound) or not is_above(wide, bound)
    assert is_below(narrow, bound) or not is_below(wide, bound)
    unknown = Interval(at, float("nan"), float("nan"))
    assert not is_above(unknown, bound) and not is_below(unknown, bound)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_a_count_has_one_interval_whichever_page_shows_it(counts):
    """As a rate of prompts, of pictures, of decided prompts, of known pairs, or of rows that a gate dropped."""
    num, total = counts
    expected = exact_rate(num, total)
    yes = np.arange(total) < num
    assert bootstrap_rate(100.0 * yes, np.random.default_rng(0)) == expected
    assert decided_rate(num, total - num) == expected
    votes = pd.DataFrame(
        {"key": [f"{n}" for n in range(total)], "rater": "r", "decision": np.where(yes, "A", "B"), "side_order": "AB"}
    )
    found = summarise_preference(votes, seed=1)
    assert found.win == expected == found.decided_win and found.lose == exact_rate(total - num, total)
    gate = _row("text_area", num_damaged=total, num_dropped=total, num_right=num)
    assert gate["precision_low"] == gate["recall_low"] == expected.low / 100
    verdict = judge_verdict(num, total, 0.5).reason
    assert f"{format_percent(expected.estimate)}, at most {format_percent(expected.high)}" in verdict


# Modules that themselves look up quantiles, and why this makes no interval that a page could show beside another.
ALLOWED = {
    "emu_data/votes/intervals.py": "the one place",
    "emu_data/votes/power.py": "how many prompts would decide; no estimate",
    "emu_steps/redeciding.py": "how many unmeasured rows would pass: drawn from a posterior, printed on the terminal",
}
OWN_INTERVAL = re.compile(
    r"stats\.(beta|norm|t|binom)\b|special\.(betainc|ndtri|stdtri)|stats\.bootstrap|proportion_ci|confidence_interval\(|1\.96|0\.975|0\.025"
)


def test_no_other_module_makes_intervals():
    root = Path(__file__).parents[3]
    packages = ("emu_data", "emu_models", "emu_reports", "emu_steps", "emu_dagster")
    modules = [path for name in packages for path in (root / name).rglob("*.py")]
    texts = {path.relative_to(root).as_posix(): path.read_text() for path in modules}
    assert {name for name, text in texts.items() if OWN_INTERVAL.search(text)} == ALLOWED.keys()
