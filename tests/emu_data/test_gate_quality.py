"""Precision and recall of the gates against known damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from emu_data.files import write_parquet
from emu_data.gate_quality import Auc, alignment_auc, gate_quality
from emu_data.ledger import open_ledger
from emu_data.votes.intervals import auc_interval


def measure(folder: Path, ledger: pd.DataFrame, damage: pd.DataFrame) -> tuple[dict[Any, Any], Auc | None]:
    ledger = ledger.assign(key=[f"{i:03d}" for i in ledger.index])
    write_parquet(folder / "ledger" / "00000.parquet", ledger)
    write_parquet(folder / "damage.parquet", damage.assign(key=ledger["key"]))
    with open_ledger(folder / "ledger") as con:
        table = gate_quality(con, folder / "damage.parquet")
        auc = alignment_auc(con, folder / "damage.parquet") if "alignment_rank" in ledger else None
    return table.set_index("gate").to_dict("index"), auc


def test_a_gate_is_judged_on_what_reached_it(tmp_path: Path) -> None:
    gates = ["text_area", "text_area", "", "geometry", "", "duplicate", "", "alignment"]
    kinds = ["text", "", "text", "sliver", "duplicate", "", "duplicate", ""]
    ledger = pd.DataFrame({"first_failed_gate": gates, "duplicate_of": ["", "", "", "", "", "004", "", ""]})
    # the copy 004 was kept and its source dropped, which is as good. The source of 006 fell at an earlier gate: no
    # miss.
    damage = pd.DataFrame({"damage": kinds, "duplicate_of": ["", "", "", "", "005", "", "007", ""]})
    quality, _ = measure(tmp_path, ledger, damage)
    counts = {gate: tuple(row[c] for c in ("num_damaged", "num_dropped", "num_right")) for gate, row in quality.items()}
    assert counts["geometry"] == (1, 1, 1)
    assert counts["text_area"] == (2, 2, 1)
    assert counts["duplicate"] == (1, 1, 1)
    assert (quality["text_area"]["precision"], quality["text_area"]["recall"]) == (0.5, 0.5)
    assert quality["text_area"]["missed_by"] == pytest.approx(0.45)
    assert quality["duplicate"]["missed_by"] == 0
    assert np.isnan(quality["safety"]["precision"]) and np.isnan(quality["alignment"]["missed_by"])


def test_a_missed_copy_and_a_wrong_drop_count(tmp_path: Path) -> None:
    ledger = pd.DataFrame({"first_failed_gate": ["", "", "duplicate", ""], "duplicate_of": ["", "", "000", ""]})
    damage = pd.DataFrame({"damage": ["", "duplicate", "", ""], "duplicate_of": ["", "000", "", ""]})
    found = measure(tmp_path, ledger, damage)[0]["duplicate"]
    assert (found["num_damaged"], found["num_dropped"], found["num_right"]) == (1, 1, 0)
    assert (found["precision"], found["recall"], found["missed_by"]) == (0, 0, 0.95)


def test_auc_of_swapped_captions_is_that_of_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 9, 60) / 8  # with ties
    swapped = rng.random(60) < 0.3
    ledger = pd.DataFrame({"first_failed_gate": "", "duplicate_of": "", "alignment_rank": ranks})
    ledger.loc[5, "alignment_rank"] = np.nan
    damage = pd.DataFrame({"damage": np.where(swapped, "caption", ""), "duplicate_of": ""})
    known = ledger["alignment_rank"].notna()
    expected = roc_auc_score(swapped[known], -ranks[known])
    found = measure(tmp_path / "a", ledger, damage)[1]
    assert found is not None and found.value == pytest.approx(expected)
    assert (found.num_swapped, found.num_right) == (swapped[known].sum(), (~swapped[known]).sum())
    nothing = measure(tmp_path / "b", ledger, damage.assign(damage=""))[1]
    assert nothing is not None and np.isnan(nothing.value) and (nothing.low, nothing.high) == (0, 1)


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(1, 30), st.integers(1, 200), st.integers(2, 6))
def test_the_interval_of_an_auc_is_not_a_point_and_narrows_with_more_rows(value, num_swapped, num_right, times) -> None:
    found = auc_interval(value, num_swapped, num_right)
    assert 0 <= found.low <= value <= found.high <= 1 and found.low < found.high
    closer = auc_interval(value, times * num_swapped, times * num_right)
    assert found.low <= closer.low + 1e-6 and closer.high <= found.high + 1e-6


def test_it_contains_the_truth_about_as_often_as_it_says() -> None:
    rng, truth, hits = np.random.default_rng(0), 0.95, 0
    shift = np.sqrt(2) * stats.norm.ppf(truth)
    for _ in range(400):
        swapped, right = rng.normal(size=6), rng.normal(shift, size=100)
        found = auc_interval(float((swapped[:, None] < right).mean()), 6, 100)
        hits += found.low <= truth <= found.high
    assert hits / 400 > 0.92  # 95 % are promised, 3 binomial errors are 3 points


def test_a_gate_that_met_its_goal_on_two_rows_has_shown_nothing(tmp_path: Path) -> None:
    for number, (num, is_shown) in enumerate(((2, False), (200, True))):
        ledger = pd.DataFrame({"first_failed_gate": ["text_area"] * num, "duplicate_of": ""})
        found = measure(tmp_path / str(number), ledger, pd.DataFrame({"damage": ["text"] * num, "duplicate_of": ""}))[0]
        assert found["text_area"]["missed_by"] == 0 and found["text_area"]["is_shown"] == is_shown
        assert found["geometry"]["recall_low"] == 0 and not found["geometry"]["is_shown"]
