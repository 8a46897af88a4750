"""Caches that cannot be stale and lose no work; buckets and orders that lose no row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.shards import square
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.text import encode_prompts, load_text_encoders
from emu_models.training import cache
from emu_models.training.buckets import assign_buckets, bucket_sizes
from emu_models.training.cache import encode_captions, encode_moments, to_tensor
from emu_models.training.distributed import ALONE, World
from emu_models.training.order import BatchOrder
from emu_models.training.rows import PictureRows, crop, list_rows
from tests.shards import write_toy_shards

SQUARE = [(32, 32)]


@pytest.fixture
def rows(tmp_path: Path) -> PictureRows:
    shards, table = write_toy_shards(tmp_path, num_images=10)
    return list_rows(shards, pd.read_parquet(table), SQUARE, 4)


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
    monkeypatch.setattr(cache, "ROWS_PER_SHARD", 4)
    return sizes


def every(rows: PictureRows) -> torch.Tensor:
    return torch.arange(len(rows.keys))


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
    changed = replace(rows, digests=["another picture", *rows.digests[1:]])
    encode_moments(autoencoder, changed, tmp_path / "cache", ALONE)
    assert encoded[3:] == [1]


def test_another_encoder_size_or_picture_never_gets_a_stale_value(rows, autoencoder, encoded, tmp_path):
    before = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE).select(every(rows)).mean
    with torch.no_grad():
        autoencoder.encoder[-1].bias.add_(1.0)  # type: ignore[union-attr]
    after = encode_moments(autoencoder, rows, tmp_path / "cache", ALONE).select(every(rows)).mean
    assert torch.allclose(after, before + 1, atol=4e-3)
    larger = encode_moments(autoencoder, replace(rows, bucket_sizes=[(48, 32)]), tmp_path / "cache", ALONE)
    assert larger.select(every(rows)).mean.shape[-2:] == (4, 6)
    # the same key with another picture
    other = tmp_path / "other"
    other.mkdir()
    shards, table = write_toy_shards(other, num_images=10, side=40)
    moved = list_rows(shards, pd.read_parquet(table), SQUARE, 4)
    assert moved.keys == rows.keys
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


def test_several_processes_share_the_encoding(rows, autoencoder, encoded, monkeypatch, tmp_path):
    """Each of three writes its shards; only together do they have all."""
    monkeypatch.setattr(World, "wait", lambda self: None)
    for rank in (0, 1):
        with pytest.raises(KeyError):
            encode_moments(autoencoder, rows, tmp_path / str(rank), World(rank, 3))
    assert encoded == [4, 4]


def test_captions_are_encoded_once_each_and_the_empty_one_is_null(encoded, tmp_path):
    encoders = load_text_encoders()
    captions = ["a red square", "a blue square", "a red square"]
    text, null = encode_captions(captions, encoders, 8, tmp_path, ALONE)
    (file,) = tmp_path.rglob("*.safetensors")
    assert cache._open_shard(file)["mask"].shape == (3, 8)  # two captions and the empty one
    found, direct = text.select(torch.arange(3)), encode_prompts(captions, encoders, 8)
    assert torch.allclose(found.tokens_BLD.float(), direct.tokens_BLD, atol=2e-3)
    assert torch.equal(found.mask_BL, direct.mask_BL)
    assert torch.allclose(found.pooled_BD, direct.pooled_BD, atol=1e-5)
    assert (null.pooled_BD == 0).all() and len(null) == 1


def test_a_missing_picture_is_named(rows, tmp_path):
    table = pd.DataFrame({"key": [*rows.keys, "000009999"], "caption": "x"})
    with pytest.raises(ValueError, match="1 keys have no readable sample.*000009999"):
        list_rows(rows.shards, table, SQUARE, 4)


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
    bucket_N = assign_buckets(np.array(sizes), buckets, counts, min_rows)
    assert len(bucket_N) == len(sizes)
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
    order = BatchOrder(bucket_N, batch_size, seed)
    again = BatchOrder(bucket_N, batch_size, seed)
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
    shards, table = write_toy_shards(tmp_path, num_images=12)
    rows = list_rows(shards, pd.read_parquet(table), [(16, 32), (32, 16)], 1)
    shapes = replace(rows, bucket_N=np.arange(12) % 2)
    cached = encode_moments(autoencoder, shapes, tmp_path / "cache", ALONE)
    assert cached.select(torch.tensor([0, 2])).mean.shape[-2:] == (4, 2)
    assert cached.select(torch.tensor([1, 11])).mean.shape[-2:] == (2, 4)
    assert shapes.rows_per_bucket() == {"16x32": 6, "32x16": 6}
