"""Drawn subjects for the panels' tests: the same ball flat and shaded, and ways to damage a picture."""

import numpy as np
from scipy import ndimage


def draw_ball(
    colour: tuple[int, int, int], shaded: bool, size: int = 64, centre: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """Return uint8 (size, size, 3): a ball with a dark band on white, lit from the upper left if `shaded`."""
    fine = 4 * size
    y, x = (np.mgrid[0:fine, 0:fine] + 0.5) / fine - np.array(centre)[:, None, None]
    radius = 0.36
    inside = x**2 + y**2 < radius**2
    height = np.sqrt(np.maximum(radius**2 - x**2 - y**2, 0)) / radius
    light = np.clip((-0.5 * x - 0.6 * y) / radius + 0.65 * height, 0.05, 1) if shaded else np.ones_like(x)
    body = np.array(colour)[None, None] * (0.35 + 0.65 * light[..., None])
    body = body + (90 * np.maximum(light - 0.85, 0) / 0.15)[..., None] * shaded
    body = np.where((np.abs(y) < 0.05)[..., None], body * 0.45, body)
    picture = np.where(inside[..., None], body, 255.0)
    small = picture.reshape(size, 4, size, 4, 3).mean((1, 3))
    return np.clip(np.round(small), 0, 255).astype(np.uint8)


COLOURS = [(225, 60, 50), (240, 170, 40), (70, 160, 80), (60, 110, 210), (150, 80, 190), (230, 110, 160)]


def draw_balls(shaded: bool, size: int = 64) -> np.ndarray:
    """Return uint8 (12, size, size, 3): balls in six colours at two places."""
    places = [(0.5, 0.5), (0.47, 0.53)]
    return np.stack([draw_ball(colour, shaded, size, place) for colour in COLOURS for place in places])


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def add_noise(images: np.ndarray, sigma: float = 20) -> np.ndarray:
    return _as_bytes(images + np.random.default_rng(0).normal(0, sigma, images.shape))


def blur(images: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    return _as_bytes(ndimage.gaussian_filter(images.astype(float), (0, sigma, sigma, 0)))


def make_blocky(images: np.ndarray, block: int = 4) -> np.ndarray:
    n, height, width, _ = images.shape
    means = images.reshape(n, height // block, block, width // block, block, 3).mean((2, 4))
    return _as_bytes(means.repeat(block, 1).repeat(block, 2))


def make_pale(images: np.ndarray) -> np.ndarray:
    return _as_bytes(255 - 0.4 * (255 - images.astype(float)))
