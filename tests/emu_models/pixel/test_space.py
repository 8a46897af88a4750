"""Pixels in the place of latents: nothing is lost, and caches of two sizes are kept apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emu_models.pixel.scaling import enlarge, shrink
from emu_models.pixel.space import PixelSpace
from emu_models.training.cache import encode_moments, hash_weights
from emu_models.training.row_file import open_rows
from emu_models.training.rows import PictureRows
from tests.shards import write_toy_shards


def pictures(num: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_pixels_pass_unchanged_and_without_noise():
    space, x = PixelSpace(), pictures(2, 8, 12)
    moments = space.encode(x)
    assert torch.equal(space.decode(space.normalise(moments.mean)), x)
    assert torch.allclose(moments.at(torch.randn(x.shape)), x, atol=1e-5)
    assert torch.equal(space.decode(3 * x), 3 * x)  # nothing is clamped


@given(factor=st.integers(1, 5), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_a_small_picture_has_the_mean_colour_of_the_large_one(factor, rows, columns):
    x = pictures(2, factor * rows, factor * columns)
    z = PixelSpace(factor).encode(x).mean
    assert z.shape == (2, 3, rows, columns)
    assert torch.allclose(z.mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    assert PixelSpace(factor).decode(z).shape == x.shape


def test_a_plain_area_stays_plain_when_it_is_enlarged():
    x = torch.tensor([-1.0, 0.25, 1.0])[None, :, None, None].expand(1, 3, 4, 4)
    assert torch.allclose(enlarge(x, 4), x[..., :1, :1].expand(1, 3, 16, 16), atol=1e-6)
    assert torch.allclose(shrink(enlarge(x, 4), 4), x, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        PixelSpace(4).encode(pictures(1, 8, 10))
    with pytest.raises(ValueError, match="1 or more"):
        PixelSpace(0)


def test_a_cache_holds_the_pixels_of_each_size(tmp_path):
    """The small pictures in a cache are the large ones scaled down, up to the half precision of the cache."""
    shards, table = write_toy_shards(tmp_path, 12)
    rows = PictureRows(shards, open_rows(shards, table, tmp_path / "cache"), [(32, 32)], 4)
    large, small = (encode_moments(PixelSpace(factor), rows, tmp_path / "moments") for factor in (1, 4))
    assert hash_weights(PixelSpace(1)) != hash_weights(PixelSpace(4))
    index = torch.arange(12)
    pixels, means = large.select(index).mean, small.select(index).mean
    assert pixels.shape == (12, 3, 32, 32) and means.shape == (12, 3, 8, 8)
    assert (means - shrink(pixels, 4)).abs().max() < 2e-3
    levels = (pixels + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 0.1  # a level of 8 bits is still found
