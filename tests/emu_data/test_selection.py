"""Near-twins once, exactly N, under quotas, the same in any order of the rows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emu_data.selection import (
    SelectionPolicy,
    concept_entropy,
    drop_duplicates,
    final_ledger,
    near_duplicate_groups,
    select,
)


def make_ledger(num: int, seed: int = 0, num_concepts: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    hashes = [int.from_bytes(rng.bytes(8), "big") for _ in range(num)]
    return pd.DataFrame(
        {
            "key": [f"{i:09d}" for i in range(num)],
            "sha256": [f"{i:064d}" for i in range(num)],
            "stored_sha256": [f"{i:064d}" for i in range(num)],
            "phash": [f"{value:016x}" for value in hashes],
            "min_side": 128,
            "alignment_rank": rng.uniform(0.5, 1, num).round(3),
            "num_bytes": rng.integers(1000, 9000, num),
            "concept": [f"concept {i}" for i in np.sort(rng.integers(0, num_concepts, num))],
            "kept": True,
            "first_failed_gate": "",
        }
    )


def flip(phash: str, *bits: int) -> str:
    return f"{int(phash, 16) ^ sum(1 << bit for bit in bits):016x}"


def shuffle(ledger: pd.DataFrame, seed: int = 1) -> pd.DataFrame:
    return ledger.sample(frac=1, random_state=seed)


@given(st.sets(st.integers(0, 63), max_size=5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_twin_within_the_distance_is_found(bits: set[int], max_distance: int) -> None:
    ledger = make_ledger(20)
    ledger.loc[7, "phash"] = flip(str(ledger.loc[3, "phash"]), *bits)
    dropped = drop_duplicates(ledger, max_distance)
    assert (~dropped["kept"]).sum() == (len(bits) <= max_distance)


def test_the_best_of_a_cluster_stays() -> None:
    ledger = make_ledger(9)
    ledger.loc[[1, 4, 6], "phash"] = str(ledger.loc[1, "phash"])
    ledger.loc[6, "alignment_rank"] = 2.0  # better aligned, but
    ledger.loc[4, "min_side"] = 256  # larger
    ledger.loc[[2, 8], "sha256"] = "same bytes"
    ledger.loc[[2, 8], ["alignment_rank", "num_bytes"]] = [0.7, 5000]  # a tie, to the smaller key
    for rows in (ledger, shuffle(ledger)):
        result = drop_duplicates(rows, 3).set_index("key")
        twins = result.loc[~result["kept"], "duplicate_of"].to_dict()
        assert twins == {"000000001": "000000004", "000000006": "000000004", "000000008": "000000002"}
        assert set(result.loc[~result["kept"], "first_failed_gate"]) == {"duplicate"}


def test_chain_of_look_alikes_does_not_pull_down_unlike_pictures() -> None:
    ledger = make_ledger(3)
    first = str(ledger.loc[0, "phash"])
    ledger["phash"] = [first, flip(first, 0, 20, 40), flip(first, 0, 20, 40, 5, 25, 45)]
    ledger["alignment_rank"] = [0.9, 0.8, 0.7]
    assert list(drop_duplicates(ledger, 3)["kept"]) == [True, False, True]
    groups = near_duplicate_groups(ledger["sha256"], ledger["phash"])
    assert groups.nunique() == 1  # for folds the chain counts


def test_rows_without_a_digest_are_not_all_the_same() -> None:
    ledger = make_ledger(4).assign(sha256=pd.Series([pd.NA] * 4, dtype="string"))
    assert drop_duplicates(ledger, 3)["kept"].all()


def test_dropped_rows_take_no_part() -> None:
    ledger = make_ledger(4)
    ledger["phash"] = str(ledger.loc[0, "phash"])
    ledger.loc[:1, ["kept", "first_failed_gate"]] = [False, "safety"]
    result = drop_duplicates(ledger, 3)
    assert list(result["first_failed_gate"]).count("safety") == 2
    assert result["kept"].sum() == 1


@given(
    num=st.integers(1, 80),
    num_images=st.integers(1, 60),
    num_concepts=st.integers(1, 6),
    shares=st.tuples(st.floats(0, 0.4), st.floats(0.2, 1)),
    seed=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_exactly_n_under_quotas_in_any_order(num, num_images, num_concepts, shares, seed) -> None:
    low, high = shares
    assume(low <= high)
    ledger = make_ledger(num, seed, num_concepts)
    try:
        keys = select(ledger, num_images, low, high, seed)
    except ValueError as error:
        assert "are possible" in str(error)
        return
    assert len(keys) == len(set(keys)) == num_images
    assert keys == select(shuffle(ledger), num_images, low, high, seed)
    counts = ledger["concept"].value_counts()
    taken = ledger[ledger["key"].isin(keys)]["concept"].value_counts().reindex(counts.index, fill_value=0)
    assert (taken <= np.floor(high * num_images + 1e-9)).all()
    wanted = np.minimum(counts, np.ceil(low * num_images - 1e-9))
    assert (taken >= np.minimum(wanted, np.floor(high * num_images + 1e-9))).all()


def test_shares_follow_the_corpus_where_quotas_allow() -> None:
    ledger = make_ledger(100).assign(concept=["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    for high, expected in ((1.0, [30, 15, 5]), (0.4, [20, 20, 10])):
        keys = select(ledger, 50, 0.0, high, 0)
        taken = ledger[ledger["key"].isin(keys)]["concept"].value_counts()
        assert [taken["a"], taken["b"]] == expected[:2]
        assert (
            concept_entropy(ledger.loc[ledger["key"].isin(keys), "concept"])
            >= concept_entropy(ledger["concept"]) - 0.01
        )


def test_what_cannot_be_had_is_told_with_numbers() -> None:
    ledger = make_ledger(10).assign(concept=["a"] * 9 + ["b"])
    with pytest.raises(ValueError, match="between 0 and 5 are possible"):
        select(ledger, 8, 0.0, 0.5, 0)
    with pytest.raises(ValueError, match="cannot take 11 of 10"):
        select(ledger, 11, 0.0, 1.0, 0)


def test_seed_changes_the_choice_only() -> None:
    ledger = make_ledger(60)
    assert select(ledger, 20, 0, 1, 0) == select(ledger, 20, 0, 1, 0)
    assert select(ledger, 20, 0, 1, 0) != select(ledger, 20, 0, 1, 1)


def test_final_ledger_has_all_rows_with_their_reason() -> None:
    ledger = make_ledger(30)
    ledger.loc[5, "phash"] = str(ledger.loc[6, "phash"])
    ledger.loc[:2, ["kept", "first_failed_gate"]] = [False, "text_area"]
    final = final_ledger(ledger, SelectionPolicy(num_images=20, max_share=0.6))
    assert final["first_failed_gate"].value_counts().to_dict() == {"": 20, "text_area": 3, "duplicate": 1, "quota": 6}
    pd.testing.assert_frame_equal(final, final_ledger(shuffle(ledger), SelectionPolicy(num_images=20, max_share=0.6)))
    everything = final_ledger(ledger, SelectionPolicy())
    assert everything["kept"].sum() == 26


@pytest.mark.parametrize("wrong", [{"max_distance": 4}, {"min_share": 0.5, "max_share": 0.2}])
def test_impossible_policies_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        SelectionPolicy(**wrong)


def test_concept_entropy() -> None:
    assert concept_entropy(pd.Series(list("abcd"))) == pytest.approx(2)
    assert concept_entropy(pd.Series(list("aaaa"))) == 0
