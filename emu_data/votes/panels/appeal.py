"""Rubric judges of visual appeal, side by side (paper sec. 4: caption hidden, 5 annotators, A / B / tie).

They stand in for people and are labelled as such (vote.describe_voters). They differ from the raters that chose the
pictures (curation.py): they have other criteria, taken from work on image quality if there is a source, and other
seeds. All ramps and weights are chosen here, by trial on drawings and on noisy, blurred, blocky and dull copies of
them: a clean picture must win over its damaged copy (measured figures: docs/log.md). Tonal richness here and shading
there still measure the same thing in two ways, light on a body, since that is what tuning should improve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are first used
from skimage.color import rgb2lab

from emu_data.votes.items import Pair, keys_of, stack_pictures
from emu_data.votes.pairs import REPEAT_SHARE, draw_side_order, is_repeated, swap
from emu_data.votes.panels.curation import gradients, resize_all, steady_normal
from emu_data.votes.vote import Vote, round_score

JUDGE_SIZE = 64  # px to which pictures are resized; chosen here
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Plate:
    """What the judges examine, for N pictures: rgb (N, 64, 64, 3) in 0..255; grey, and its gradients (N, 64, 64); and
    the CIELAB planes of the median-filtered picture (N, 64, 64, 3), in which single noisy pixels do not count.
    """

    rgb: np.ndarray
    grey: np.ndarray
    slope: np.ndarray
    slope_y: np.ndarray
    slope_x: np.ndarray
    calm_lab: np.ndarray


def prepare(images: np.ndarray) -> Plate:
    """Return the plates of uint8 (N, H, W, 3) pictures. Raises ValueError for other arrays."""
    rgb = resize_all(images, JUDGE_SIZE).astype(np.float32)
    grey = rgb @ _LUMA
    slope_y, slope_x = (part[..., 0] for part in gradients(grey[..., None]))
    median = scipy.ndimage.median_filter(rgb, (1, 3, 3, 1))
    calm_lab = rgb2lab(median / 255).astype(np.float32)
    return Plate(rgb, grey, np.hypot(slope_y, slope_x), slope_y, slope_x, calm_lab)


def _ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((value - low) / (high - low), 0.0, 1.0)


def colourfulness(plate: Plate) -> np.ndarray:
    """Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images", eq. 7; 0 at 5, 1 at 100."""
    red, green, blue = (plate.rgb[..., channel] for channel in range(3))
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = np.hypot(red_green.std((1, 2)), yellow_blue.std((1, 2)))
    mean = np.hypot(red_green.mean((1, 2)), yellow_blue.mean((1, 2)))
    return _ramp(spread + 0.3 * mean, 5, 100)


def contrast(plate: Plate) -> np.ndarray:
    """RMS contrast (Peli 1990): standard deviation of luma; 0 at 15, 1 at 65 of 255."""
    return _ramp(plate.grey.std((1, 2)), 15, 65)


def sharpness(plate: Plate) -> np.ndarray:
    """Log variance of the Laplacian (Pech-Pacheco et al. 2000) of the luma, median-filtered so that noise does not
    count as detail; 0 at 3.5, 1 at 7.
    """
    grey = scipy.ndimage.median_filter(plate.grey, (1, 3, 3))
    variance = np.array([scipy.ndimage.laplace(one).var() for one in grey])
    return _ramp(np.log1p(variance), 3.5, 7)


def tonal_richness(plate: Plate) -> np.ndarray:
    """Entropy (nats) of the subject's colours in CIELAB cells of side 4; 0 at 1.5, 1 at 5.3."""
    entropies = np.zeros(len(plate.calm_lab))
    for index, lab in enumerate(plate.calm_lab):
        subject = np.abs(lab - np.median(lab[[0, -1]].reshape(-1, 3), axis=0)).max(-1) > 6
        cells = np.floor(lab[subject] / 4).astype(np.int64) + 64  # a* and b* lie in -128..127
        _, counts = np.unique((cells[:, 0] * 128 + cells[:, 1]) * 128 + cells[:, 2], return_counts=True)
        shares = counts / max(counts.sum(), 1)
        entropies[index] = -(shares * np.log(shares)).sum()
    return _ramp(entropies, 1.5, 5.3)


def edge_coherence(plate: Plate) -> np.ndarray:
    """Whether neighbouring edges have one direction (contours) or random ones (noise, rings): coherence of the
    structure tensor (Bigun and Granlund 1987), sigma 1.5 px, averaged over pixels with the gradient as weight; 0 at
    0.5, 1 at 0.85.
    """
    xx, yy, xy = (
        scipy.ndimage.gaussian_filter(product, (0, 1.5, 1.5))
        for product in (plate.slope_x**2, plate.slope_y**2, plate.slope_x * plate.slope_y)
    )
    coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-3)
    mean = (coherence * plate.slope).sum((1, 2)) / (plate.slope.sum((1, 2)) + 1e-6)
    return _ramp(mean, 0.5, 0.85)


def noiselessness(plate: Plate) -> np.ndarray:
    """Response to the mask of Immerkaer 1996, "Fast noise variance estimation"; its median over pixels, which edges
    hardly affect; 1 at 2 or less, 0 at 25.
    """
    mask = np.array([[[1, -2, 1], [-2, 4, -2], [1, -2, 1]]], np.float32)
    return _ramp(np.median(np.abs(scipy.ndimage.correlate(plate.grey, mask)), axis=(1, 2)), 25, 2)


def calm(plate: Plate) -> np.ndarray:
    """Whether there are calm areas for the eye to rest: 30th percentile of the gradient's length; 1 at 1 or less, 0 at
    7."""
    along_y, along_x = gradients(plate.rgb)
    slope = np.sqrt((along_y**2 + along_x**2).sum(-1))
    return _ramp(np.percentile(slope, 30, axis=(1, 2)), 7, 1)


def seamlessness(plate: Plate) -> np.ndarray:
    """Absence of steps at the borders of 4 or 8 px blocks (after Wang, Bovik and Evan 2000): the mean step of the worst
    phase of the grid relative to the mean over all phases; 1 at 1.8 (4 px) and 2.6 (8 px), 0 at 3 and 3.8.
    """
    marks = np.ones(len(plate.grey))
    for axis in (1, 2):
        steps = np.moveaxis(np.abs(np.diff(plate.grey, axis=axis)), axis, 1)
        for period, good, bad in ((4, 1.8, 3.0), (8, 2.6, 3.8)):
            phases = np.stack([steps[:, phase::period].mean((1, 2)) for phase in range(period)])
            marks = np.minimum(marks, _ramp(phases.max(0) / (phases.mean(0) + 0.5), bad, good))
    return marks


def highlights(plate: Plate) -> np.ndarray:
    """Share of the subject that is lit, more than 12 L* lighter than its median; 0 at none, 1 at 40 %."""
    shares = np.zeros(len(plate.calm_lab))
    for index, lab in enumerate(plate.calm_lab):
        subject = np.abs(lab - np.median(lab[[0, -1]].reshape(-1, 3), axis=0)).max(-1) > 6
        if subject.any():
            lightness = lab[subject, 0]
            shares[index] = np.mean(lightness > np.median(lightness) + 12)
    return _ramp(shares, 0.0, 0.4)


CRITERIA = {
    "tonal richness": (tonal_richness, 3.0),
    "sharpness": (sharpness, 2.0),
    "calm": (calm, 3.0),
    "colourfulness": (colourfulness, 0.8),
    "contrast": (contrast, 0.8),
    "edge coherence": (edge_coherence, 1.5),
    "noiselessness": (noiselessness, 1.0),
    "seamlessness": (seamlessness, 0.7),
    "highlights": (highlights, 0.5),
}  # name -> (function that marks 0..1, weight)

WEIGHT_SPREAD = 0.25  # log-normal sigma of a judge's weights around those of CRITERIA; chosen here
NOISE = 0.015  # standard deviation of a judge's noise, on scores of 0..1, drawn for each showing of a pair; chosen here
TIE_MARGIN = 0.02  # scores closer than about this are a tie; a judge's own margin is 0.5 to 1.5 times this; chosen here


def score_appeal(images: np.ndarray) -> np.ndarray:
    """Return the marks of uint8 (N, H, W, 3) pictures by each criterion: float (N, 9) in 0..1, columns as CRITERIA."""
    plate = prepare(images)
    return np.stack([criterion(plate) for criterion, _ in CRITERIA.values()], axis=1)


@dataclass(frozen=True)
class AppealPanel:
    """`num_raters` judges (the paper has 5). Equal arguments give equal votes, whatever the order of the pairs. Raises
    ValueError for fewer than one judge.
    """

    num_raters: int = 5
    seed: int = 0
    repeat_share: float = REPEAT_SHARE

    def __post_init__(self) -> None:
        if self.num_raters < 1:
            raise ValueError(f"num_raters is {self.num_raters}; a panel needs at least one judge")

    def rater_weights(self) -> np.ndarray:
        """Return each judge's weights, float (num_raters, 9), rows sum to 1: those of CRITERIA, varied by the seed."""
        spread = np.array(
            [[steady_normal(self.seed, "appeal", rater, name) for name in CRITERIA] for rater in range(self.num_raters)]
        )
        weights = np.array([weight for _, weight in CRITERIA.values()]) * np.exp(WEIGHT_SPREAD * spread)
        return weights / weights.sum(axis=1, keepdims=True)

    def vote(self, items: Sequence[Pair]) -> list[Vote]:
        """Return every judge's vote on every pair, and on `repeat_share` of them a second one with swapped sides; see
        `items.Panel`. `Vote.score` is the judge's score of A minus that of B.
        """
        if not items:
            return []
        keys = keys_of(items)
        marks_a, marks_b = (
            score_appeal(stack_pictures(images))
            for images in ([item.image_a for item in items], [item.image_b for item in items])
        )
        difference = marks_a - marks_b
        votes = []
        for number, weights in enumerate(self.rater_weights()):
            rater = f"rubric-appeal-{number + 1}"
            taste = steady_normal(self.seed, rater, "margin")
            margin = TIE_MARGIN * (1 + 0.5 * np.tanh(taste))
            for key, lead in zip(keys, difference @ weights, strict=True):
                order = draw_side_order(self.seed, rater, key)
                showings = [(order, False)]
                if is_repeated(self.seed, rater, key, self.repeat_share):
                    showings.append((swap(order), True))
                for side_order, is_repeat in showings:
                    seen = float(lead + NOISE * steady_normal(self.seed, rater, key, "noise", is_repeat))
                    decision = "tie" if abs(seen) < margin else "A" if seen > 0 else "B"
                    votes.append(
                        Vote(
                            round="appeal",
                            rater=rater,
                            rater_kind="rubric",
                            key=key,
                            decision=decision,
                            score=round_score(seen),
                            side_order=side_order,
                            is_repeat=is_repeat,
                        )
                    )
        return votes
