"""Hard negatives for the text probe: things laid over pictures that repeat as letters do and are none.

Bricks, windows, fences, meshes, chequers, leaves, beads, railings and wires, drawn at random (sizes as those of
letters, _overlays.HEIGHTS), turned and seen aslant. They teach the probe; no claim is measured on them.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

Rng = np.random.Generator
FULL = (255,)


def lay_pattern(image: Image.Image, rng: Rng) -> Image.Image:
    """Return an RGB picture with one of the patterns over a part of it or all."""
    canvas = np.asarray(image, np.float32)
    height, width = canvas.shape[:2]
    step = max(5, int(min(height, width) * np.exp(rng.uniform(np.log(0.02), np.log(0.2)))))
    draw = PATTERNS[int(rng.integers(len(PATTERNS)))]
    side = 2 * max(height, width)
    ink = np.zeros((side, side), np.uint8)
    draw(ink, step, max(1, int(step * rng.uniform(0.06, 0.35))), rng)
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    aslant = corners + rng.normal(0, 0.06 * side, (4, 2)).astype(np.float32) - [side / 4, side / 4]
    angle = rng.normal(0, 0.3) + (np.pi / 2 if rng.random() < 0.3 else 0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([width / 2, height / 2])
    aslant = ((aslant - middle) @ turn.T + middle).astype(np.float32)
    warp = cv2.getPerspectiveTransform(corners, aslant)
    share = cv2.warpPerspective(ink, warp, (width, height), flags=cv2.INTER_AREA).astype(np.float32) / 255
    if rng.random() < 0.6:  # over a part of it
        y, x = int(rng.integers(height // 2 + 1)), int(rng.integers(width // 2 + 1))
        part = np.zeros_like(share)
        part[y : y + int(height * rng.uniform(0.2, 0.6)), x : x + int(width * rng.uniform(0.2, 0.6))] = 1
        share *= part
    share = share[..., None] * (1.0 if rng.random() < 0.6 else rng.uniform(0.3, 0.8))
    colour = rng.choice([0, 20, 235, 255], 1).repeat(3) if rng.random() < 0.5 else rng.integers(0, 256, 3)
    return Image.fromarray((canvas * (1 - share) + colour.astype(np.float32) * share).round().astype(np.uint8))


def _bricks(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    length = int(step * rng.uniform(1.2, 3.5))
    for row, y in enumerate(range(0, len(ink), step)):
        cv2.line(ink, (0, y), (len(ink), y), FULL, thick)
        for x in range(row % 2 * length // 2, len(ink), length):
            cv2.line(ink, (x, y), (x, y + step), FULL, thick)


def _windows(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    width, height = step * rng.uniform(0.3, 0.8), step * rng.uniform(0.4, 0.9)
    across = rng.uniform(1, 2)
    is_filled = rng.random() < 0.5
    for y in range(0, len(ink), step):
        for x in np.arange(0, len(ink), step * across):
            box = (int(x), y), (int(x + width), int(y + height))
            cv2.rectangle(ink, *box, FULL, -1 if is_filled else min(thick, 3))


def _railing(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    x, jitter = 0.0, rng.uniform(0, 0.4)
    high = int(step * rng.uniform(2, 8))
    for y in range(0, len(ink), high * 2 if rng.random() < 0.5 else high):
        cv2.line(ink, (0, y), (len(ink), y), FULL, thick)
    while x < len(ink):
        cv2.line(ink, (int(x), 0), (int(x), len(ink)), FULL, thick)
        x += step * (1 + rng.uniform(-jitter, jitter))


def _mesh(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    lean = rng.uniform(0.5, 1.5)
    for x in range(-int(lean * len(ink)), len(ink), step):
        cv2.line(ink, (x, 0), (int(x + lean * len(ink)), len(ink)), FULL, thick)
        cv2.line(ink, (int(x + lean * len(ink)), 0), (x, len(ink)), FULL, thick)


def _chequers(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    del thick
    missing = rng.uniform(0, 0.5)
    for row, y in enumerate(range(0, len(ink), step)):
        for x in range(row % 2 * step, len(ink), 2 * step):
            if rng.random() > missing:
                cv2.rectangle(ink, (x, y), (x + step, y + step), FULL, -1)


def _leaves(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    lines = rng.random() < 0.4
    for _ in range(int(min(3000, rng.uniform(0.1, 1) * (len(ink) / step) ** 2))):
        at = tuple(int(v) for v in rng.integers(0, len(ink), 2))
        axes = int(step * rng.uniform(0.2, 0.7)) + 1, int(step * rng.uniform(0.1, 0.4)) + 1
        cv2.ellipse(ink, at, axes, float(rng.uniform(0, 360)), 0, 360, FULL, min(thick, 2) if lines else -1)


def _beads(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    """Rows of round things: pearls, rivets, portholes."""
    radius = max(2, int(step * rng.uniform(0.2, 0.5)))
    for y in range(step, len(ink), int(step * rng.uniform(1.5, 8))):
        for x in range(0, len(ink), step):
            cv2.circle(ink, (x, y), radius, FULL, min(thick, radius) if rng.random() < 0.3 else -1)


def _wires(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    """Long curves that cross: branches, cables, outlines."""
    for _ in range(int(rng.integers(4, 30))):
        steps = rng.normal(0, step * 2, (40, 2)) + rng.normal(0, step * 4, 2)
        path = (rng.uniform(0, len(ink), 2) + np.cumsum(steps, axis=0)).astype(np.int32)
        cv2.polylines(ink, [path], False, FULL, thick, cv2.LINE_AA)


def _blots(ink: np.ndarray, step: int, thick: int, rng: Rng) -> None:
    """Noise of one size with hard edges: camouflage, stone, foliage against the sky."""
    del thick
    coarse = rng.random((len(ink) // step + 2,) * 2, np.float32)
    ink[:] = 255 * (cv2.resize(coarse, ink.shape[::-1], interpolation=cv2.INTER_CUBIC) > rng.uniform(0.5, 0.8))


PATTERNS: tuple[Callable[[np.ndarray, int, int, Rng], None], ...] = (
    *(_bricks, _windows, _railing, _mesh, _chequers, _leaves, _beads, _wires, _blots),
)
