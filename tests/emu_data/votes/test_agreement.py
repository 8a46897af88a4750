from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_data.votes.agreement import measure_agreement
from emu_data.votes.vote import Vote

# Gwet 2014, Handbook of Inter-Rater Reliability, 4th ed., p. 120: 12 units, 4 raters, blanks if one did not rate.
# One row per rater. AC1 0.77544 (vignette of the author's R package irrCAC); alpha 0.743 (Krippendorff 2011, section C,
# which has the same table).
GWETS_TABLE = [list(row) for row in ("123321412   ", "1233224125  ", " 33323422513", "12332441251 ")]


def make_round(matrix: list[list[str]]) -> list[Vote]:
    """Return a round with one row per rater and one column per picture; "" if the rater did not see it."""
    return [
        Vote("round", f"r{rater}", "person", f"k{item}", decision, side_order="AB")
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
    assert found.krippendorff_alpha.estimate == pytest.approx(0.095, abs=5e-4)
    assert found.raw_agreement == pytest.approx(0.6)


def test_gwets_coefficient_by_hand_for_two_raters():
    # Gwet 2008: p_e = 2 q (1 - q) with q the mean share of one decision.
    matrix = [["keep"] * 2 + ["drop"] * 18, ["keep"] + ["drop"] * 18 + ["keep"]]
    q = 4 / 40
    expected = (18 / 20 - 2 * q * (1 - q)) / (1 - 2 * q * (1 - q))
    found = measure_agreement(make_round(matrix))
    assert found.gwet_ac1 == pytest.approx(expected, abs=1e-4)
    # If one decision is rare, alpha collapses and AC1 does not.
    assert found.krippendorff_alpha.estimate == pytest.approx(0.4583, abs=1e-4)


def test_gwets_table_gives_the_published_coefficients():
    named = {"1": "A", "2": "B", "3": "tie", "4": "both", "5": "neither", " ": ""}  # our votes have such decisions
    found = measure_agreement(make_round([[named[cell] for cell in row] for row in GWETS_TABLE]))
    assert found.gwet_ac1 == pytest.approx(0.77544, abs=5e-6)
    assert found.krippendorff_alpha.estimate == pytest.approx(0.743, abs=5e-4)
    assert (found.num_items, found.num_raters, found.num_votes) == (11, 4, 40)  # the last unit has one rating


def test_a_published_table_of_two_raters_gives_gwets_coefficient():
    # Gwet 2014 in the same vignette: two abstractors on 100 cases, AC1 0.8493305, agreement 0.89.
    table = {("tie", "tie"): 13, ("A", "A"): 20, ("A", "B"): 7, ("B", "A"): 4, ("B", "B"): 56}
    cases = [pair for pair, num in table.items() for _ in range(num)]
    found = measure_agreement(make_round([[pair[rater] for pair in cases] for rater in (0, 1)]))
    assert found.gwet_ac1 == pytest.approx(0.8493305, abs=5e-8)
    assert found.raw_agreement == pytest.approx(0.89)


def test_alphas_interval_contains_the_estimate_and_narrows_with_more_pictures():
    rng = np.random.default_rng(0)
    widths = []
    for num in (40, 640):
        truth = rng.random(num) < 0.5
        matrix = np.where(truth ^ (rng.random((3, num)) < 0.2), "keep", "drop").tolist()
        found = measure_agreement(make_round(matrix)).krippendorff_alpha
        assert found.low < found.estimate < found.high
        assert found == measure_agreement(make_round(matrix)).krippendorff_alpha  # the same votes, the same interval
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2  # a quarter, like the square root of the number


@given(st.lists(st.lists(st.sampled_from(["keep", "drop", "tie", ""]), min_size=6, max_size=6), min_size=2, max_size=5))
def test_agreement_depends_on_neither_the_order_of_raters_nor_the_names_of_decisions(matrix):
    found = measure_agreement(make_round(matrix))
    renamed = [[{"keep": "drop", "drop": "tie", "tie": "A"}.get(cell, "") for cell in row] for row in reversed(matrix)]
    other = measure_agreement(make_round(renamed))
    assert (other.num_items, other.num_votes) == (found.num_items, found.num_votes)
    assert other.raw_agreement == pytest.approx(found.raw_agreement, nan_ok=True)
    assert other.gwet_ac1 == pytest.approx(found.gwet_ac1, nan_ok=True)
    assert other.krippendorff_alpha.estimate == pytest.approx(found.krippendorff_alpha.estimate, nan_ok=True)
    assert not found.gwet_ac1 > 1 + 1e-12


def test_chance_gives_alpha_near_zero_and_gaps_do_not_matter():
    rng = np.random.default_rng(0)
    matrix = rng.choice(["keep", "drop", ""], size=(4, 400), p=[0.4, 0.4, 0.2]).tolist()
    found = measure_agreement(make_round(matrix))
    assert found.krippendorff_alpha.estimate == pytest.approx(0, abs=0.07)
    assert found.num_raters == 4 and found.num_items < 400


def test_undefined_coefficients_are_nan():
    same = measure_agreement(make_round([["keep"] * 3] * 2))
    assert isnan(same.krippendorff_alpha.estimate) and same.gwet_ac1 == 1.0 and same.raw_agreement == 1.0
    assert measure_agreement(make_round([["keep", "drop"]])).num_items == 0
    assert isnan(measure_agreement([]).raw_agreement)
    assert isnan(measure_agreement(make_round([["keep"], ["drop"]])).gwet_ac1)


def test_votes_that_were_not_counted_are_refused():
    votes = make_round([["keep", "drop", "keep"], ["keep", "drop", "drop"]])
    with pytest.raises(ValueError, match="more than one vote"):
        measure_agreement([*votes, Vote("round", "r1", "person", "k2", "keep")])
    with pytest.raises(ValueError, match="more than one vote"):
        measure_agreement([*votes, Vote("round", "r9", "person", "k1", "keep", is_repeat=True)])
