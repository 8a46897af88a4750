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


def assign_buckets(sizes_N2: np.ndarray, buckets: list[Size], counts_N: np.ndarray, min_rows: int) -> np.ndarray:
    """Return the bucket of each picture, int64 (N,), such that every bucket has `min_rows` rows or is the only one.

    sizes_N2: width and height. counts_N: bool, whether a row counts towards min_rows (held-out rows do not). The
    smallest bucket is merged first.
    """
    aspects = np.log([width / height for width, height in buckets])
    own = np.log(sizes_N2[:, 0] / sizes_N2[:, 1])
    bucket_N = np.abs(own[:, None] - aspects).argmin(1)
    while True:
        present = np.unique(bucket_N)
        rows = np.array([(counts_N & (bucket_N == b)).sum() for b in present])
        if len(present) == 1 or rows.min() >= min_rows:
            return bucket_N
        smallest = present[rows.argmin()]
        others = present[present != smallest]
        bucket_N[bucket_N == smallest] = others[np.abs(aspects[others] - aspects[smallest]).argmin()]
