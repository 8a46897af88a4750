"""The rubric panel: automatic raters with written criteria, which choose pictures if no person does.

It stands in for the paper's annotators (sec. 3.3, items 5 and 6); vote.describe_voters labels its decisions "not
people". Its criteria are those of a photographer's guideline that can be computed from pixels: exposure, light that
models the subject, colour, composition, an uncluttered ground. The criteria, their weights and all constants are chosen
here, by trial on the demo's three drawings of 450 emoji (measured figures: docs/log.md); the paper's guideline is a
text for people, without numbers.

Pictures are judged at 64 px whatever their size, so that the same picture at another size gets nearly the same marks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, cast

import numpy as np
import scipy  # its parts are loaded when they are first used
from PIL import Image
from skimage.color import rgb2lab

from emu_data.votes.items import Picture, keys_of, stack_pictures
from emu_data.votes.vote import Vote, round_score

LOOK_SIZE = 64  # px to which pictures are resized
GROUND_DISTANCE = 6.0  # CIELAB distance from the ground's colour beyond which a pixel belongs to the subject
CHUNK = 1000  # pictures whose planes are in memory at once (chosen here); marks do not depend on it

CurationRound = Literal["generalist", "specialist"]


@dataclass(frozen=True)
class Look:
    """What the criteria examine, for N pictures.

    lab: (N, 64, 64, 3) CIELAB, L in 0..100. subject: (N, 64, 64) bool. inside: the subject without a rim of 2 px, so
    that outlines do not count as shading. ground_lab: (N, 3), median colour of the border.
    """

    lab: np.ndarray
    subject: np.ndarray
    inside: np.ndarray
    ground_lab: np.ndarray


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 (N, H, W, 3) to uint8 (N, size, size, 3), bicubic with antialiasing. Raises ValueError for other
    arrays."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"pictures must be uint8 (N, H, W, 3); got {images.dtype} {images.shape}")
    if images.shape[1:3] == (size, size):
        return images
    resized = [Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in images]
    return np.stack([np.asarray(one) for one in resized]) if resized else np.zeros((0, size, size, 3), np.uint8)


def look_at(images: np.ndarray) -> Look:
    """Find ground and subject of uint8 (N, H, W, 3) pictures. Raises ValueError for other arrays."""
    lab = rgb2lab(resize_all(images, LOOK_SIZE)).astype(np.float32)
    border = np.concatenate(
        [lab[:, :2].reshape(len(lab), -1, 3), lab[:, -2:].reshape(len(lab), -1, 3)]
        + [lab[:, :, :2].reshape(len(lab), -1, 3), lab[:, :, -2:].reshape(len(lab), -1, 3)],
        axis=1,
    )
    ground = np.median(border, axis=1)
    subject = np.linalg.norm(lab - ground[:, None, None], axis=-1) > GROUND_DISTANCE
    inside = scipy.ndimage.binary_erosion(subject, np.ones((1, 5, 5), bool), border_value=1)
    # A subject of thin lines has no inside; then all of it counts as inside.
    is_thin = inside.sum((1, 2)) < 0.2 * subject.sum((1, 2))
    inside[is_thin] = subject[is_thin]
    return Look(lab, subject, inside, ground)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the share (N,) of the pixels of `whole` that are in `part`; 0 if `whole` is empty."""
    return (part & whole).sum((1, 2)) / np.maximum(whole.sum((1, 2)), 1)


def _ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 0 up to `low`, 1 from `high` on, linear in between (reversed if `low` > `high`)."""
    return np.clip((value - low) / (high - low), 0.0, 1.0)


def gradients(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Sobel gradients per pixel, along y and x, of (N, H, W, C) planes. (`ndimage.sobel` would also smooth
    over N and C.)
    """
    slope, smooth = np.array([-1.0, 0.0, 1.0]) / 2, np.array([1.0, 2.0, 1.0]) / 4
    along_y = scipy.ndimage.correlate1d(scipy.ndimage.correlate1d(planes, slope, axis=1), smooth, axis=2)
    along_x = scipy.ndimage.correlate1d(scipy.ndimage.correlate1d(planes, slope, axis=2), smooth, axis=1)
    return along_y, along_x


def _mean_around(planes: np.ndarray) -> np.ndarray:
    """Return the mean over 3 x 3 pixels of (N, H, W) or (N, H, W, C) planes."""
    return scipy.ndimage.uniform_filter1d(scipy.ndimage.uniform_filter1d(planes, 3, axis=1), 3, axis=2)


def tonal_range(look: Look) -> np.ndarray:
    """Balanced exposure, not dim, flat or over-exposed: the range of lightness in the subject, 5th to 95th percentile,
    0 at 10, 1 at 60 of 100; crushed or burnt-out areas reduce it, from a tenth of the subject (not at all) to 60 % (to
    0).
    """
    marks = np.zeros(len(look.lab))
    for index, (lightness, mask) in enumerate(zip(look.lab[..., 0], look.subject, strict=True)):
        if mask.any():
            low, high = np.percentile(lightness[mask], [5, 95])
            clipped = np.mean((lightness[mask] < 5) | (lightness[mask] > 98))
            marks[index] = _ramp(high - low, 10, 60) * _ramp(clipped, 0.6, 0.1)
    return marks


def shading(look: Look) -> np.ndarray:
    """The share of the painted surface inside the subject, without outlines, that is shaded and not flat.

    Shaded: the gradient is 0.4..8 CIELAB units per pixel and the neighbours change in the same direction. Flat: it is
    below 0.4, or the neighbours change in other directions (noise on flat paint). Light that models a body leaves
    little flat paint. The mark is shaded / (shaded + flat), 0 at 0.3, 1 at 0.85; a tenth of the inside is added to the
    flat part, so that a few shaded pixels do not make a subject of mere outlines count as shaded.
    """
    along_y, along_x = gradients(look.lab)
    strength = np.sqrt((along_x**2 + along_y**2).sum(-1))
    mean_y, mean_x = (_mean_around(part) for part in (along_y, along_x))
    steadiness = np.sqrt((mean_x**2 + mean_y**2).sum(-1)) / np.maximum(_mean_around(strength), 1e-6)
    is_surface = strength < 8.0
    is_shaded = is_surface & (strength > 0.4) & (steadiness > 0.5)
    shaded, flat = _share(is_shaded, look.inside), _share(is_surface & ~is_shaded, look.inside)
    return _ramp(shaded / (shaded + flat + 0.1), 0.3, 0.85)


def colour(look: Look) -> np.ndarray:
    """Vibrant, without one dominating colour: mean chroma of the subject (0 at 5, 1 at 45), reduced by up to half if
    one of 12 hues fills more than 70 % of the coloured part.
    """
    chroma = np.linalg.norm(look.lab[..., 1:], axis=-1)
    hue = np.floor((np.arctan2(look.lab[..., 2], look.lab[..., 1]) / (2 * np.pi) % 1.0) * 12).astype(int)
    marks = np.zeros(len(look.lab))
    for index, mask in enumerate(look.subject):
        if mask.any():
            coloured = mask & (chroma[index] > 8)
            counts = np.bincount(hue[index][coloured] % 12, minlength=12)
            dominance = counts.max() / max(counts.sum(), 1)
            vibrancy = _ramp(chroma[index][mask].mean(), 5, 45)
            marks[index] = vibrancy * (1.0 - 0.5 * _ramp(dominance, 0.7, 1.0))
    return marks


def placement(look: Look) -> np.ndarray:
    """Whether the subject is whole, of a good size and in the middle: the product of three marks.

    Whole: it touches at most 2 % of the border, fading to 0 at 30 %. Size: 15 to 70 % of the picture, fading to 0 at 3
    and 95 %. Middle: its centre of mass is within 6 % of the side from the picture's centre, fading to 0 at 25 %.
    """
    size = look.subject.mean((1, 2))
    rim = np.zeros(look.subject.shape[1:], bool)
    rim[[0, -1], :] = rim[:, [0, -1]] = True
    touching = look.subject[:, rim].mean(1)
    axis = (np.arange(LOOK_SIZE) + 0.5) / LOOK_SIZE - 0.5
    mass = np.maximum(look.subject.sum((1, 2)), 1)
    off = np.hypot((look.subject * axis[None, :, None]).sum((1, 2)) / mass, (look.subject * axis).sum((1, 2)) / mass)
    fit = np.minimum(_ramp(size, 0.03, 0.15), _ramp(size, 0.95, 0.70))
    return _ramp(touching, 0.30, 0.02) * fit * _ramp(off, 0.25, 0.06)


def clean_ground(look: Look) -> np.ndarray:
    """Whether the ground is quiet and the subject is one thing: the product of two marks.

    Quiet: at most 0.2 % of the ground away from the subject deviates (specks, noise); 0 at 4 %. One thing: 1 if the
    largest connected part is all of the subject, 0.4 if it is half of it or less.
    """
    distance = np.linalg.norm(look.lab - look.ground_lab[:, None, None], axis=-1)
    opened = scipy.ndimage.binary_opening(look.subject, np.ones((1, 2, 2), bool))
    away = np.logical_not(scipy.ndimage.binary_dilation(opened, np.ones((1, 5, 5), bool)))
    restless = _share(distance > 2.0, away)
    marks = np.zeros(len(look.lab))
    for index, mask in enumerate(look.subject):
        parts, num_parts = cast(tuple[np.ndarray, int], scipy.ndimage.label(mask, np.ones((3, 3))))
        if num_parts:
            largest = np.bincount(parts.ravel())[1:].max() / mask.sum()
            marks[index] = _ramp(restless[index], 0.04, 0.002) * (0.4 + 0.6 * _ramp(largest, 0.5, 1.0))
    return marks


CRITERIA = {
    "tonal range": tonal_range,
    "shading": shading,
    "colour": colour,
    "subject placement": placement,
    "clean ground": clean_ground,
}

# Weights in the order of CRITERIA. Specialists look for what distinguishes the best pictures from good ones: light.
WEIGHTS: dict[CurationRound, tuple[float, ...]] = {
    "generalist": (0.20, 0.25, 0.20, 0.20, 0.15),
    "specialist": (0.12, 0.52, 0.12, 0.14, 0.10),
}
WEIGHT_SPREAD = 0.25  # log-normal sigma of a rater's weights around WEIGHTS
NOISE = {"generalist": 0.05, "specialist": 0.03}  # standard deviation of a rater's noise, on scores of 0..1


def score_criteria(images: np.ndarray) -> np.ndarray:
    """Return the marks of uint8 (N, H, W, 3) pictures by each criterion: float (N, 5) in 0..1, columns as CRITERIA."""
    look = look_at(images)
    return np.stack([criterion(look) for criterion in CRITERIA.values()], axis=1)


def steady_normal(*parts: object) -> float:
    """Return a standard normal number that depends only on `parts`: for a rater and a picture it is the same in any
    order.
    """
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest, "big") + 0.5) / 2**64)


@dataclass(frozen=True)
class CurationPanel:
    """`num_raters` rubric raters of one round; each keeps the `keep_share` (over 0, up to 1) of pictures to which it
    gave the best scores. Equal arguments give equal votes, whatever the order of the pictures. Raises ValueError for
    arguments out of range.
    """

    num_raters: int
    seed: int
    round: CurationRound
    keep_share: float

    def __post_init__(self) -> None:
        if self.num_raters < 1:
            raise ValueError(f"num_raters is {self.num_raters}; a panel needs at least one rater")
        if self.round not in WEIGHTS:
            raise ValueError(f"round is {self.round!r}; it must be one of {', '.join(WEIGHTS)}")
        if not 0 < self.keep_share <= 1:
            raise ValueError(f"keep_share is {self.keep_share}; it must be over 0 and at most 1")

    def rater_weights(self) -> np.ndarray:
        """Return each rater's weights, float (num_raters, 5), rows sum to 1: those of WEIGHTS, varied by the seed."""
        spread = [
            [steady_normal(self.seed, self.round, rater, name) for name in CRITERIA] for rater in range(self.num_raters)
        ]
        weights = np.array(WEIGHTS[self.round]) * np.exp(WEIGHT_SPREAD * np.array(spread))
        return weights / weights.sum(axis=1, keepdims=True)

    def vote(self, items: Sequence[Picture]) -> list[Vote]:
        """Return every rater's vote on every picture; see `items.Panel`. A drop names the criterion that cost most."""
        if not items:
            return []
        keys = keys_of(items)
        parts = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
        marks = np.concatenate([score_criteria(stack_pictures([item.image for item in part])) for part in parts])
        names = list(CRITERIA)
        votes = []
        for rater, weights in enumerate(self.rater_weights()):
            noise = [steady_normal(self.seed, self.round, rater, key, "noise") for key in keys]
            scores = np.clip(marks @ weights + NOISE[self.round] * np.array(noise), 0, 1)
            num_kept = max(1, int(round_half_up(self.keep_share * len(keys))))
            # Equal scores are ordered by key, so that the order of the pictures does not matter.
            ranked = sorted(range(len(keys)), key=lambda index: (-scores[index], keys[index]))
            kept = set(ranked[:num_kept])
            for index, key in enumerate(keys):
                lost = weights * (1 - marks[index])
                votes.append(
                    Vote(
                        round=self.round,
                        rater=f"rubric-{self.round}-{rater + 1}",
                        rater_kind="rubric",
                        key=key,
                        decision="keep" if index in kept else "drop",
                        reason="" if index in kept else names[int(np.argmax(lost))],
                        score=round_score(scores[index]),
                    )
                )
        return votes


def round_half_up(value: float) -> int:
    """Return the nearest integer, with halves rounded up (Python's `round` rounds them to even)."""
    return int(np.floor(value + 0.5))
