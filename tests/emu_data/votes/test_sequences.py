"""A confidence sequence may be looked at after each prompt; a fixed interval may not."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from emu_data.votes.intervals import exact_rate
from emu_data.votes.sequences import STEP, anytime_mean, log_capital

NUM_ROUNDS, NUM_PROMPTS = 400, 300
LIMIT = -np.log(0.05)


@cache
def shares(win: float, num_raters: int, num_rounds: int = NUM_ROUNDS) -> np.ndarray:
    """Share of the raters' votes that A got on each prompt, (rounds, prompts); prompts differ, their mean is `win`."""
    rng = np.random.default_rng([int(1000 * win), num_raters])
    prompts = rng.beta(4 * win, 4 * (1 - win), (num_rounds, NUM_PROMPTS))
    return rng.binomial(num_raters, prompts) / num_raters


@pytest.mark.parametrize("win", [0.05, 0.5, 0.68, 0.97])
@pytest.mark.parametrize("num_raters", [1, 5])
def test_looked_at_after_each_prompt_the_truth_leaves_in_at_most_one_of_twenty_rounds(win: float, num_raters: int):
    left = [bool((log_capital(one, np.array([win])) >= LIMIT).any()) for one in shares(win, num_raters)]
    # three standard deviations above 5 % in so many rounds
    assert np.mean(left) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / NUM_ROUNDS)


def test_a_fixed_interval_looked_at_so_often_is_wrong_far_more_often():
    """The reason for all this: prompts with one vote each, the exact interval after each fifth of the first 300."""
    won = np.cumsum(shares(0.5, 1), axis=1)[:, 4::5]
    total = np.arange(5, NUM_PROMPTS + 1, 5)
    low = special.betaincinv(won, total - won + 1, 0.025, where=won > 0, out=np.zeros_like(won))
    high = special.betainccinv(won + 1, total - won, 0.025, where=won < total, out=np.ones_like(won))
    assert np.mean(((low > 0.5) | (high < 0.5)).any(1)) > 0.15
    last = exact_rate(float(won[0, -1]), NUM_PROMPTS)
    assert (100 * low[0, -1], 100 * high[0, -1]) == pytest.approx((last.low, last.high))


def test_the_interval_is_what_the_capital_leaves_and_costs_little_where_one_would_stop():
    values = shares(0.68, 5)[0]
    for num in (1, 2, 7, 50, 300):
        found = anytime_mean(values[:num])
        means = np.linspace(0, 1, 101)
        standing = means[log_capital(values[:num], means)[-1] < LIMIT]
        assert found.low <= standing.min() and standing.max() <= found.high
        assert found.low >= standing.min() - 0.01 - STEP and found.high <= standing.max() + 0.01 + STEP
    fixed = 1.96 * values.std() / np.sqrt(len(values))
    assert fixed < (found.high - found.low) / 2 < 2.2 * fixed


def test_by_hand_for_one_value():
    """One value of 1 against a mean of 0.2: bet min(sqrt(2 log 40 / (0.25 log 2)), 0.5 / 0.2) = 2.5 on more."""
    assert log_capital(np.array([1.0]), np.array([0.2]))[0, 0] == pytest.approx(np.log(0.5 * (1 + 2.5 * 0.8)))


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), max_size=40))
def test_mirrored_values_give_the_mirrored_interval_and_the_mean_is_in_it(values: list[float]):
    found, mirrored = anytime_mean(np.array(values)), anytime_mean(1 - np.array(values))
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=2 * STEP)
    assert 0 <= found.low < found.high <= 1
    if values:
        assert found.low <= found.estimate <= found.high


def test_many_values_of_one_kind_leave_little():
    found = anytime_mean(np.ones(3000))
    assert found.low > 0.99 and found.high == 1.0


@pytest.mark.parametrize("values", [[-0.1], [1.1], [float("nan")], [[0.5]]])
def test_other_values_are_refused(values: list):
    with pytest.raises(ValueError, match="from 0 to 1"):
        anytime_mean(np.array(values))
