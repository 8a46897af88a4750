"""A cheap look for text, so that CRAFT sees only the pictures that may have some.

A linear probe on local statistics of the grey picture at 192 px: words are dense, alternating, two-toned edges in
both directions, somewhere in the picture. It costs a hundredth of CRAFT and is fitted, without labels, to what CRAFT
says of the corpus's own first pictures; a corpus too small or too odd for that has none, and all goes to CRAFT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from emu_data.signals import Columns, Measure, Record, Signal

SIDE = 192  # px, the long side at which statistics are taken; smaller pictures are not enlarged
STRONG = 0.08  # a step between neighbours (of a range of 1) that counts as an edge; chosen here
CELLS = ((12, 12), (24, 12))  # px (width, height) of the windows: about a letter, about a short word
QUANTILES = (0.5, 0.8, 0.95, 0.99, 1.0)  # over windows: a single word has to show
NUM_FEATURES = 11 * len(CELLS) * len(QUANTILES)

FLOOR = 0.03  # of CRAFT's text_area, above which a picture has text that must not be missed
MAX_MISSED = 0.01  # share (0..1) of those pictures that may score below the threshold, out of fold
MIN_EACH = 40  # pictures with text, and without, that a fit needs; chosen here
MIN_SKIPPED = 0.2  # share of all pictures that it must spare CRAFT to be worth its own cost
NUM_FOLDS = 5
REGULARISATION = 0.1  # logistic regression's C on standardised features; chosen here
# A text that is missed against a look at CRAFT for nothing. With it and the features' roots, of 512 pictures fitted to,
# 61 % of the others without text are skipped instead of 51, and 0.5 % of those with text (docs/log.md).
COST_OF_A_MISS = 5


@dataclass(frozen=True)
class TextProbe:
    """score = weight . (features - mean) / scale + bias; a picture below `threshold` has no text worth finding."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float
    threshold: float

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.array(self.mean), np.array(self.scale), np.array(self.weight)

    def score(self, image: Image.Image) -> float:
        mean, scale, weight = self._arrays
        return float(weight @ ((text_features(image) - mean) / scale) + self.bias)


@dataclass(frozen=True)
class TextFeaturesSignal(Signal):
    """What the probe is fitted on; measured on the pilot alone."""

    name: ClassVar = "text_features"
    revision: ClassVar = 2
    columns: ClassVar = {f"f{number:03d}": "Float64" for number in range(NUM_FEATURES)}
    milliseconds: ClassVar = 8.0

    def describe(self) -> str:
        return "edges and contrast of the picture, from which the text probe guesses"

    def load(self) -> Measure:
        return self._measure

    def _measure(self, batch: Sequence[Record]) -> Columns:
        table = np.stack([text_features(record.image) for record in batch])
        return {name: table[:, number].tolist() for number, name in enumerate(self.columns)}


def text_features(image: Image.Image) -> np.ndarray:
    """Return the statistics of an RGB picture, float64 (NUM_FEATURES,)."""
    import cv2

    scale = min(1.0, SIDE / max(image.size))
    size = (max(CELLS[1][0], round(image.width * scale)), max(CELLS[1][0], round(image.height * scale)))
    small = image.convert("L").resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    grey = np.asarray(small, np.float32) / 255
    dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0, ksize=1), cv2.Sobel(grey, cv2.CV_32F, 0, 1, ksize=1)
    edges = (np.hypot(dx, dy) > STRONG).astype(np.float32)
    ridges = np.abs(cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 1.0), cv2.CV_32F))
    turns_x, turns_y = _turns(dx, axis=1), _turns(dy, axis=0)
    found = []
    for cell in CELLS:
        mean, slope_x, slope_y, turn_x, turn_y, edge, ridge = (
            cv2.blur(one, cell) for one in (grey, np.abs(dx), np.abs(dy), turns_x, turns_y, edges, ridges)
        )
        variance = np.maximum(cv2.blur(grey * grey, cell) - mean * mean, 1e-6)
        spread = np.sqrt(variance)
        # Of two tones the fourth moment is the square of the variance, of anything else it is more.
        fourth = np.maximum(cv2.blur((grey - mean) ** 4, cell), 0)
        two_tone = spread / (np.sqrt(fourth) / variance + 0.5)
        maps = [slope_x, slope_y, turn_x, turn_y, edge, ridge, two_tone, spread]
        maps += [np.minimum(turn_x, turn_y), turn_x * spread, np.minimum(slope_x, slope_y)]
        found += [np.quantile(one[::3, ::3], QUANTILES) for one in maps]
    # Shares and slopes: their roots are less skewed. (A blur of zeros may be a little less than nothing.)
    return np.sqrt(np.maximum(np.concatenate(found).astype(np.float64), 0))


def fit_text_probe(features_NF: np.ndarray, text_area_N: np.ndarray) -> tuple[TextProbe | None, str]:
    """Fit a probe to what CRAFT says, and say in words how good it is; None where it is not good enough.

    The threshold is set on out-of-fold scores, so that at most MAX_MISSED of the pictures with more text than FLOOR
    are below it.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    has_text = text_area_N > FLOOR
    counts = f"{has_text.sum()} pictures with text and {(~has_text).sum()} without"
    if min(has_text.sum(), (~has_text).sum()) < MIN_EACH:
        return None, f"no probe: {counts} in the pilot, {MIN_EACH} of each are needed; all go to CRAFT"
    weights = {False: 1, True: COST_OF_A_MISS}
    regression = LogisticRegression(C=REGULARISATION, class_weight=weights, max_iter=5000)
    model = make_pipeline(StandardScaler(), regression)
    scores: Any = cross_val_predict(model, features_NF, has_text, cv=NUM_FOLDS, method="decision_function")
    # One less than what the share allows: the threshold itself is fitted.
    allowed = max(0, int(MAX_MISSED * has_text.sum()) - 1)
    threshold = float(np.sort(scores[has_text])[allowed])
    skipped = float((scores < threshold).mean())
    told = f"{counts}; {skipped:.0%} of all score below every one of those with text but {allowed} (out of fold)"
    if skipped < MIN_SKIPPED:
        return None, f"no probe: {told}, fewer than {MIN_SKIPPED:.0%}; all go to CRAFT"
    scaler, fitted = (step for _, step in model.fit(features_NF, has_text).steps)
    mean, deviation, weight = scaler.mean_.tolist(), scaler.scale_.tolist(), fitted.coef_[0].tolist()
    return TextProbe(tuple(mean), tuple(deviation), tuple(weight), float(fitted.intercept_[0]), threshold), told


def _turns(slope: np.ndarray, axis: int) -> np.ndarray:
    """Return where a slope changes its sign between two strong neighbours, as 0 or 1, of the slope's shape."""
    before, after = (slope[:, :-1], slope[:, 1:]) if axis == 1 else (slope[:-1], slope[1:])
    turn = (before * after < 0) & (np.minimum(np.abs(before), np.abs(after)) > STRONG / 2)
    return np.pad(turn.astype(np.float32), ((0, 0), (0, 1)) if axis == 1 else ((0, 1), (0, 0)))
