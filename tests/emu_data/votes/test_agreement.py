from math import isnan

import numpy as np
import pytest

from emu_data.votes.agreement import measure_agreement
from emu_data.votes.vote import Vote


def make_round(matrix: list[list[str]]) -> list[Vote]:
    """A row a rater, a column a picture; "" where the rater did not see it."""
    return [
        Vote("round", f"r{rater}", "person", f"k{item}", decision)
        for rater, row in enumerate(matrix)
        for item, decision in enumerate(row)
        if decision
    ]


def test_krippendorffs_coefficient_by_hand_for_two_raters():
    # Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section A: 1 - (n - 1) o_01 / (n_0
    # n_1), here with 4 disagreements and 6 ones among n = 20 values: 0.095.
    first, second = "0100000000", "1110010100"
    matrix = [["keep" if digit == "1" else "drop" for digit in row] for row in (first, second)]
    found = measure_agreement(make_round(matrix))
    assert found.krippendorff_alpha == pytest.approx(0.095, abs=5e-4)
    assert found.raw_agreement == pytest.approx(0.6)


def test_gwets_coefficient_by_hand_for_two_raters():
    # Gwet 2008: p_e = 2 q (1 - q) with q the mean share of one decision.
    matrix = [["keep"] * 2 + ["drop"] * 18, ["keep"] + ["drop"] * 18 + ["keep"]]
    q = 4 / 40
    expected = (18 / 20 - 2 * q * (1 - q)) / (1 - 2 * q * (1 - q))
    found = measure_agreement(make_round(matrix))
    assert found.gwet_ac1 == pytest.approx(expected, abs=1e-4)
    # Where one decision is rare, alpha collapses and AC1 does not.
    assert found.krippendorff_alpha == pytest.approx(0.4583, abs=1e-4)


def test_chance_gives_alpha_near_zero_and_gaps_do_not_matter():
    rng = np.random.default_rng(0)
    matrix = rng.choice(["keep", "drop", ""], size=(4, 400), p=[0.4, 0.4, 0.2]).tolist()
    found = measure_agreement(make_round(matrix))
    assert found.krippendorff_alpha == pytest.approx(0, abs=0.07)
    assert found.num_raters == 4 and found.num_items < 400


def test_undefined_coefficients_are_no_number():
    same = measure_agreement(make_round([["keep"] * 3] * 2))
    assert isnan(same.krippendorff_alpha) and same.gwet_ac1 == 1.0 and same.raw_agreement == 1.0
    assert measure_agreement(make_round([["keep", "drop"]])).num_items == 0
    assert isnan(measure_agreement([]).raw_agreement)
    assert isnan(measure_agreement(make_round([["keep"], ["drop"]])).gwet_ac1)


def test_votes_that_were_not_counted_are_refused():
    votes = make_round([["keep", "drop", "keep"], ["keep", "drop", "drop"]])
    with pytest.raises(ValueError, match="more than one word"):
        measure_agreement([*votes, Vote("round", "r1", "person", "k2", "keep")])
    with pytest.raises(ValueError, match="more than one word"):
        measure_agreement([*votes, Vote("round", "r9", "person", "k1", "keep", is_repeat=True)])
