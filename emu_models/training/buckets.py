"""Aspect-ratio buckets: training uses pictures in about their own shape, one shape per batch (SDXL, arXiv 2307.01952,
sec. 2.3 and appendix I). The Emu paper does not say how it treats shapes.

Every picture is in exactly one bucket, that of the nearest ratio. A bucket with too few rows for a batch is merged with
its nearest neighbour, so nothing is dropped.
"""

import numpy as np

MAX_ASPECT = 2.0  # long side / short side of the longest bucket; chosen here (SDXL: 4)

Size = tuple[int, int]  # width, height in pixels


def bucket_sizes(resolution: int, multiple: int, num_buckets: int) -> list[Size]:
    """Return sizes of about resolution^2 pixels, with sides that are multiples of `multiple`, from tall to wide; a
    single bucket is square.

    The ratios are evenly spaced in their logarithm. Ratios that give the same size are merged, so there may be fewer
    sizes. Raises ValueError if a side would be 0.
    """
    if num_buckets == 1:
        return [(resolution, resolution)]
    ratios = np.exp(np.linspace(-np.log(MAX_ASPECT), np.log(MAX_ASPECT), num_buckets))
    found = {
        (round(resolution * r**0.5 / multiple) * multiple, round(resolution / r**0.5 / multiple) * multiple)
        for r in ratios.tolist()
    }
    if any(0 in size for size in found):
        raise ValueError(
            f"resolution {resolution} is too low for aspect buckets with sides that are multiples of {multiple} px: "
            "raise it, or set aspect_buckets to 1"
        )
    return sorted(found, key=lambda size: size[0] / size[1])


def nearest_buckets(sizes_N2: np.ndarray, buckets: list[Size]) -> np.ndarray:
    """Return the bucket whose ratio is nearest to each picture's, int64 (N,). sizes_N2: width and height, 1 px and
    more."""
    own = np.log(sizes_N2[:, 0] / sizes_N2[:, 1])
    return np.abs(own[:, None] - _aspects(buckets)).argmin(1)


def merge_buckets(trained_K: np.ndarray, every_K: np.ndarray, buckets: list[Size], min_rows: int) -> np.ndarray:
    """Return the bucket into which each one is merged, int64 (K,), such that every bucket with rows has `min_rows` rows
    to train on or is the only one. The smallest is merged first, with its nearest neighbour.

    trained_K, every_K: rows of each bucket that count, and all of them (held-out rows do not count). K may be larger
    than the number of buckets.
    """
    aspects, into_K = _aspects(buckets), np.arange(len(every_K))
    trained_K, every_K = trained_K.copy(), every_K.copy()
    while True:
        present = np.flatnonzero(every_K)
        if len(present) < 2 or trained_K[present].min() >= min_rows:
            return into_K
        smallest = present[trained_K[present].argmin()]
        others = present[present != smallest]
        target = others[np.abs(aspects[others] - aspects[smallest]).argmin()]
        into_K[into_K == smallest] = target
        for counts in (trained_K, every_K):
            counts[target] += counts[smallest]
            counts[smallest] = 0


def _aspects(buckets: list[Size]) -> np.ndarray:
    return np.log([width / height for width, height in buckets])
