"""Features that need no weights, for Fréchet distances where no Inception weights are found.

Distances on them compare models of one table with each other; they are not FID and are never called so.
"""

import numpy as np

from emu_models.evaluation.reconstruction import Features

GRID = 2  # cells a side; chosen here: few enough numbers for a covariance of a small held-out set


def grid_statistics(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> (N, GRID * GRID * 7): a cell's mean and deviation of R, G, B, its mean gradient; 0..1."""
    x = images.astype(np.float64) / 255
    gradient = np.hypot(*np.gradient(x.mean(-1), axis=(1, 2)))
    height, width = x.shape[1] // GRID, x.shape[2] // GRID
    parts = []
    for row in range(GRID):
        for column in range(GRID):
            cell = (slice(None), slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
            parts += [x[cell].mean((1, 2)), x[cell].std((1, 2)), gradient[cell].mean((1, 2))[:, None]]
    return np.concatenate(parts, axis=1)


GRID_STATISTICS = Features(f"colour and gradient statistics of a {GRID} x {GRID} grid (not FID)", grid_statistics)
