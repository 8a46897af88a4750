"""How well an autoencoder reconstructs pictures: SSIM, PSNR and a Fréchet distance (paper sec. 3.1, table 1).

The paper reports one number per model; here they have bootstrap intervals over images. PSNR is the mean of the images'
PSNRs (the paper does not say whether it averages PSNRs or errors). The Fréchet distance uses the given features and is
named after them: "FID" is only the one on Inception weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from emu_data.votes.intervals import Interval, bootstrap_mean, spread_interval

# A perfect picture has an infinite PSNR, and so would the mean. Errors below that of 8-bit rounding itself are not
# measurable: its variance is 1/12 of a squared step, 58.9 dB.
MIN_SQUARED_ERROR = (1 / 255) ** 2 / 12
BATCH_SIZE = 64  # pictures per call; chosen here


@dataclass(frozen=True)
class Features:
    """A feature extractor. name: printed beside the distance. extract: uint8 (N, H, W, 3) -> (N, D)."""

    name: str
    extract: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Reconstruction:
    """Quality of `num_images` reconstructions. ssim: -1..1. psnr: dB. frechet: squared units of the features called
    `frechet_features`.
    """

    num_images: int
    ssim: Interval
    psnr: Interval
    frechet: Interval
    frechet_features: str


def measure_reconstruction(
    images: np.ndarray, rebuilt: np.ndarray, features: Features, seed: int = 0
) -> Reconstruction:
    """Compare uint8 (N, H, W, 3) pictures with their reconstructions, N at least 2. Raises ValueError for other
    arrays.
    """
    if images.shape != rebuilt.shape or images.dtype != np.uint8 or rebuilt.dtype != np.uint8:
        raise ValueError(
            f"pictures {images.dtype} {images.shape} and reconstructions {rebuilt.dtype} {rebuilt.shape} "
            "must both be uint8 and of one shape"
        )
    if len(images) < 2:
        raise ValueError(f"{len(images)} pictures have no interval; give at least 2")
    rng = np.random.default_rng(seed)
    ssim, psnr = measure_each(images, rebuilt)
    return Reconstruction(
        num_images=len(images),
        ssim=bootstrap_mean(ssim, rng),
        psnr=bootstrap_mean(psnr, rng),
        frechet=frechet_interval(features.extract(images), features.extract(rebuilt), rng),
        frechet_features=features.name,
    )


@dataclass(frozen=True)
class Difference:
    """The second model minus the first, on the same pictures: 95 % intervals of the paired differences (ssim; psnr in
    dB; frechet in squared units of the features)."""

    ssim: Interval
    psnr: Interval
    frechet: Interval


def compare_reconstructions(
    images: np.ndarray, first: np.ndarray, second: np.ndarray, features: Features, seed: int = 0
) -> Difference:
    """Return how much better the reconstructions `second` of uint8 (N, H, W, 3) `images` are than `first`.

    Pictures differ far more in difficulty than models do in quality, so paired differences have much narrower intervals
    than the difference of the two means would.
    """
    rng = np.random.default_rng(seed)
    measured = [measure_each(images, rebuilt) for rebuilt in (first, second)]
    ssim, psnr = (after - before for before, after in zip(*measured, strict=True))
    real, *rebuilt = (features.extract(pictures) for pictures in (images, first, second))

    def frechet_change(chosen: np.ndarray) -> float:
        before, after = (frechet_distance(real[chosen], one[chosen]) for one in rebuilt)
        return after - before

    return Difference(
        bootstrap_mean(ssim, rng), bootstrap_mean(psnr, rng), spread_interval(frechet_change, len(images), rng)
    )


def measure_each(images: np.ndarray, rebuilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the SSIM (Wang et al. 2004, window 11, sigma 1.5) and PSNR in dB of each uint8 (N, H, W, 3) picture: two
    (N,) arrays.
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    ssim = []
    for start in range(0, len(images), BATCH_SIZE):
        given, target = (
            torch.from_numpy(part[start : start + BATCH_SIZE].copy()).permute(0, 3, 1, 2).float() / 255
            for part in (rebuilt, images)
        )
        each = structural_similarity_index_measure(given, target, data_range=1.0, reduction="none")
        assert isinstance(each, torch.Tensor)
        ssim.append(each.reshape(-1))
    error = (images.astype(np.float64) - rebuilt.astype(np.float64)) / 255
    squared = np.maximum((error**2).mean(axis=(1, 2, 3)), MIN_SQUARED_ERROR)
    return torch.cat(ssim).double().numpy(), -10 * np.log10(squared)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to (N, D) and (M, D) features (Heusel et al. 2017, eq.
    6).

    tr sqrt(A B) is the nuclear norm of sqrt(A) sqrt(B). With A = Xᵀ X and B = Yᵀ Y for centred, scaled X and Y, that is
    the nuclear norm of X Yᵀ, which needs no matrix root and also holds for fewer samples than dimensions.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    means = first.mean(0), second.mean(0)
    x = (first - means[0]) / np.sqrt(len(first) - 1)
    y = (second - means[1]) / np.sqrt(len(second) - 1)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    distance = ((means[0] - means[1]) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * cross
    return max(0.0, float(distance))


def frechet_interval(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator, num_resamples: int = 100
) -> Interval:
    """Return the Fréchet distance of paired (N, D) features with a 95 % interval over images.

    Resampled sets have fewer distinct images, which increases the distance, so their percentiles would not contain the
    estimate; their spread is used instead, and the lower end is at least 0.
    """
    interval = spread_interval(
        lambda chosen: frechet_distance(first[chosen], second[chosen]), len(first), rng, num_resamples
    )
    return Interval(interval.estimate, float(np.maximum(0.0, interval.low)), interval.high)  # NaN stays NaN
