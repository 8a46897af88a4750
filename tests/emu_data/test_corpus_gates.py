"""Near-twins once, exactly N, with quotas, and the same in any order of the rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emu_data.corpus_gates import CorpusPolicy, concept_entropy, decide_corpus, final_ledger, share_out
from emu_data.ledger import gate_sql, ledger_columns, open_ledger, read_ledger, read_marks, write_ledger
from tests.shards import draw_looks


def make_ledger(num: int, seed: int = 0, num_concepts: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "key": [f"{i:09d}" for i in range(num)],
            "shard": [f"{i // 20:05d}" for i in range(num)],
            "status": "success",
            "error": pd.NA,
            "sha256": [f"{i:064d}" for i in range(num)],
            "stored_sha256": [f"{i:064d}" for i in range(num)],
            "looks": draw_looks(num, seed),
            "min_side": 128,
            "alignment_rank": rng.uniform(0.5, 1, num).round(3),
            "num_bytes": rng.integers(1000, 9000, num),
            "likes": rng.integers(0, 50, num),
            "concept": [f"concept {i}" for i in np.sort(rng.integers(0, num_concepts, num))],
            "kept": True,
            "first_failed_gate": "",
        }
    )
    text = ["key", "shard", "status", "error", "sha256", "stored_sha256", "concept", "first_failed_gate"]
    return frame.astype(dict.fromkeys(text, "string"))


def finish(folder: Path, ledger: pd.DataFrame, policy: CorpusPolicy, num_threads: int = 2) -> pd.DataFrame:
    """Return the ledger after the gates on the whole corpus, written to disk and read again."""
    write_ledger(folder / "in", ledger)
    final_ledger(folder / "in", folder / "out", policy, num_threads)
    return read_ledger(folder / "out")


def drop(ledger: pd.DataFrame, rows: list[int], gate: str) -> None:
    ledger.loc[rows, "kept"] = False
    ledger.loc[rows, "first_failed_gate"] = gate


def test_the_best_of_a_cluster_stays(tmp_path: Path) -> None:
    ledger = make_ledger(9)
    ledger.loc[[1, 4, 6], "looks"] = str(ledger.loc[1, "looks"])
    ledger.loc[6, "alignment_rank"] = 2.0  # better aligned, but
    ledger.loc[4, "min_side"] = 256  # larger
    ledger.loc[[2, 8], "sha256"] = "same bytes"
    ledger.loc[[2, 8], "alignment_rank"] = 0.7
    ledger.loc[[2, 8], "num_bytes"] = 5000  # a tie, so the smaller key
    result = finish(tmp_path / "a", ledger, CorpusPolicy()).set_index("key")
    twins = result.loc[~result["kept"], "duplicate_of"].to_dict()
    assert twins == {"000000001": "000000004", "000000006": "000000004", "000000008": "000000002"}
    assert set(result.loc[~result["kept"], "first_failed_gate"]) == {"duplicate"}
    assert result["cluster"].dropna().to_dict() == {
        **dict.fromkeys(["000000001", "000000004", "000000006"], "000000001"),
        **dict.fromkeys(["000000002", "000000008"], "000000002"),
    }
    by_rank = finish(tmp_path / "b", ledger, CorpusPolicy(keep_best_by=("alignment_rank",)))
    assert by_rank.set_index("key").loc["000000004", "duplicate_of"] == "000000006"
    with pytest.raises(ValueError, match="no column beauty"):
        finish(tmp_path / "c", ledger, CorpusPolicy(keep_best_by=("beauty",)))


def test_a_ledger_keeps_the_marks_of_the_shards_that_it_was_measured_on(tmp_path: Path) -> None:
    for shard, rows in make_ledger(25).groupby("shard"):
        write_ledger(tmp_path / "in", rows, {"emu.shard": f"digest of {shard}"})
    final_ledger(tmp_path / "in", tmp_path / "out", CorpusPolicy())
    marks = [read_marks(file) for file in sorted((tmp_path / "out").glob("*.parquet"))]
    assert marks == [{"emu.shard": "digest of 00000"}, {"emu.shard": "digest of 00001"}]


def test_dropped_rows_belong_to_a_cluster_but_take_no_part(tmp_path: Path) -> None:
    ledger = make_ledger(4)
    ledger["looks"] = str(ledger.loc[0, "looks"])
    drop(ledger, [0, 1], "safety")
    result = finish(tmp_path, ledger, CorpusPolicy())
    assert list(result["first_failed_gate"]).count("safety") == 2
    assert result["kept"].sum() == 1 and not result["kept"][:2].any()
    assert set(result["cluster"]) == {"000000000"}


@given(
    num=st.integers(1, 60),
    twins=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=12),
    share=st.floats(0.1, 1),
    seed=st.integers(0, 3),
    order_by=st.sampled_from([None, "likes"]),
)
@settings(max_examples=10, deadline=None)
def test_exactly_n_twins_once_and_the_same_bytes_in_any_order(
    tmp_path_factory, num, twins, share, seed, order_by
) -> None:
    ledger = make_ledger(num, seed)
    for one, other in twins:
        ledger.loc[other % num, "looks"] = str(ledger.loc[one % num, "looks"])
    folder = tmp_path_factory.mktemp("order")
    unique = finish(folder / "all", ledger, CorpusPolicy())
    assert unique.loc[unique["kept"], "cluster"].dropna().is_unique
    dropped = unique[~unique["kept"]].merge(unique, left_on="duplicate_of", right_on="key", suffixes=("", "_kept"))
    assert dropped["kept_kept"].all() and (dropped["cluster"] == dropped["cluster_kept"]).all()
    num_images = max(1, int(share * unique["kept"].sum()))
    policy = CorpusPolicy(num_images=num_images, seed=seed, order_by=order_by)
    first = finish(folder / "first", ledger, policy, num_threads=1)
    assert first["kept"].sum() == num_images and len(first) == num
    shuffled = ledger.sample(frac=1, random_state=seed)
    finish(folder / "second", shuffled, policy, num_threads=3)
    files = sorted(file.name for file in (folder / "first" / "out").iterdir())
    assert files == sorted(file.name for file in (folder / "second" / "out").iterdir())
    for file in files:
        assert (folder / "first" / "out" / file).read_bytes() == (folder / "second" / "out" / file).read_bytes()
    if order_by:  # of one concept, none that was left out has more likes than one that was chosen
        for _, some in first[first["first_failed_gate"].isin(["", "quota"])].groupby("concept"):
            taken, left = some.loc[some["kept"], "likes"], some.loc[~some["kept"], "likes"]
            assert not len(taken) or not len(left) or taken.min() >= left.max()


def test_what_is_too_small_to_be_curated_says_so_and_its_twin_stays_a_twin(tmp_path: Path) -> None:
    """Also when the quota counts: it is filled from the large ones alone."""
    ledger = make_ledger(40).assign(min_side=[100, 600] * 20)
    ledger.loc[0, "looks"] = str(ledger.loc[1, "looks"])  # the smaller of two twins
    result = finish(tmp_path / "all", ledger, CorpusPolicy(min_side=512)).set_index("key")
    first = ledger.loc[0, "key"]
    assert result.query("key == @first")["first_failed_gate"].tolist() == ["duplicate"]
    assert set(result.drop(first).query("min_side < 512")["first_failed_gate"]) == {"size"}
    assert result["kept"].sum() == 20 and (result.loc[result["kept"], "min_side"] >= 512).all()
    few = finish(tmp_path / "few", ledger, CorpusPolicy(min_side=512, num_images=12))
    assert few["first_failed_gate"].value_counts().to_dict() == {"size": 19, "": 12, "quota": 8, "duplicate": 1}
    with pytest.raises(ValueError, match="between 0 and 20 are possible"):
        finish(tmp_path / "many", ledger, CorpusPolicy(min_side=512, num_images=25))


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    num_images=st.integers(1, 60),
    shares=st.tuples(st.floats(0, 0.4), st.floats(0.2, 1)),
)
@settings(max_examples=200, deadline=None)
def test_quotas_add_up_and_are_respected(counts, num_images, shares) -> None:
    low, high = shares
    assume(low <= high)
    named = {f"concept {i}": n for i, n in enumerate(counts)}
    try:
        quotas = share_out(named, num_images, low, high)
    except ValueError as error:
        assert "are possible" in str(error)
        return
    assert sum(quotas.values()) == num_images
    assert quotas == share_out(dict(reversed(named.items())), num_images, low, high)
    for name, count in named.items():
        most = min(count, np.floor(high * num_images + 1e-9))
        assert min(most, np.ceil(low * num_images - 1e-9)) <= quotas[name] <= most


def test_shares_follow_the_corpus_if_quotas_allow_it(tmp_path: Path) -> None:
    ledger = make_ledger(100).assign(concept=["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    for high, expected in ((1.0, {"a": 30, "b": 15, "c": 5}), (0.4, {"a": 20, "b": 20, "c": 10})):
        policy = CorpusPolicy(num_images=50, max_share=high)
        result = finish(tmp_path / str(high), ledger, policy)
        assert result.loc[result["kept"], "concept"].value_counts().to_dict() == expected
        assert concept_entropy(expected) >= concept_entropy({"a": 60, "b": 30, "c": 10}) - 0.01


def test_a_number_that_cannot_be_reached_is_an_error_with_numbers() -> None:
    with pytest.raises(ValueError, match="between 0 and 5 are possible"):
        share_out({"a": 9, "b": 1}, 8, 0.0, 0.5)
    with pytest.raises(ValueError, match="cannot take 11 of 10"):
        share_out({"a": 9, "b": 1}, 11, 0.0, 1.0)


def test_seed_changes_the_choice_only(tmp_path: Path) -> None:
    ledger = make_ledger(60)
    chosen = [
        set(frame.loc[frame["kept"], "key"])
        for n, seed in enumerate((0, 0, 1))
        for frame in [finish(tmp_path / str(n), ledger, CorpusPolicy(num_images=20, seed=seed))]
    ]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[2]) == 20


def test_the_final_ledger_has_all_rows_with_their_reason_and_can_be_decided_again(tmp_path: Path) -> None:
    ledger = make_ledger(30)
    ledger.loc[5, "looks"] = str(ledger.loc[6, "looks"])
    drop(ledger, [0, 1, 2], "alignment")
    ledger.loc[:2, "alignment_rank"] = 0.1
    policy = CorpusPolicy(num_images=20, max_share=0.6)
    final = finish(tmp_path, ledger, policy)
    counts = final["first_failed_gate"].value_counts().to_dict()
    assert counts == {"": 20, "alignment": 3, "duplicate": 1, "quota": 6}
    assert finish(tmp_path / "all", ledger, CorpusPolicy())["kept"].sum() == 26
    # From the finished ledger, which stores the clusters: the same result, and other thresholds give other rows.
    with open_ledger(tmp_path / "out") as con:
        columns = ledger_columns(con)
        same = decide_corpus(con, gate_sql({"min_alignment_rank": 0.5}, columns), policy)
        assert same.counts == counts | {"size": 0}
        assert sum(same.concepts_before.values()) == 27 and sum(same.concepts_after.values()) == 20
        loose = decide_corpus(con, gate_sql({}, columns), policy)
        assert loose.counts == {"": 20, "duplicate": 1, "size": 0, "quota": 9}


@pytest.mark.parametrize("wrong", [{"min_similarity": 1.5}, {"min_share": 0.5, "max_share": 0.2}])
def test_impossible_policies_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        CorpusPolicy(**wrong)


def test_concept_entropy() -> None:
    assert concept_entropy(dict.fromkeys("abcd", 3)) == pytest.approx(2)
    assert concept_entropy({"a": 4, "b": 0}) == 0
