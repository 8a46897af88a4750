from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from emu_data.votes.intervals import bootstrap_mean
from emu_models.evaluation.features import inception_features
from emu_models.evaluation.reconstruction import (
    Features,
    compare_reconstructions,
    frechet_distance,
    frechet_interval,
    measure_each,
    measure_reconstruction,
)

MEANS = Features("mean colour of quarters", lambda images: images[:, ::16, ::16].reshape(len(images), -1) / 255.0)


@pytest.fixture
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 4, 4, 3))
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)


def disturb(pictures: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, pictures.shape)
    return np.clip(np.round(pictures + noise), 0, 255).astype(np.uint8)


def test_a_perfect_reconstruction(pictures: np.ndarray):
    found = measure_reconstruction(pictures, pictures, MEANS)
    assert found.ssim.estimate == pytest.approx(1, abs=1e-4)
    assert found.psnr.estimate == pytest.approx(58.92, abs=0.01)
    assert found.frechet.estimate == pytest.approx(0, abs=1e-9)
    assert found.frechet_features == "mean colour of quarters" and found.num_images == 12


def test_more_damage_is_worse_on_every_measure(pictures: np.ndarray):
    mild, strong = (measure_reconstruction(pictures, disturb(pictures, sigma), MEANS) for sigma in (5, 40))
    assert mild.ssim.estimate > strong.ssim.estimate and mild.psnr.estimate > strong.psnr.estimate
    assert mild.frechet.estimate < strong.frechet.estimate
    for interval in (mild.ssim, mild.psnr, mild.frechet):
        assert interval.low < interval.estimate < interval.high


def test_psnr_by_hand(pictures: np.ndarray):
    grey = np.full((3, 32, 32, 3), 100, np.uint8)
    _, psnr = measure_each(grey, grey + 10)
    assert psnr == pytest.approx([20 * np.log10(255 / 10)] * 3)


def test_frechet_distance_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    second = rng.normal(0.5, 2, size=(150, 6))
    root = np.real(linalg.sqrtm(np.cov(first.T) @ np.cov(second.T)))
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(np.cov(first.T) + np.cov(second.T) - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(second, first) == pytest.approx(expected)


def test_frechet_distance_with_fewer_pictures_than_features():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(5, 40))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few + 1) == pytest.approx(40)
    interval = frechet_interval(few, few + rng.normal(size=few.shape), rng)
    assert 0 <= interval.low < interval.estimate < interval.high


def test_arrays_that_do_not_fit_are_refused(pictures: np.ndarray):
    with pytest.raises(ValueError, match="one shape"):
        measure_reconstruction(pictures, pictures[:, :16], MEANS)
    with pytest.raises(ValueError, match="at least 2"):
        measure_reconstruction(pictures[:1], pictures[:1], MEANS)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean(np.array([1.0, np.inf]), np.random.default_rng(0))


def test_paired_differences_are_narrower_than_two_separate_means(pictures: np.ndarray):
    mild, strong = disturb(pictures, 10), disturb(pictures, 14)
    found = compare_reconstructions(pictures, strong, mild, MEANS)
    for difference, measure in ((found.ssim, 0), (found.psnr, 1)):
        before, after = (measure_each(pictures, rebuilt)[measure].mean() for rebuilt in (strong, mild))
        assert difference.estimate == pytest.approx(after - before)
        assert 0 < difference.low < difference.estimate < difference.high
    apart = [measure_reconstruction(pictures, rebuilt, MEANS).psnr for rebuilt in (strong, mild)]
    assert found.psnr.high - found.psnr.low < sum(interval.high - interval.low for interval in apart)
    assert found.frechet.estimate < 0
    back = compare_reconstructions(pictures, mild, strong, MEANS)
    assert back.psnr.estimate == pytest.approx(-found.psnr.estimate)


def test_a_model_does_not_differ_from_itself(pictures: np.ndarray):
    rebuilt = disturb(pictures, 10)
    found = compare_reconstructions(pictures, rebuilt, rebuilt, MEANS)
    for interval in (
        found.psnr,
        found.ssim,
        found.frechet,
    ):  # all differences are 0, so there is no spread for an interval
        assert interval.estimate == 0 and np.isnan([interval.low, interval.high]).all()


class Pooled(torch.nn.Module):
    """Stands in for the TorchScript export of Inception: uint8 pictures in, features out if requested."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        pooled = x.float().mean((2, 3))
        return pooled if return_features else pooled.sum(1)


def test_only_inception_is_called_fid(tmp_path: Path, pictures: np.ndarray):
    torch.jit.script(Pooled()).save(str(tmp_path / "inception.pt"))
    features = inception_features(tmp_path / "inception.pt")
    assert "(FID)" in features.name and "(FID)" not in MEANS.name
    assert np.allclose(features.extract(pictures), pictures.mean((1, 2)), atol=1e-3)
    with pytest.raises(ValueError, match="inception-2015-12-05.pt"):
        inception_features(tmp_path / "nothing.pt")
