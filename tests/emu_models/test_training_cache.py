"""Caches that cannot be stale and lose no work; buckets and orders that lose no row."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from emu_data.samples import Sample
from emu_data.shards import square, write_shard
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.text import encode_prompts, load_text_encoders
from emu_models.training import stored
from emu_models.training.buckets import Size, bucket_sizes, merge_buckets, nearest_buckets
from emu_models.training.cache import encode_captions, encode_moments, to_tensor
from emu_models.training.distributed import ALONE, World
from emu_models.training.order import BatchOrder
from emu_models.training.parts import Part
from emu_models.training.row_file import open_rows
from emu_models.training.rows import PictureRows, crop
from tests.shards import encode, write_toy_shards

SQUARE = [(32, 32)]


def open_pictures(folder: Path, buckets: list[Size] = SQUARE, batch_size: int = 4, **made: int) -> PictureRows:
    """Rows of toy shards that are written in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, table = write_toy_shards(folder, **{"num_images": 10, **made})
    return PictureRows(shards, open_rows(shards, table, folder / "cache"), buckets, batch_size)


@pytest.fixture
def rows(tmp_path: Path) -> PictureRows:
    return open_pictures(tmp_path / "given")


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(4, widths=(16, 32)).eval()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of pictures in each call of the encoder; shards have 4 rows."""
    sizes: list[int] = []
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: sizes.append(len(x)) or encode(self, x))
    monkeypatch.setattr(stored, "ROWS_PER_SHARD", 4)
    return sizes


def every(rows: PictureRows) -> torch.Tensor:
    return torch.arange(len(rows))


def test_moments_are_those_of_the_encoder_in_any_order(rows, autoencoder, encoded, tmp_path):
    cached = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE)
    pictures = np.concatenate(list(rows.read(np.arange(10), 10)))
    with torch.no_grad():
        direct = autoencoder.encode(to_tensor(pictures))
    index = torch.tensor([7, 0, 9, 7, 4])
    assert torch.allclose(cached.select(index).mean, direct.mean[index], atol=2e-3)
    assert torch.allclose(cached.select(index).logvar, direct.logvar[index], atol=2e-3)


def test_only_what_is_missing_is_encoded(rows, autoencoder, encoded, tmp_path):
    first = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE)
    assert encoded == [4, 4, 2]
    again = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE)
    assert sum(encoded) == 10
    assert torch.equal(first.select(every(rows)).mean, again.select(every(rows)).mean)
    one_more = open_pictures(tmp_path / "more", num_images=11)
    more = encode_moments(autoencoder, one_more, tmp_path / "cache", ALONE)
    assert encoded[3:] == [1]
    assert torch.equal(more.select(every(rows)).mean, first.select(every(rows)).mean)


def test_a_shard_that_was_deleted_is_made_again(rows, autoencoder, encoded, tmp_path):
    first = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE).select(every(rows)).mean
    stored._open_shard.cache_clear()
    next((tmp_path / "cache").rglob("*.safetensors")).unlink()
    again = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE).select(every(rows)).mean
    assert torch.equal(first, again) and len(encoded) == 4


def test_rows_that_are_encoded_whenever_they_are_read_are_the_same(rows, autoencoder, tmp_path):
    """But for the rounding of what is kept."""
    index = torch.tensor([7, 0, 9, 7, 4])
    live, kept = (encode_moments(autoencoder, rows, folder).select(index) for folder in (None, tmp_path / "cache"))
    assert torch.allclose(live.mean, kept.mean, atol=2e-3) and torch.allclose(live.logvar, kept.logvar, atol=2e-3)
    encoders = load_text_encoders()
    live, null = encode_captions(rows, encoders, 8, None)
    kept, kept_null = encode_captions(rows, encoders, 8, tmp_path / "captions")
    for mine, theirs in ((live.select(index), kept.select(index)), (null, kept_null)):
        assert torch.equal(mine.mask_BL, theirs.mask_BL)
        assert torch.allclose(mine.tokens_BLD.float(), theirs.tokens_BLD.float(), atol=2e-3)
        assert torch.allclose(mine.pooled_BD, theirs.pooled_BD, atol=1e-5)


def test_another_encoder_size_or_picture_never_gets_a_stale_value(rows, autoencoder, encoded, tmp_path):
    before = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE).select(every(rows)).mean
    with torch.no_grad():
        autoencoder.encoder[-1].bias.add_(1.0)  # type: ignore[union-attr]
    after = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE).select(every(rows)).mean
    assert torch.allclose(after, before + 1, atol=4e-3)
    larger = encode_moments(autoencoder, open_pictures(tmp_path / "larger", [(48, 32)]), tmp_path / "cache", ALONE)
    assert larger.select(every(rows)).mean.shape[-2:] == (4, 6)
    moved = open_pictures(tmp_path / "other", side=40)  # the same keys with other pictures
    assert list(moved.keys) == list(rows.keys)
    assert not torch.equal(
        encode_moments(autoencoder, moved, tmp_path / "cache", ALONE).select(every(rows)).mean, after
    )


def test_an_interrupted_build_continues_at_the_shard(rows, autoencoder, encoded, monkeypatch, tmp_path):
    encode, calls = Autoencoder.encode, []

    def interrupted(self, x):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, x)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Autoencoder, "encode", interrupted)
        encode_moments(autoencoder, rows, tmp_path / "cut", ALONE)
    assert sum(encoded) == 8
    resumed = encode_moments(autoencoder, rows, tmp_path / "cut", ALONE).select(every(rows)).mean
    assert encoded == [4, 4, 2]
    assert torch.equal(resumed, encode_moments(autoencoder, rows, tmp_path / "whole", ALONE).select(every(rows)).mean)


class Beside(World):
    """One of several threads that take the part of processes."""

    barrier: threading.Barrier
    values: list[float]

    def mean(self, values):
        ((name, value),) = values.items()
        self.values[self.rank] = value
        self.barrier.wait()
        mean = sum(self.values) / self.size
        self.barrier.wait()
        return {name: mean}

    def wait(self):
        self.barrier.wait()


def test_several_processes_share_the_work(autoencoder, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(Beside, "barrier", threading.Barrier(3), raising=False)
    monkeypatch.setattr(Beside, "values", [0.0] * 3, raising=False)
    shards, table = write_toy_shards(tmp_path, num_images=10)

    def work(rank: int):
        world = Beside(rank, 3)
        rows = PictureRows(shards, open_rows(shards, table, tmp_path / "cache", world), SQUARE, 4, world)
        with torch.no_grad():
            return encode_moments(autoencoder, rows, tmp_path / "cache" / "moments", world).select(every(rows)).mean

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, range(3)))
    assert sorted(encoded) == [2, 4, 4]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_captions_are_encoded_once_each_and_the_empty_one_is_null(rows, encoded, tmp_path):
    encoders, captions = load_text_encoders(), list(rows.captions)
    assert len(set(captions)) == 4 < len(captions)
    text, null = encode_captions(rows, encoders, 8, tmp_path / "cache", ALONE)
    masks = [load_file(file)["mask"] for file in (tmp_path / "cache").rglob("*.safetensors")]
    assert sum(len(mask) for mask in masks) == 5
    found, direct = text.select(every(rows)), encode_prompts(captions, encoders, 8)
    assert torch.allclose(found.tokens_BLD.float(), direct.tokens_BLD, atol=2e-3)
    assert torch.equal(found.mask_BL, direct.mask_BL)
    assert torch.allclose(found.pooled_BD, direct.pooled_BD, atol=1e-5)
    assert (null.pooled_BD == 0).all() and len(null) == 1


def test_captions_are_kept_without_their_padding(rows, tmp_path):
    encode_captions(rows, load_text_encoders(), 64, tmp_path / "cache", ALONE)
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        kept = load_file(file)
        assert len(kept["values"]) == kept["mask"].sum() < 0.2 * kept["mask"].numel()


@given(resolution=st.sampled_from([256, 512, 1024]), num=st.integers(2, 21))
def test_buckets_have_the_area_of_the_square(resolution, num):
    sizes = bucket_sizes(resolution, 64, num)
    assert len(set(sizes)) == len(sizes) <= num
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert width * height == pytest.approx(resolution**2, rel=0.3)
        assert (height, width) in sizes
    assert bucket_sizes(100, 64, 1) == [(100, 100)]


@given(
    sizes=st.lists(st.tuples(st.integers(20, 400), st.integers(20, 400)), min_size=1, max_size=60),
    min_rows=st.integers(1, 12),
    seed=st.integers(0, 9),
)
@settings(deadline=None)
def test_every_row_is_in_one_bucket_that_fills_a_batch(sizes, min_rows, seed):
    buckets = bucket_sizes(512, 64, 9)
    counts = np.random.default_rng(seed).random(len(sizes)) < 0.9
    own_N, num_buckets = nearest_buckets(np.array(sizes), buckets), len(buckets)
    trained, every = (np.bincount(those, minlength=num_buckets) for those in (own_N[counts], own_N))
    bucket_N = merge_buckets(trained, every, buckets, min_rows)[own_N]
    present, inverse = np.unique(bucket_N, return_inverse=True)
    assert len(present) == 1 or np.bincount(inverse, weights=counts).min() >= min_rows


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_batches_are_of_one_bucket_and_a_pass_leaves_out_no_row(counts, batch_size, seed):
    bucket_N = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    order = BatchOrder(Part.of(bucket_N), batch_size, seed)
    again = BatchOrder(Part.of(bucket_N), batch_size, seed)
    for start in (0, order.batches_per_pass):
        steps = range(start, start + order.batches_per_pass)
        batches = [order.indices(step) for step in steps]
        assert all(len(np.unique(bucket_N[rows])) == 1 and len(rows) == batch_size for rows in batches)
        times = np.bincount(np.concatenate(batches), minlength=len(bucket_N))
        if len(counts) == 1:  # passes follow each other without a gap, see batch_indices
            continue
        assert times.min() >= 1
        for bucket, count in enumerate(
            counts
        ):  # no row occurs more than once more often than another one of its bucket
            of_bucket = times[bucket_N == bucket]
            assert of_bucket.max() - of_bucket.min() <= 1
            assert of_bucket.sum() == -(-count // batch_size) * batch_size
        # a single step, as after a resumption, is the same
        assert all(np.array_equal(again.indices(step), batches[step - start]) for step in reversed(steps))


def test_a_crop_keeps_the_middle_and_the_proportions():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    assert np.array_equal(crop(image, (32, 32)), square(image, 32))
    assert crop(image, (96, 32)).shape == (32, 96, 3)
    halves = np.zeros((60, 90, 3), np.uint8)
    halves[:, 45:] = 255
    wide = crop(Image.fromarray(halves), (48, 16))
    assert wide[:, :20].max() == 0 and wide[:, 28:].min() == 255


def test_rows_of_several_shapes_train_in_their_own(tmp_path, autoencoder):
    """Tall and wide pictures reach the encoder tall and wide."""
    keys = [f"{i:09d}" for i in range(12)]
    table = pd.DataFrame({"key": keys, "caption": "x", "status": "success", "width": 0, "height": 0})
    pictures = [encode(Image.new("RGB", (24, 48) if i % 2 else (48, 24), (20 * i, 0, 0))) for i in range(12)]
    write_shard(tmp_path / "shards", 0, [Sample(k, p, "x") for k, p in zip(keys, pictures, strict=True)], table)
    table[["key", "caption"]].to_parquet(tmp_path / "rows.parquet")
    file = open_rows(tmp_path / "shards", tmp_path / "rows.parquet", tmp_path / "cache")
    rows = PictureRows(tmp_path / "shards", file, [(16, 32), (32, 16)], 1)
    cached = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE)
    assert cached.select(torch.tensor([0, 2])).mean.shape[-2:] == (2, 4)
    assert cached.select(torch.tensor([1, 11])).mean.shape[-2:] == (4, 2)
    assert rows.rows_per_bucket() == {"16x32": 6, "32x16": 6}
    assert len(rows.trained) + len(rows.held_out) == 12 and len(rows.held_out) >= 4
