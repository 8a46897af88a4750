"""Whether the model copies: the nearest training picture of each generated one (the paper does not examine this).

480 passes over 2 000 pictures can end in copies. There are two measures, since each misses something: the cosine of
embeddings (of any model; it misses what the embedding does not represent) and the distance of pixels (it misses shifted
copies). What counts as near is judged by the distances among the training pictures themselves (`nearest_among`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

PIXEL_SIZE = 32  # px at which pixels are compared, so that small shifts and outlines weigh less; chosen here
NEAR_QUANTILE = 0.05  # of the distances among training pictures, below which a picture is suspected; chosen here


def find_nearest(
    generated: np.ndarray,
    training: np.ndarray,
    training_keys: Sequence[str],
    generated_images: np.ndarray,
    training_images: np.ndarray,
) -> pd.DataFrame:
    """Find the nearest training picture of each generated one, by embedding and by pixels.

    generated: (M, D), training: (N, D) embeddings. training_keys: N. The images: uint8 (M or N, H, W, 3).
    Returns M rows: nearest_key, similarity (cosine, -1..1), nearest_pixel_key, pixel_distance (root mean
    square over 32 x 32 pixels and channels, 0..1). Raises ValueError if there are no training pictures, or counts
    differ.
    """
    num_training = len(training)
    if not num_training or not num_training == len(training_keys) == len(training_images):
        raise ValueError(
            f"{num_training} embeddings, {len(training_keys)} keys and {len(training_images)} training pictures: the "
            "numbers must be equal, and at least 1"
        )
    if len(generated) != len(generated_images):
        raise ValueError(
            f"{len(generated)} embeddings and {len(generated_images)} generated pictures: the numbers must be equal"
        )
    keys = np.asarray(training_keys, dtype=object)
    similarity = _unit(generated) @ _unit(training).T
    distance = _pixel_distances(_shrink(generated_images), _shrink(training_images))
    rows = np.arange(len(generated))
    by_embedding, by_pixel = similarity.argmax(1), distance.argmin(1)
    return pd.DataFrame(
        {
            "nearest_key": keys[by_embedding],
            "similarity": similarity[rows, by_embedding],
            "nearest_pixel_key": keys[by_pixel],
            "pixel_distance": distance[rows, by_pixel],
        }
    )


def nearest_among(training: np.ndarray, training_images: np.ndarray) -> pd.DataFrame:
    """Return, for each of N >= 2 training pictures, similarity and pixel_distance to the nearest *other* one, as the
    scale for `find_nearest`. Raises ValueError for fewer pictures, or unequal counts.
    """
    if len(training) < 2 or len(training) != len(training_images):
        raise ValueError(f"{len(training)} embeddings for {len(training_images)} pictures; give at least 2 of each")
    similarity = _unit(training) @ _unit(training).T
    np.fill_diagonal(similarity, -np.inf)
    small = _shrink(training_images)
    distance = _pixel_distances(small, small)
    np.fill_diagonal(distance, np.inf)
    return pd.DataFrame({"similarity": similarity.max(1), "pixel_distance": distance.min(1)})


def is_near_copy(found: pd.DataFrame, among: pd.DataFrame) -> pd.Series:
    """Return which generated pictures are suspected copies, for people to check: nearer to a training picture in pixels
    than 95 % of the training pictures are to each other. found: from `find_nearest`; among: from `nearest_among`.
    """
    return found["pixel_distance"] < among["pixel_distance"].quantile(NEAR_QUANTILE)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    values = embeddings.astype(np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _shrink(images: np.ndarray) -> np.ndarray:
    """Convert uint8 (N, H, W, 3) to float64 (N, 32 * 32 * 3) in 0..1."""
    from PIL import Image

    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"pictures must be uint8 (N, H, W, 3); got {images.dtype} {images.shape}")
    size = (PIXEL_SIZE, PIXEL_SIZE)
    small = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float64) / 255


def _pixel_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the root mean square differences (M, N) of each row of (M, P) and each row of (N, P)."""
    squared = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.sqrt(np.maximum(squared, 0) / first.shape[1])
