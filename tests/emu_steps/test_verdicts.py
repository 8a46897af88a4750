"""Gates need evidence: without data they refuse, and neither less data nor a wider interval makes one pass."""

import inspect
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emu_data.votes.intervals import is_above, paired_difference
from emu_data.votes.power import prompts_for_non_inferiority, trials_for_share
from emu_steps import verdicts
from emu_steps.verdicts import (
    MIN_PROMPTS,
    NON_INFERIORITY_CONFIDENCE,
    Verdict,
    appeal_verdict,
    copy_verdict,
    faithfulness_verdict,
    judge_verdict,
)

TRUSTED = Verdict(True, "the judge is trusted")
# the counts with which each gate is tried are (good, bad, neither); the bound is drawn from those that params.yaml
# accepts
GATES = {
    "appeal_verdict": lambda g, b, n, bound, **more: appeal_verdict(g, b, g + b + n, 0.5 + bound / 2, **more),
    "faithfulness_verdict": lambda g, b, n, bound, **more: faithfulness_verdict(
        g, b, g + b + n, 20 * bound, TRUSTED, **more
    ),
    "judge_verdict": lambda g, b, n, bound, **more: judge_verdict(b, g + b, bound / 2, **more),
    "copy_verdict": lambda g, b, n, bound, **more: copy_verdict(b, g + b, bound, **more),
}
COUNTS = st.tuples(*[st.integers(0, 80)] * 3)
BOUNDS = st.floats(0.02, 0.98)
EACH = pytest.mark.parametrize("gate", list(GATES))


def test_every_gate_is_among_those_that_are_tested():
    found = {name for name, _ in inspect.getmembers(verdicts, inspect.isfunction) if name.endswith("_verdict")}
    assert found == set(GATES)


@EACH
@settings(deadline=None)
@given(counts=COUNTS, bound=BOUNDS, levels=st.tuples(*[st.floats(0.5, 0.999)] * 2))
def test_a_wider_interval_turns_no_refusal_into_a_pass(gate, counts, bound, levels):
    narrow, wide = (GATES[gate](*counts, bound=bound, confidence=level).passed for level in sorted(levels))
    assert narrow or not wide


@EACH
@settings(deadline=None)
@given(counts=COUNTS, bound=BOUNDS, times=st.integers(2, 20))
def test_fewer_data_at_the_same_rates_turn_no_refusal_into_a_pass(gate, counts, bound, times):
    many = GATES[gate](*(times * count for count in counts), bound=bound)
    assert many.passed or not GATES[gate](*counts, bound=bound).passed


@EACH
@settings(deadline=None)
@given(counts=COUNTS, bound=BOUNDS)
def test_a_good_case_that_turns_bad_turns_no_refusal_into_a_pass(gate, counts, bound):
    good, bad, neither = counts
    assert GATES[gate](good + 1, bad, neither, bound).passed or not GATES[gate](good, bad + 1, neither, bound).passed


@EACH
@settings(deadline=None)
@given(bound=BOUNDS)
def test_no_data_is_a_refusal_and_enough_good_data_a_pass(gate, bound):
    assert not GATES[gate](0, 0, 0, bound).passed
    assert GATES[gate](2000, 0, 0, bound).passed


@EACH
@settings(deadline=None)
@given(counts=COUNTS, bound=BOUNDS)
def test_the_reason_is_one_sentence_in_which_every_number_is_one(gate, counts, bound):
    reported = GATES[gate](*counts, bound=bound).reason
    assert "\n" not in reported and not re.search(r"\b(nan|inf|None)\b|\d\.\d{5}", reported)


@pytest.mark.parametrize(
    ("won", "lost", "num"), [(14, 26, 40), (0, 26, 40), (0, 5, 5), (0, 0, 40), (0, 0, 0), (3, 0, 3)]
)
def test_what_passed_the_old_faithfulness_gate_without_evidence_is_refused(won, lost, num):
    verdict = faithfulness_verdict(won, lost, num, 5.0, TRUSTED)
    assert not verdict.passed and ("prompts would " in verdict.reason)


def test_a_faithful_model_passes_only_with_a_judge_that_may_be_trusted():
    assert faithfulness_verdict(1, 0, 60, 5.0, TRUSTED).passed
    assert not faithfulness_verdict(1, 0, 60, 5.0, judge_verdict(0, 0, 0.5)).passed
    assert not faithfulness_verdict(1, 0, 60, 5.0, judge_verdict(20, 30, 0.5)).passed
    assert faithfulness_verdict(1, 0, 60, 5.0, judge_verdict(3, 30, 0.5)).passed


def test_a_few_prompts_all_won_show_nothing():
    assert not appeal_verdict(3, 0, 3, 0.5).passed and "6 decided prompts" in appeal_verdict(3, 0, 3, 0.5).reason
    assert appeal_verdict(6, 0, 6, 0.5).passed
    assert not copy_verdict(30, 40, 0.25).passed and not copy_verdict(40, 40, 0.99).passed


def test_the_numbers_of_decided_prompts_are_those_of_the_table():
    """The notes round to the nearest number, which at .80 is one less than is enough."""
    table = {0.55: 783, 0.60: 194, 0.65: 85, 0.70: 47, 0.75: 29, 0.80: 19}
    for share, expected in table.items():
        found = trials_for_share(share, 0.5)
        assert found is not None and expected <= found <= expected + 1
    assert trials_for_share(0.5, 0.5) is None


def test_the_numbers_of_prompts_for_non_inferiority_are_those_of_the_table():
    for (win, lose), expected in {(0.37, 0.21): 78, (0.21, 0.21): 1039, (0.05, 0.05): 247}.items():
        found = prompts_for_non_inferiority(win, lose, 0.05, NON_INFERIORITY_CONFIDENCE)
        assert found is not None and expected <= found <= expected + 1
    assert prompts_for_non_inferiority(0.2, 0.26, 0.05, NON_INFERIORITY_CONFIDENCE) is None


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.floats(0.01, 0.2))
def test_with_as_many_prompts_as_are_said_to_be_needed_the_same_rates_pass(won, lost, level, margin):
    num = won + lost + level
    assume(num and (won - lost) / num > -0.9 * margin)
    needed = prompts_for_non_inferiority(
        won / num, lost / num, margin, NON_INFERIORITY_CONFIDENCE, at_least=MIN_PROMPTS
    )
    assert needed is not None and needed >= MIN_PROMPTS
    rates = won / num * needed, lost / num * needed, needed
    assert is_above(paired_difference(*rates, NON_INFERIORITY_CONFIDENCE), -100 * margin)


@pytest.mark.parametrize(("win", "lose"), [(0.37, 0.21), (0.21, 0.21), (0.05, 0.05)])
def test_the_power_of_the_needed_number_is_about_what_it_says(win, lose):
    num = prompts_for_non_inferiority(win, lose, 0.05, NON_INFERIORITY_CONFIDENCE)
    assert num is not None
    drawn = np.random.default_rng(0).multinomial(num, [win, lose, 1 - win - lose], size=400)
    passed = [faithfulness_verdict(int(w), int(lost), num, 5.0, TRUSTED).passed for w, lost, _ in drawn]
    assert 0.73 < np.mean(passed) < 0.90  # 3 binomial errors of 400 are 6 points; the formula is a normal approximation
