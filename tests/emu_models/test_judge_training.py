"""The judge learns from some pictures and is tested on pairs of the others, for which the right answer is known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_data.votes.vote import Vote
from emu_models.evaluation.judge import load_faithfulness_judge
from emu_models.evaluation.known_pairs import UNDECIDED, decide_together, draw_known_pairs, measure_judge
from emu_models.judge_training import HELD_FILE, KNOWN_FILE, JudgeConfig, JudgeJob, hold_out, make_judge
from emu_steps.verdicts import judge_verdict
from tests.emu_models.evaluation.test_faithfulness import COLOURS, judge, paint
from tests.emu_models.test_alignment import BY, draw_pairs
from tests.toy_training import places

__all__ = ["judge"]  # the fixture
CAPTIONS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=30)


def judge_job_in(folder: Path, held_share: float) -> JudgeJob:
    network = JudgeConfig(width=8, embed_dim=32, text_width=32, batch_size=32, seed=1)
    places_ = places("faithfulness_judge", (folder, folder), folder)
    return JudgeJob(**places_, root=folder, held_share=held_share, loop=BY, training=network)


@settings(deadline=None)
@given(CAPTIONS, st.integers(0, 5))
def test_pairs_are_what_their_right_answer_says(captions, seed):
    pairs = draw_known_pairs(captions, seed)
    shows = [
        tuple(captions[place] == row["caption"] for place in (row["a"], row["b"])) for row in pairs.to_dict("records")
    ]
    expected = {(True, False): "A", (False, True): "B", (True, True): "both", (False, False): "neither"}
    assert [expected[both] for both in shows] == pairs["right"].tolist()
    assert (pairs["a"] != pairs["b"]).all()
    assert len(pairs) == len(captions) if len(set(captions)) > 1 else len(pairs) <= len(captions)


def test_all_four_answers_occur_if_possible():
    pairs = draw_known_pairs(list("aabbccdd"), 0)
    assert set(pairs["right"]) == {"A", "B", "both", "neither"}
    assert set(draw_known_pairs(list("abcdefgh"), 0)["right"]) == {"A", "B", "neither"}


def test_raters_decide_together():
    said = [("1", "A"), ("1", "A"), ("1", "B"), ("2", "A"), ("2", "B"), ("2", "both")]
    votes = [Vote("faithfulness", str(n), "rubric", key, what, side_order="AB") for n, (key, what) in enumerate(said)]
    assert decide_together(votes).to_dict() == {"1": "A", "2": UNDECIDED}


def test_a_judge_that_sees_passes_and_one_that_does_not_fails(judge):
    names = list(COLOURS)
    error, pairs = measure_judge(judge, paint(names), names, names)
    assert error.num_pairs == len(pairs) == 40 and judge_verdict(error.num_wrong, error.num_pairs, 0.5).passed
    assert sum(right for right, _ in error.by_right.values()) == error.num_pairs - error.num_wrong
    blind, _ = measure_judge(judge, paint(names[9:] + names[:9]), names, names)
    assert not judge_verdict(blind.num_wrong, blind.num_pairs, 0.5).passed


@settings(deadline=None)
@given(CAPTIONS, st.floats(0, 1))
def test_a_share_is_held_out_and_captions_stay_known_as_far_as_possible(captions, share):
    keys = [f"{i}" for i in range(len(captions))]
    held = hold_out(captions, keys, share)
    assert held.sum() == round(share * len(keys))
    order = np.random.default_rng(0).permutation(len(keys))
    assert (hold_out([captions[i] for i in order], [keys[i] for i in order], share) == held[order]).all()
    if held.sum() <= len(captions) - len(set(captions)):
        assert {captions[i] for i in np.flatnonzero(~held)} == set(captions)


def test_its_folder_has_the_error_on_pictures_that_it_did_not_see(tmp_path: Path):
    images, captions = draw_pairs(6)
    keys = [f"{i:03d}" for i in range(len(images))]
    read: list[list[str]] = []

    def reader(some: list[str], size: int) -> np.ndarray:
        read.append(some)
        return images[[keys.index(key) for key in some]].repeat(size // 32, 1).repeat(size // 32, 2)

    job = judge_job_in(tmp_path, 0.25)
    folder, numbers = make_judge(job, reader, captions, keys)
    everything, tested = read  # first all, which name the judge
    learnt = [key for key, held in zip(keys, hold_out(captions, keys, 0.25), strict=True) if not held]
    assert everything == keys and numbers["num_learnt"] == len(learnt)
    shutil.copytree(folder / "result", tmp_path / "judge")
    assert not set(learnt) & set(tested) and sorted([*learnt, *tested]) == keys
    held = pd.read_parquet(tmp_path / "judge" / HELD_FILE)
    assert sorted(held["key"]) == sorted(tested) and numbers["num_held"] == 12 == len(held)
    known = pd.read_parquet(tmp_path / "judge" / KNOWN_FILE)
    assert set(known["key_a"]) | set(known["key_b"]) <= set(tested)
    assert numbers["num_known_wrong"] == (known["right"] != known["decision"]).sum()
    _, error = load_faithfulness_judge(tmp_path / "judge", tmp_path)
    assert (error["num_pairs"], error["num_wrong"]) == (numbers["num_known_pairs"], numbers["num_known_wrong"])
    assert json.loads((tmp_path / "judge" / "meta.json").read_text())["result"] == numbers
    weights = "judge"  # named from the project
    beside, again = make_judge(replace(job, weights=weights), reader, captions, keys)
    read.clear()
    assert make_judge(job, reader, captions, keys) == (folder, numbers)
    assert beside != folder and len(read) == 1  # found, not trained again
    assert again["num_known_wrong"] == numbers["num_known_wrong"] and "loss" not in again
    assert load_faithfulness_judge(beside / "result", tmp_path)[0].name == "judge"
    # other weights in the same place: the measured error is not theirs, and they make another judge
    file = tmp_path / "judge" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="has changed since the judge.s error was measured"):
        load_faithfulness_judge(beside / "result", tmp_path)
    assert make_judge(replace(job, weights=weights), reader, captions, keys)[0] != beside


def test_nothing_to_learn_from_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="none is left to learn from"):
        make_judge(judge_job_in(tmp_path, 0.9), lambda keys, size: np.zeros((1, size, size, 3), np.uint8), ["a"], ["1"])
    with pytest.raises(ValueError, match="materialise faithfulness_judge"):
        load_faithfulness_judge(tmp_path / "judge", tmp_path)
