"""Precision and recall of the gates against known damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from emu_data.files import write_parquet
from emu_data.gate_quality import alignment_auc, gate_quality
from emu_data.ledger import open_ledger


def measure(folder: Path, ledger: pd.DataFrame, damage: pd.DataFrame) -> tuple[dict[Any, Any], float]:
    ledger = ledger.assign(key=[f"{i:03d}" for i in ledger.index])
    write_parquet(folder / "ledger" / "00000.parquet", ledger)
    write_parquet(folder / "damage.parquet", damage.assign(key=ledger["key"]))
    with open_ledger(folder / "ledger") as con:
        table = gate_quality(con, folder / "damage.parquet")
        auc = alignment_auc(con, folder / "damage.parquet") if "alignment_rank" in ledger else float("nan")
    return table.set_index("gate").to_dict("index"), auc


def test_a_gate_is_judged_on_what_reached_it(tmp_path: Path) -> None:
    gates = ["text_area", "text_area", "", "geometry", "", "duplicate", "", "alignment"]
    kinds = ["text", "", "text", "sliver", "duplicate", "", "duplicate", ""]
    ledger = pd.DataFrame({"first_failed_gate": gates, "duplicate_of": ["", "", "", "", "", "004", "", ""]})
    # the copy 004 was kept, its source dropped: as good. Of 006 the source fell at an earlier gate: no miss.
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


def test_auc_of_swapped_captions_is_scikit_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 9, 60) / 8  # with ties
    swapped = rng.random(60) < 0.3
    ledger = pd.DataFrame({"first_failed_gate": "", "duplicate_of": "", "alignment_rank": ranks})
    ledger.loc[5, "alignment_rank"] = np.nan
    damage = pd.DataFrame({"damage": np.where(swapped, "caption", ""), "duplicate_of": ""})
    known = ledger["alignment_rank"].notna()
    expected = roc_auc_score(swapped[known], -ranks[known])
    assert measure(tmp_path / "a", ledger, damage)[1] == pytest.approx(expected)
    assert np.isnan(measure(tmp_path / "b", ledger, damage.assign(damage=""))[1])
