"""The survey of a corpus counts what is in the ledger, whatever the order of the rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_data.cascade import StopRule
from emu_data.ledger import decide, open_ledger, write_ledger
from emu_data.survey import (
    MIN_CONTROL,
    compare_families,
    draw_to_label,
    measure_effects,
    measure_precision,
    read_labels,
    uneven,
)

POLICY = {"min_side": 64, "max_aspect": 2.0, "min_alignment_rank": 0.5}


def make_ledger(folder: Path, num: int = 300, seed: int = 0, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = pd.DataFrame(
        {
            "key": [f"{i:09d}" for i in range(num)],
            "shard": "00000",
            "status": "success",
            "error": pd.NA,
            "error_message": pd.NA,
            "caption": "a thing",
            "min_side": rng.integers(10, 2000, num),
            "aspect": rng.uniform(1, 4, num),
            "alignment_rank": rng.uniform(0, 1, num),
            "concept": rng.choice(["fish", "house", "tree"], num),
            **columns,
        }
    ).astype({"error": "string", "error_message": "string", "status": "string", "key": "string", "shard": "string"})
    ledger = decide(values, POLICY)
    write_ledger(folder, ledger)
    return ledger


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_an_effect_is_what_the_threshold_alone_would_drop(tmp_path: Path, share: float) -> None:
    ledger = make_ledger(tmp_path)
    with open_ledger(tmp_path) as con:
        effects = {one.field: one for one in measure_effects(con, POLICY, share, 5)}
    control = [StopRule(control_share=share).is_control(key) for key in ledger["key"]]
    rows = ledger[control] if sum(control) >= MIN_CONTROL else ledger
    assert set(effects) == set(POLICY) and all(one.is_control == (share > 0) for one in effects.values())
    for one in effects.values():
        assert one.threshold is not None
        values = rows[one.column]
        beyond = values < one.threshold if one.is_minimum else values > one.threshold
        assert one.beyond.estimate == pytest.approx(100 * beyond.mean())
        assert one.beyond.low < one.beyond.estimate < one.beyond.high
        assert sum(one.counts) == one.num_rows == len(rows)
        away = (ledger.set_index("key")[one.column] - one.threshold).abs()
        is_dropped = ledger.set_index("key")[one.column].lt(one.threshold) == one.is_minimum
        assert away[one.dropped].tolist() == sorted(away[is_dropped])[:5]
        assert away[one.kept].tolist() == sorted(away[~is_dropped])[:5]


def test_what_was_not_measured_is_not_counted(tmp_path: Path) -> None:
    ranks = pd.array([None if i % 3 else 0.2 for i in range(300)], "Float64")
    make_ledger(tmp_path, alignment_rank=ranks)
    with open_ledger(tmp_path) as con:
        found = {one.field: one for one in measure_effects(con, POLICY, 0.0, 5)}["min_alignment_rank"]
    assert (found.num_measured, found.num_readable, found.beyond.estimate) == (100, 300, 100.0)


def test_a_family_that_loses_more_is_named(tmp_path: Path) -> None:
    concept = np.array(["fish"] * 60 + ["house"] * 240)
    ranks = np.where(concept == "fish", 0.1, 0.9)
    make_ledger(tmp_path, concept=concept, alignment_rank=ranks, min_side=512, aspect=1.0)
    with open_ledger(tmp_path) as con:
        families = compare_families(con)
    (named,) = uneven(families)
    assert (named.kind, named.name, named.gate, named.num_rows) == ("subject", "fish", "alignment", 60)
    assert named.lost.estimate == 100 and named.overall == pytest.approx(20)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100))
def test_labels_are_drawn_from_what_was_dropped_and_counted_only_on_it(tmp_path_factory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    ledger = make_ledger(folder, seed=seed).set_index("key")
    with open_ledger(folder) as con:
        drawn = draw_to_label(con, 7)
        assert (ledger.loc[drawn["key"], "first_failed_gate"].to_numpy() == drawn["gate"].to_numpy()).all()
        assert drawn.groupby("gate").size().max() <= 7
        labels = {(str(row.key), str(row.gate)): place % 2 == 0 for place, row in enumerate(drawn.itertuples())}
        kept = ledger.index[ledger["kept"]][0]
        found = measure_precision(con, {**labels, (kept, "geometry"): True, ("nobody", "geometry"): False})
    assert sum(one.num_labels for one in found) == len(labels)


def test_labels_are_read_as_spreadsheets_write_them_and_a_wrong_one_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text('\ufeffkey,gate,right\r\n"a,b",geometry,Y\r\nc,safety,\r\nd,safety,no\r\n', encoding="utf-8")
    assert read_labels(file) == {("a,b", "geometry"): True, ("d", "safety"): False}
    file.write_text("key,gate,right\na,geometry,y\nb,geometry,perhaps\n")
    with pytest.raises(ValueError, match="line 3: `right` is 'perhaps'; write y or n"):
        read_labels(file)
    file.write_text("key;gate;right\n")
    with pytest.raises(ValueError, match="has no column key, gate, right"):
        read_labels(file)
