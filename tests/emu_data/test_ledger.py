"""Every row is kept, or dropped for the first gate that it failed, whatever the values are."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_data.ledger import (
    GATES,
    LIMITS,
    ROW_GATES,
    RawRows,
    check_conserved,
    compare_with_raw,
    count_gates,
    decide,
    funnel,
    gate_sql,
    ledger_columns,
    open_ledger,
    read_ledger,
    write_ledger,
)
from emu_data.samples import STATUS_UNLISTED

GOOD = {
    "status": "success",
    "error": None,
    "min_side": 128,
    "aspect": 1.0,
    "detail": 0.4,
    "num_words": 2,
    "num_characters": 9,
    "unsafe": 0.1,
    "text_area": 0.0,
    "alignment_rank": 0.99,
    "aesthetics": 0.0,
    "popularity": 10.0,
}
BAD = {
    "readable": {"error": "corrupt: no picture"},
    "geometry": {"aspect": 3.5},
    "blank": {"detail": 0.002},
    "caption": {"num_characters": 1},
    "safety": {"unsafe": 0.9},
    "text_area": {"text_area": 0.3},
    "alignment": {"alignment_rank": 0.1},
    "aesthetics": {"aesthetics": -3.0},
    "popularity": {"popularity": 0.0},
}


def make_values(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame([{**GOOD, "key": f"{i:09d}", "shard": f"{i // 3:05d}", **row} for i, row in enumerate(rows)])
    numbers = [name for name, value in GOOD.items() if isinstance(value, (int, float))]
    return frame.astype({"error": "string", "status": "string", **dict.fromkeys(numbers, "Float64")})


POLICY: dict[str, float | None] = {
    "min_side": 64,
    "max_aspect": 3.0,
    "min_detail": 0.01,
    "min_words": 1,
    "min_characters": 3,
    "max_unsafe": 0.5,
    "max_text_area": 0.05,
    "min_alignment_rank": 0.5,
}


@given(st.lists(st.sets(st.sampled_from(ROW_GATES)), min_size=1, max_size=20))
@settings(max_examples=25, deadline=None)
def test_first_failed_gate_is_named_and_rows_are_conserved(failures: list[set[str]]) -> None:
    rows = [{k: v for gate in failed for k, v in BAD[gate].items()} for failed in failures]
    ledger = decide(make_values(rows), {**POLICY, "min_aesthetics": -1.0, "min_popularity": 1.0})
    check_conserved(ledger, len(failures))
    for failed, found in zip(failures, ledger["first_failed_gate"], strict=True):
        assert found == next((gate for gate in ROW_GATES if gate in failed), "")
    counts = funnel(Counter(ledger["first_failed_gate"]))
    assert list(counts["gate"]) == list(GATES)
    assert counts["num_in"].iloc[0] == len(failures)
    assert counts["num_out"].iloc[-1] == ledger["kept"].sum()
    assert (counts["num_in"] - counts["num_dropped"] == counts["num_out"]).all()


def test_a_failed_download_is_not_readable() -> None:
    empty = dict.fromkeys(GOOD)
    ledger = decide(make_values([{}, {**empty, "status": "failed_to_download"}]), POLICY)
    assert list(ledger["first_failed_gate"]) == ["", "readable"]


def test_values_at_the_limits_pass() -> None:
    edge = {limit.column: POLICY[limit.field] for limit in LIMITS if limit.field in POLICY}
    assert decide(make_values([edge, {"unsafe": None}]), POLICY)["kept"].all()


def test_gate_without_its_column_is_an_error_and_can_be_switched_off() -> None:
    values = make_values([{}]).drop(columns="alignment_rank")
    with pytest.raises(ValueError, match="alignment_rank"):
        decide(values, POLICY)
    assert decide(values, {**POLICY, "min_alignment_rank": None})["kept"].all()


def test_a_tighter_policy_keeps_no_more() -> None:
    rng = np.random.default_rng(0)
    values = make_values([{"text_area": area, "alignment_rank": rank} for area, rank in rng.uniform(0, 1, (200, 2))])
    kept = []
    for max_text_area, min_alignment_rank in ((0.9, 0.1), (0.5, 0.1), (0.5, 0.6)):
        policy = {**POLICY, "max_text_area": max_text_area, "min_alignment_rank": min_alignment_rank}
        kept.append({*values["key"][decide(values, policy)["kept"]]})
    assert kept[0] > kept[1] > kept[2]


def test_lost_and_double_rows_are_noticed(tmp_path) -> None:
    ledger = decide(make_values([{}, {}]), POLICY)
    check_conserved(ledger, 2)
    unknown = ledger.assign(kept=False, first_failed_gate="taste")
    for number, broken in enumerate(
        (ledger.iloc[:1], pd.concat([ledger.iloc[:1]] * 2), ledger.assign(kept=False), unknown)
    ):
        with pytest.raises(ValueError, match="does not hold every raw row exactly once"):
            check_conserved(broken, 2)
        write_ledger(tmp_path / str(number), broken)
        with pytest.raises(ValueError, match="does not hold every raw row exactly once"):
            check_conserved(tmp_path / str(number), 2)


def test_the_ledger_is_compared_with_the_raw_rows_and_not_with_itself(tmp_path) -> None:
    ledger = decide(make_values([{}, {}, {}]), POLICY)
    ledger.loc[2, "status"] = STATUS_UNLISTED
    write_ledger(tmp_path, ledger)
    raw = ledger[["key"]]
    assert compare_with_raw(tmp_path, [raw.iloc[:1], raw.iloc[1:2]]) == RawRows(2, 1)
    with pytest.raises(ValueError, match="1 of 3 raw rows are not in the ledger"):
        compare_with_raw(tmp_path, [raw.iloc[:2], pd.DataFrame({"key": ["lost"]})])
    with pytest.raises(ValueError, match="1 rows of the ledger match no raw row"):
        compare_with_raw(tmp_path, [raw.iloc[:1]])


@given(st.lists(st.sets(st.sampled_from(["text_area", "alignment", "safety"])), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_an_unmeasured_row_is_neither_kept_nor_dropped_by_a_gate(skipped: list[set[str]]) -> None:
    columns = {"text_area": "text_area", "alignment": "alignment_rank", "safety": "unsafe"}
    rows = [{**{columns[s]: None for s in some}, "unmeasured": ",".join(sorted(some))} for some in skipped]
    values = make_values(rows).astype({"unmeasured": "string"})
    for policy, asked in (
        (POLICY, {"text_area", "alignment", "safety"}),
        ({**POLICY, "max_text_area": None}, {"alignment", "safety"}),
    ):
        gates = decide(values, policy)["first_failed_gate"].tolist()
        assert gates == ["unmeasured" if some & asked else "" for some in skipped]
    small = decide(values.assign(min_side=1), POLICY)  # a gate that was measured decides
    assert set(small["first_failed_gate"]) == {"geometry"}


def test_every_limit_is_a_threshold_and_holds_on_both_sides() -> None:
    """For anything that is added to LIMITS: just beyond the threshold fails the limit's gate, at the threshold
    passes."""
    for limit in LIMITS:
        beyond = 0.25 if limit.is_minimum else 0.75
        values = pd.DataFrame({"status": "success", "error": pd.NA, limit.column: [0.5, beyond, np.nan]})
        values = values.astype({limit.column: "Float64", "error": "string"})
        assert decide(values, {limit.field: 0.5})["first_failed_gate"].tolist() == ["", limit.gate, ""]


def test_an_unknown_threshold_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no threshold min_sides; there are: min_side, max_aspect"):
        decide(make_values([{}]), {"min_sides": 64})


def test_the_corpus_on_disk_is_decided_like_a_group_in_memory(tmp_path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"text_area": a, "alignment_rank": r, "min_side": int(m)} for a, r, m in rng.uniform(0, [0.1, 1, 128], (90, 3))
    ]
    values = make_values([*rows, BAD["readable"], {"unsafe": None}])
    write_ledger(tmp_path, values)
    for policy in (POLICY, {**POLICY, "max_text_area": 0.01, "min_side": None}):
        expected = decide(values, policy)["first_failed_gate"].value_counts().to_dict()
        with open_ledger(tmp_path) as con:
            assert count_gates(con, gate_sql(policy, ledger_columns(con))) == expected


def test_round_trip_by_shard(tmp_path) -> None:
    ledger = decide(make_values([BAD["safety"], {}, {}, {}, BAD["geometry"]]), POLICY)
    write_ledger(tmp_path, ledger)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00000.parquet", "00001.parquet"]
    read = read_ledger(tmp_path)
    assert read["first_failed_gate"].tolist() == ledger["first_failed_gate"].tolist()
    with pytest.raises(ValueError, match="holds no ledger"):
        read_ledger(tmp_path / "none")
