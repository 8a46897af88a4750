"""Orders of rows: every row once a pass, the same for any number of processes, found from any step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_models.training import order, parts
from emu_models.training.distributed import World
from emu_models.training.order import BatchOrder
from emu_models.training.parts import Part


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_PER_BLOCK", 16)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 4)


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 3),
    block=st.integers(1, 7),
    window=st.integers(1, 4),
)
@settings(deadline=None, max_examples=25)
def test_windows_use_every_row_once_a_pass(counts, batch_size, seed, block, window):
    bucket_N = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "ROWS_PER_BLOCK", block)
        patch.setattr(order, "WINDOW_BLOCKS", window)
        orders = [BatchOrder(Part.of(bucket_N), batch_size, seed, in_windows=True) for _ in range(2)]
        per_pass = orders[0].batches_per_pass
        batches = [orders[0].indices(step) for step in range(2 * per_pass)]
        # each step alone, as after a resumption
        for step in np.random.default_rng(0).permutation(2 * per_pass)[:10]:
            assert np.array_equal(orders[1].indices(int(step)), batches[step])
    for rows in batches:
        assert len(rows) == batch_size and len(np.unique(bucket_N[rows])) == 1
    for start in (0, per_pass):
        times = np.bincount(np.concatenate(batches[start : start + per_pass]), minlength=len(bucket_N))
        for bucket, count in enumerate(counts):
            of_bucket = times[bucket_N == bucket]
            assert of_bucket.min() >= 1 and of_bucket.max() - of_bucket.min() <= 1
            assert of_bucket.sum() == -(-count // batch_size) * batch_size


def test_windows_mix_evenly(small_blocks):
    """Over seeds, every row is as likely as another in each batch of a pass; passes and seeds have their own order."""
    num_rows, batch_size, num_seeds = 192, 8, 150
    places = np.zeros((num_rows, num_rows // batch_size), int)
    for seed in range(num_seeds):
        found = BatchOrder(Part.of(np.zeros(num_rows, int)), batch_size, seed, in_windows=True)
        for step in range(num_rows // batch_size):
            places[found.indices(step), step] += 1
    expected = num_seeds * batch_size / num_rows
    chi2 = ((places - expected) ** 2 / expected).sum()
    freedom = places.size - places.shape[0] - places.shape[1] + 1
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)
    first = [
        BatchOrder(Part.of(np.zeros(num_rows, int)), batch_size, s, True).indices(t) for s in (0, 1) for t in (0, 24)
    ]
    assert len({rows.tobytes() for rows in first}) == 4


def test_a_window_reads_few_blocks_and_each_process_its_own_part_of_them(small_blocks):
    """Four blocks of sixteen are a window; of two processes neither reads a block that the other has just read, but
    for those in the middle."""
    found = BatchOrder(Part.of(np.zeros(16 * 16, int)), 8, 0, in_windows=True)
    for window in range(4):
        batches = [found.indices(step) for step in range(8 * window, 8 * window + 8)]
        assert len(np.unique(np.concatenate(batches) // 16)) == 4
        halves = [np.concatenate([rows[World(rank, 2).share(8)[0]] for rows in batches]) for rank in (0, 1)]
        assert halves[0].mean() + 16 < halves[1].mean()
        assert len(np.intersect1d(halves[0] // 16, halves[1] // 16)) < 4


def test_small_corpora_keep_the_order_that_they_always_had():
    """Models that were trained before are made again bit by bit."""
    bucket_N = np.random.default_rng(3).integers(0, 3, 50)
    found = BatchOrder(Part.of(bucket_N), 4, 7)
    for number in (0, 1):
        rng = np.random.default_rng([7, number])
        rows = [np.flatnonzero(bucket_N == bucket) for bucket in range(3)]
        batches = [np.resize(rng.permutation(those), (-(-len(those) // 4), 4)) for those in rows]
        for place, batch in enumerate(rng.permutation(np.concatenate(batches))):
            assert np.array_equal(found.indices(number * found.batches_per_pass + place), batch)
    alone = BatchOrder(Part.of(np.zeros(10, int)), 4, 7)
    expected = np.concatenate([np.random.default_rng([7, number]).permutation(10) for number in (0, 1)])
    assert np.array_equal(np.concatenate([alone.indices(step) for step in range(5)]), expected)


@pytest.mark.parametrize("in_windows", [False, True])
def test_without_rows_the_error_says_what_to_do(in_windows):
    with pytest.raises(ValueError, match="there are no training rows; `emu funnel`"):
        BatchOrder(Part.of(np.zeros(0, int)), 4, 0, in_windows).indices(0)
