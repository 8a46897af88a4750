"""Tells two kinds of pictures apart by how their shades change: smoothly, as in photographs and rendered drawings, or
in steps, as in flat ones.

Where a corpus says which of its pictures are of the kind that curation should find (the demo's shaded drawings), this
says of drawn pictures whether they are, without the criteria of any panel. It is trained on real pictures only, each
also with noise, blur and JPEG as drawn ones have them, so that these do not decide. Features and constants are chosen
here.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

EDGES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of differences of neighbouring colours in CIELAB; 2 is just noticeable
SCALES = (1, 2, 4)  # the picture is also looked at smaller, where noise is averaged
GROUND = 6.0  # colours nearer than this to the border's median are ground, of whose size nothing should depend
NUM_LEAST = 30  # positions that are not ground, else the whole picture is looked at
CELLS = ((10, 12, 12), ((0, 100), (-100, 100), (-100, 100)))  # of the histogram of colours: numbers and ranges
NOISE, BLUR, QUALITY = (
    16.0,
    1.2,
    40,
)  # of the varied copies, at most: levels (the demo draws its white ground 6 to 39 off), px, JPEG
STRENGTH = 0.3  # inverse of the regression's penalty
NUM_FOLDS = 5  # of the cross-validation


def shade_features(images: np.ndarray) -> np.ndarray:
    """Return features of uint8 (N, H, W, 3) pictures, float (N, 53): at each scale and in each direction, the shares of
    neighbouring colours whose difference lies between two of EDGES; then how spread the colours of what is drawn are.
    """
    return np.stack([_features_of(image) for image in images])


def _features_of(image: np.ndarray) -> np.ndarray:
    from skimage.color import rgb2lab

    lab = rgb2lab(image)
    found = []
    for scale in SCALES:
        height, width = (side - side % scale for side in image.shape[:2])
        cells = lab[:height, :width].reshape(height // scale, scale, width // scale, scale, 3).mean((1, 3))
        for axis in (0, 1):
            away = np.linalg.norm(np.diff(cells, axis=axis), axis=-1).ravel()
            found.append(np.bincount(np.searchsorted(EDGES, away), minlength=len(EDGES) + 1) / len(away))
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    drawn = lab[np.linalg.norm(lab - np.median(border, axis=0), axis=-1) > GROUND]
    colours = drawn if len(drawn) > NUM_LEAST else lab.reshape(-1, 3)
    share = np.histogramdd(colours, *CELLS)[0].ravel() / len(colours)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    return np.concatenate([*found, [entropy, np.sort(share)[-3:].sum()], colours.std(axis=0)])


@dataclass(frozen=True)
class KindClassifier:
    """A trained classifier. num_right of num_tried real pictures were told apart while their captions were left out of
    its training."""

    model: Any
    num_right: int
    num_tried: int

    def is_wanted(self, images: np.ndarray) -> np.ndarray:
        """Return whether each of uint8 (N, H, W, 3) pictures is of the wanted kind, bool (N,)."""
        return self.model.predict(shade_features(images)).astype(bool)


def learn_kind(images: np.ndarray, is_wanted: np.ndarray, captions: Sequence[str], seed: int = 0) -> KindClassifier:
    """Learn which of uint8 (N, H, W, 3) pictures are of the wanted kind, bool (N,). captions: pictures with the same
    one are tested together. Raises ValueError if there are fewer than two captions with pictures of each kind.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    captions_of = [{c for c, w in zip(captions, is_wanted, strict=True) if w == kind} for kind in (True, False)]
    if min(map(len, captions_of)) < 2:
        raise ValueError(
            f"pictures of the wanted kind have {len(captions_of[0])} captions and the others {len(captions_of[1])}; to "
            "tell them apart, each kind needs at least 2"
        )
    rng = np.random.default_rng(seed)
    varied = np.concatenate([images, *(_vary(images, rng) for _ in range(3))])
    x_MD, y_M, groups = shade_features(varied), np.tile(is_wanted, 4), np.tile(np.asarray(captions, object), 4)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=3000))
    folds = GroupKFold(min(NUM_FOLDS, len(set(captions))))
    guessed = cross_val_predict(model, x_MD, y_M, groups=groups, cv=folds)[: len(images)]
    return KindClassifier(model.fit(x_MD, y_M), int((guessed == is_wanted).sum()), len(images))


def _vary(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return each picture blurred, noisy and through JPEG, each as strongly as a draw says."""
    found = []
    for image in images:
        blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(BLUR * rng.random())))
        noisy = blurred + rng.normal(0, NOISE * rng.random(), image.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(
            file, "JPEG", quality=int(rng.integers(QUALITY, 100))
        )
        found.append(np.asarray(Image.open(file).convert("RGB")))
    return np.stack(found)
