"""The arms of the tuning study differ in what they say, and in nothing else."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_data.files import write_parquet
from emu_data.shards import MANIFEST_NAME
from emu_steps.layout import Layout
from emu_steps.params import Params
from emu_steps.tuning_study import Arm, arms_of, rows_of
from tests.profiles import params_of

NUM_CURATED, NUM_FILTERED = 20, 50


def with_study(**study: Any) -> Params:
    params = params_of("emoji")
    return params.model_copy(update={"tuning_study": params.tuning_study.model_copy(update=study)})


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Layout:
    """A project with a curated set, filtered pictures and their ledger, as tables only."""
    layout = Layout(tmp_path_factory.mktemp("project"))
    keys = [f"{number:09d}" for number in range(NUM_FILTERED)]
    texts = dict.fromkeys(("caption_old", "short", "long"), "a picture")
    curated = pd.DataFrame({"key": keys[:NUM_CURATED], "shard": "00000", "caption": "a picture", **texts})
    filtered = pd.DataFrame({"key": keys, "shard": "00000", "caption": "a picture"})
    ledger = filtered.assign(first_failed_gate="", num_bytes=range(NUM_FILTERED))
    for folder, table in ((layout.curated, curated), (layout.filtered, filtered)):
        folder.mkdir(parents=True)
        write_parquet(folder / MANIFEST_NAME, table)
    (layout.filtered / "ledger").mkdir()
    write_parquet(layout.filtered / "ledger" / "00000.parquet", ledger)
    return layout


def keys_of(layout: Layout, params: Params, arm: Arm) -> list[str]:
    return rows_of(layout, params.tuning_study, arm)[1]["key"].tolist()


@given(
    st.lists(st.floats(0, 1), max_size=5),
    st.lists(st.sampled_from(["steps", "epochs"]), min_size=1, max_size=2, unique=True),
    st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
    st.lists(st.floats(0.01, 3), max_size=3),
)
def test_every_arm_is_trained_once_and_as_long_as_it_says(shares, budgets, seeds, lengths):
    params = with_study(shares=shares, budgets=budgets, seeds=seeds, lengths=lengths)
    arms, whole = arms_of(params), params.quality_tuned.num_steps
    assert len({(a.part, a.share, a.budget, a.seed, a.num_steps, a.stop_after) for a in arms}) == len(arms)
    of_shares = [arm for arm in arms if arm.part == "share"]
    assert len({arm.name for arm in arms}) == len(arms)
    assert {arm.share for arm in of_shares} == {share for share in shares if share > 0}
    for arm in of_shares:
        passes = whole if arm.budget == "steps" else max(1, round(arm.share * whole))
        assert arm.num_steps == passes and arm.stop_after is None
    lasts = [arm.stop_after for arm in arms if arm.part == "length"]
    assert lasts == sorted({max(1, round(length * whole)) for length in lengths})


def test_without_lists_nothing_is_trained():
    assert arms_of(params_of("emoji")) == []


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 50))
def test_a_smaller_subset_of_a_seed_is_part_of_a_larger_one(layout, share, other, seed):
    params = with_study()
    small, large = (
        set(keys_of(layout, params, Arm("arm", "share", 10, "short", share=s, seed=seed)))
        for s in sorted((share, other))
    )
    assert small and small <= large
    assert len(large) == pytest.approx(max(share, other) * NUM_CURATED, abs=1)


def test_chosen_pictures_are_as_many_as_curated_ones_and_the_best_by_their_column(layout):
    params = with_study(chosen_by={"size": "num_bytes", "random": None})
    best = keys_of(layout, params, Arm("best", "chosen_by", 10, "corpus", chosen_by="size"))
    assert best == [f"{number:09d}" for number in range(NUM_FILTERED - NUM_CURATED, NUM_FILTERED)]
    drawn = [keys_of(layout, params, Arm("any", "chosen_by", 10, "corpus", chosen_by="random", seed=s)) for s in (0, 1)]
    assert [len(set(keys)) for keys in drawn] == [NUM_CURATED] * 2 and drawn[0] != drawn[1]


def test_a_column_that_the_ledger_lacks_is_refused_with_those_it_has(layout):
    params = with_study(chosen_by={"beauty": "beauty"})
    with pytest.raises(ValueError, match="chosen_by.beauty.*no column 'beauty'; its numbers are num_bytes"):
        keys_of(layout, params, Arm("arm", "chosen_by", 10, "corpus", chosen_by="beauty"))


def test_too_few_pictures_to_choose_from_are_said(layout, tmp_path):
    few = Layout(Path(tmp_path))
    for folder in ("curated", "filtered"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    write_parquet(few.curated / MANIFEST_NAME, pd.read_parquet(layout.curated / MANIFEST_NAME))
    write_parquet(few.filtered / MANIFEST_NAME, pd.read_parquet(layout.filtered / MANIFEST_NAME).head(3))
    params = with_study(chosen_by={"random": None})
    with pytest.raises(ValueError, match="only 3 filtered pictures can be chosen, and the curated set has 20"):
        keys_of(few, params, Arm("arm", "chosen_by", 10, "corpus", chosen_by="random"))
