import numpy as np
import pandas as pd
import pytest

from emu_data.votes.intervals import bootstrap_rate, paired_difference
from emu_data.votes.preference import (
    decided_rate,
    position_bias,
    self_consistency,
    share_by_prompt,
    sign_test,
    summarise_preference,
)


def make_votes(decisions: dict[str, str], side_order: str = "AB") -> pd.DataFrame:
    """Return three raters' votes on the pair p1, for example, from {"p1": "ABt"}."""
    names = {"A": "A", "B": "B", "t": "tie", "b": "both", "n": "neither"}
    rows = [
        (key, f"r{rater}", names[letter], side_order)
        for key, letters in decisions.items()
        for rater, letter in enumerate(letters)
    ]
    return pd.DataFrame(rows, columns=["key", "rater", "decision", "side_order"])


def test_rates_are_means_over_prompts_and_sum_to_100():
    found = summarise_preference(make_votes({"p1": "AAAAA", "p2": "AB", "p3": "ttttB", "p4": "bnAA"}))
    assert found.win.estimate == pytest.approx(100 * (1 + 0.5 + 0 + 0.5) / 4)
    assert found.win.estimate + found.lose.estimate + found.tie.estimate == pytest.approx(100)
    assert (found.num_prompts_won, found.num_prompts_lost, found.num_prompts_level) == (2, 1, 1)
    assert found.decisions["both"] == pytest.approx(100 / 16)
    assert found.num_votes == 16 and found.num_raters == 5


def test_pairs_of_one_prompt_are_one_unit():
    votes = make_votes({"p1-s0": "AAA", "p1-s1": "AAB", "p2-s0": "BBB"})
    prompt_of = {"p1-s0": "p1", "p1-s1": "p1", "p2-s0": "p2"}
    found = summarise_preference(votes, prompt_of)
    assert found.num_prompts == 2 and found.num_pairs == 3
    assert found.win.estimate == pytest.approx(100 * (5 / 6 + 0) / 2)
    with pytest.raises(ValueError, match="no prompt"):
        share_by_prompt(votes, {"p1-s0": "p1"})


def test_swapping_the_models_swaps_the_verdict():
    rng = np.random.default_rng(0)
    votes = make_votes({f"p{n}": "".join(rng.choice(list("AABt"), 5)) for n in range(30)})
    swapped = votes.assign(decision=votes["decision"].replace({"A": "B", "B": "A"}))
    one, other = summarise_preference(votes, seed=1), summarise_preference(swapped, seed=1)
    assert one.win.estimate == other.lose.estimate and one.sign_test_p == other.sign_test_p
    assert one.num_prompts_won == other.num_prompts_lost


def test_equal_seeds_give_equal_intervals_and_row_order_does_not_matter():
    rng = np.random.default_rng(1)
    votes = make_votes({f"p{n:02d}": "".join(rng.choice(list("ABt"), 5)) for n in range(20)})
    one = summarise_preference(votes, seed=3)
    assert one == summarise_preference(votes.sample(frac=1, random_state=0), seed=3)
    assert one.win.low < one.win.estimate < one.win.high


def test_unanimity_is_not_certainty():
    found = summarise_preference(make_votes({f"p{n}": "AAAAA" for n in range(16)}))
    assert found.win.estimate == 100 and found.win.low == pytest.approx(100 * 0.025 ** (1 / 16), abs=0.1)
    assert found.lose.high == pytest.approx(100 - found.win.low)
    alone = summarise_preference(make_votes({"p": "AAA"})).win
    assert alone.low < 5 and alone.high == 100


@pytest.mark.parametrize("num_prompts", [16, 60])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(num_prompts: int):
    rng = np.random.default_rng(7)
    num_trials, hits, truth = 200, 0, 60.0
    for _ in range(num_trials):
        # Clustered: a taste for each prompt (mean 0.6, wide), then five votes of that taste.
        taste = rng.beta(1.2, 0.8, size=num_prompts)
        values = 100 * rng.binomial(5, taste) / 5
        interval = bootstrap_rate(values, rng, num_resamples=999)
        hits += interval.low <= truth <= interval.high
    # 95 % nominal; 3 binomial standard errors of 200 trials are 4.6 points, and few prompts cost some more.
    assert 0.88 <= hits / num_trials <= 0.99


def test_the_decided_rate_is_above_half_exactly_if_the_sign_test_rejects():
    for won, lost in ((12, 4), (13, 3), (9, 7), (2, 14), (0, 0)):
        rate = decided_rate(won, lost)
        assert (rate.low > 50 or rate.high < 50) == (sign_test(won, lost) < 0.05)
        assert rate.low <= rate.estimate <= rate.high or not won + lost
    found = summarise_preference(make_votes({"p1": "AAA", "p2": "AAB", "p3": "BBB", "p4": "tt"}))
    assert found.decided_win == decided_rate(2, 1)
    assert found.win_less_lose == paired_difference(2, 1, 4)


def test_sign_test_by_hand():
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(3, 3) == 1.0 and sign_test(0, 0) == 1.0


def test_position_bias_is_found_and_a_better_model_is_no_bias():
    rng = np.random.default_rng(0)
    sides = rng.choice(["AB", "BA"], 400)
    fair = pd.DataFrame(
        {
            "key": [f"p{n}" for n in range(400)],
            "rater": "r",
            "decision": "A",
            "side_order": sides,
        }
    )
    assert position_bias(fair).p_value > 0.01 and summarise_preference(fair).win.estimate == 100
    leaning = fair.assign(decision=[side[0] for side in sides])
    assert position_bias(leaning).left_share == 1.0 and position_bias(leaning).p_value < 1e-9
    assert position_bias(make_votes({"p": "tt"})).p_value == 1.0


def test_self_consistency_compares_repeats_with_the_first_showing():
    first = make_votes({"p1": "AB", "p2": "AB"})
    repeats = first.loc[first["key"] == "p1"].assign(decision="A", side_order="BA")
    found = self_consistency(first, repeats)
    assert found.num_repeats == 2 and found.same_share == 0.5
    assert np.isnan(self_consistency(first, repeats.head(0)).same_share)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        (make_votes({}), "no votes"),
        (make_votes({"p": "A"}).drop(columns="rater"), "lacks rater"),
        (make_votes({"p": "A"}).assign(decision="keep"), "side-by-side"),
        (pd.concat([make_votes({"p": "A"})] * 2), "more than one vote"),
    ],
)
def test_what_cannot_be_summarised_is_refused(votes: pd.DataFrame, message: str):
    with pytest.raises(ValueError, match=message):
        summarise_preference(votes)
