"""Every row is kept or dropped for the first gate it failed, whatever the values are."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_data.ledger import (
    GATES,
    ROW_GATES,
    FilterPolicy,
    alignment_auc,
    check_conserved,
    decide,
    funnel,
    gate_quality,
    read_ledger,
    write_ledger,
)

GOOD = {
    "status": "success",
    "error": None,
    "min_side": 128,
    "aspect": 1.0,
    "num_words": 2,
    "num_characters": 9,
    "unsafe": 0.1,
    "text_area": 0.0,
    "alignment_rank": 0.99,
}
BAD = {
    "readable": {"error": "corrupt: no picture"},
    "geometry": {"aspect": 3.5},
    "caption": {"num_characters": 1},
    "safety": {"unsafe": 0.9},
    "text_area": {"text_area": 0.3},
    "alignment": {"alignment_rank": 0.1},
}


def make_values(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame([{**GOOD, "key": f"{i:09d}", "shard": f"{i // 3:05d}", **row} for i, row in enumerate(rows)])
    numbers = [name for name, value in GOOD.items() if isinstance(value, (int, float))]
    return frame.astype({"error": "string", "status": "string", **dict.fromkeys(numbers, "Float64")})


@given(st.lists(st.sets(st.sampled_from(ROW_GATES)), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_first_failed_gate_is_named_and_rows_are_conserved(failures: list[set[str]]) -> None:
    rows = [{k: v for gate in failed for k, v in BAD[gate].items()} for failed in failures]
    ledger = decide(make_values(rows), FilterPolicy())
    check_conserved(ledger, len(failures))
    for failed, found in zip(failures, ledger["first_failed_gate"], strict=True):
        assert found == next((gate for gate in ROW_GATES if gate in failed), "")
    counts = funnel(ledger)
    assert list(counts["gate"]) == list(GATES)
    assert counts["num_in"].iloc[0] == len(failures)
    assert counts["num_out"].iloc[-1] == ledger["kept"].sum()
    assert (counts["num_in"] - counts["num_dropped"] == counts["num_out"]).all()


def test_failed_download_is_not_readable() -> None:
    empty = dict.fromkeys(GOOD)
    ledger = decide(make_values([{}, {**empty, "status": "failed_to_download"}]), FilterPolicy())
    assert list(ledger["first_failed_gate"]) == ["", "readable"]


def test_limits_themselves_pass() -> None:
    policy = FilterPolicy()
    edge = {"min_side": policy.min_side, "aspect": policy.max_aspect, "text_area": policy.max_text_area}
    assert decide(make_values([edge, {"unsafe": None}]), policy)["kept"].all()


def test_gate_without_its_column_is_an_error_and_can_be_switched_off() -> None:
    values = make_values([{}]).drop(columns="alignment_rank")
    with pytest.raises(ValueError, match="alignment_rank"):
        decide(values, FilterPolicy())
    assert decide(values, FilterPolicy(min_alignment_rank=None))["kept"].all()


def test_tighter_policy_keeps_no_more() -> None:
    rng = np.random.default_rng(0)
    values = make_values([{"text_area": area, "alignment_rank": rank} for area, rank in rng.uniform(0, 1, (200, 2))])
    kept = []
    for max_text_area, min_alignment_rank in ((0.9, 0.1), (0.5, 0.1), (0.5, 0.6)):
        policy = FilterPolicy(max_text_area=max_text_area, min_alignment_rank=min_alignment_rank)
        kept.append({*values["key"][decide(values, policy)["kept"]]})
    assert kept[0] > kept[1] > kept[2]


def test_lost_and_double_rows_are_noticed() -> None:
    ledger = decide(make_values([{}, {}]), FilterPolicy())
    for broken in (ledger.iloc[:1], pd.concat([ledger.iloc[:1]] * 2), ledger.assign(kept=False)):
        with pytest.raises(AssertionError):
            check_conserved(broken, 2)


def test_round_trip_by_shard(tmp_path) -> None:
    ledger = decide(make_values([BAD["safety"], {}, {}, {}, BAD["geometry"]]), FilterPolicy())
    write_ledger(tmp_path, ledger)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00000.parquet", "00001.parquet"]
    read = read_ledger(tmp_path)
    assert read["first_failed_gate"].tolist() == ledger["first_failed_gate"].tolist()
    with pytest.raises(ValueError, match="holds no ledger"):
        read_ledger(tmp_path / "none")


def test_quality_counts_what_reached_the_gate() -> None:
    ledger = decide(
        make_values([BAD["text_area"], BAD["text_area"], {}, {**BAD["geometry"], **BAD["text_area"]}, {}, {}]),
        FilterPolicy(),
    )
    ledger["duplicate_of"] = ["", "", "", "", "", ledger["key"][4]]
    ledger.loc[5, ["kept", "first_failed_gate"]] = [False, "duplicate"]
    kinds = ["text", "", "text", "sliver", "duplicate", ""]
    damage = pd.DataFrame({"key": ledger["key"], "damage": kinds})
    damage["duplicate_of"] = ["", "", "", "", ledger["key"][5], ""]  # the copy was kept, its source dropped: as good
    quality = gate_quality(ledger, damage).set_index("gate").to_dict("index")
    counts = {gate: tuple(row[c] for c in ("num_damaged", "num_dropped", "num_right")) for gate, row in quality.items()}
    assert counts["geometry"] == (1, 1, 1)
    assert counts["text_area"] == (2, 2, 1)
    assert counts["duplicate"] == (1, 1, 1)
    assert (quality["text_area"]["precision"], quality["text_area"]["recall"]) == (0.5, 0.5)
    assert np.isnan(quality["safety"]["precision"])


def test_auc_of_swapped_captions() -> None:
    values = make_values([{"alignment_rank": rank} for rank in (0.9, 0.8, 0.2, 0.85)])
    damage = pd.DataFrame({"key": values["key"], "damage": ["", "", "caption", "caption"]})
    assert alignment_auc(values, damage) == pytest.approx(0.75)
    assert np.isnan(alignment_auc(values, damage.assign(damage="")))
