"""Kinds of pictures are told apart by their shades, whatever they show, and with an error that is measured."""

import numpy as np
import pytest

from emu_models.evaluation.kinds import learn_kind, shade_features


def draw(num: int, shaded: bool, seed: int) -> np.ndarray:
    """Return discs of random places and colours on white, flat or with a ramp of light over them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    found = []
    for _ in range(num):
        cx, cy, radius = rng.uniform(20, 44), rng.uniform(20, 44), rng.uniform(10, 20)
        light = 0.6 + 0.4 * (x - cx + radius) / (2 * radius) if shaded else np.ones_like(x)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        colour = rng.uniform(60, 230, 3)
        found.append(np.where(inside[..., None], light[..., None] * colour, 255.0))
    return np.stack(found).clip(0, 255).astype(np.uint8)


def test_shaded_and_flat_pictures_are_told_apart_on_captions_that_were_left_out():
    images, is_wanted = np.concatenate([draw(30, True, 0), draw(30, False, 1)]), np.arange(60) < 30
    found = learn_kind(images, is_wanted, [f"subject {i % 15}" for i in range(60)])
    assert found.num_tried == 60 and found.num_right >= 48
    assert found.is_wanted(draw(20, True, 2)).mean() >= 0.8 and found.is_wanted(draw(20, False, 3)).mean() <= 0.2


def test_what_does_not_differ_is_told_apart_about_as_often_as_by_guessing():
    images = draw(60, True, 0)
    found = learn_kind(images, np.random.default_rng(1).permutation(60) < 30, [f"subject {i}" for i in range(60)])
    assert 15 <= found.num_right <= 45


@pytest.mark.parametrize("side", [17, 64, 100])
def test_features_are_finite_shares_at_any_size_and_for_a_blank_picture(side):
    images = np.stack([np.full((side, side, 3), 255, np.uint8), np.zeros((side, side, 3), np.uint8)])
    features = shade_features(images)
    assert features.shape == (2, 53) and np.isfinite(features).all()
    assert np.allclose(features[:, :48].reshape(2, 6, 8).sum(-1), 1)


def test_one_kind_alone_cannot_be_learned():
    with pytest.raises(ValueError, match="have 0 captions and the others 4"):
        learn_kind(draw(4, True, 0), np.zeros(4, bool), list("abcd"))
