"""The autoencoder study's report: quality by latent channels and Fourier transform, with crops (paper sec. 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy  # its parts are loaded when they are first used

from emu_reports.page import Card, Picture, Run, describe_run, write_report
from emu_reports.paper import RECONSTRUCTION, RECONSTRUCTION_NOTE

if TYPE_CHECKING:
    from emu_models.evaluation.reconstruction import Difference, Reconstruction

NUM_STRIP = 12  # held-out pictures in the strips at 1:1; chosen here
NUM_CROPS = 5  # pictures whose most detailed part is enlarged; chosen here
CROP = 24  # px per side of that part; chosen here


@dataclass(frozen=True)
class VariantFindings:
    """One autoencoder of the study. rebuilt: its reconstructions of the originals, uint8 (K, H, W, 3)."""

    name: str
    latent_channels: int
    fourier_bands: int
    reconstruction: "Reconstruction"
    rebuilt: np.ndarray
    num_parameters: int | None = None


@dataclass(frozen=True)
class Step:
    """Two variants by name, and the difference of the second from the first on the same pictures."""

    before: str
    after: str
    difference: "Difference"


def write_autoencoder_report(
    directory: Path,
    variants: Sequence[VariantFindings],
    steps: Sequence[Step],
    originals: np.ndarray,
    run: Run,
    note: str = "",
) -> dict[str, Any]:
    """Write the page and return what its report.json holds.

    originals: uint8 (K, H, W, 3) held-out pictures, in the order of each `rebuilt`. note: a sentence on what the table
    shows, for example whether the Fourier transform helps. Raises ValueError if the shapes of the pictures differ.
    """
    for variant in variants:
        if variant.rebuilt.shape != originals.shape:
            raise ValueError(
                f"{variant.name} has reconstructions of shape {variant.rebuilt.shape}, the originals {originals.shape}"
            )
    rows = [("original", originals), *((variant.name, variant.rebuilt) for variant in variants)]
    corners = [find_detail(picture) for picture in originals[:NUM_CROPS]]
    pictures: dict[str, Picture] = {}
    for name, images in rows:
        pictures[f"strip-{name}"] = np.concatenate(list(images[:NUM_STRIP]), axis=1)
        for number, (y, x) in enumerate(corners):
            pictures[f"crops/{name}-{number}"] = images[number, y : y + CROP, x : x + CROP]
    first = variants[0].reconstruction
    labels = {
        variant.name: f"{variant.latent_channels} channels" + (" + Fourier" if variant.fourier_bands else "")
        for variant in variants
    }
    data = {
        **describe_run(run),
        "num_images": first.num_images,
        "frechet_features": first.frechet_features,
        "size": originals.shape[1],
        "num_strip": min(NUM_STRIP, len(originals)),
        "crop": CROP,
        "num_crops": len(corners),
        "note": note,
        "paper_note": RECONSTRUCTION_NOTE,
        "variants": [
            {
                "name": variant.name,
                "label": labels[variant.name],
                "latent_channels": variant.latent_channels,
                "fourier_bands": variant.fourier_bands,
                "num_parameters": variant.num_parameters,
                "reconstruction": variant.reconstruction,
                "paper": RECONSTRUCTION.get((variant.latent_channels, variant.fourier_bands > 0)),
            }
            for variant in variants
        ],
        "steps": [
            {"before": labels[step.before], "after": labels[step.after], "difference": step.difference}
            for step in steps
        ],
    }
    return write_report(directory, "autoencoder", data, pictures, cards=[Card("autoencoder", 60)])


def find_detail(picture: np.ndarray, size: int = CROP) -> tuple[int, int]:
    """Return the corner (y, x) of the window of `size` px per side that has the most fine detail (energy of the
    Laplacian) in a picture, uint8 (H, W, 3).
    """
    energy = scipy.ndimage.laplace(picture.astype(float).mean(-1)) ** 2
    size = min(size, *picture.shape[:2])
    sums = scipy.ndimage.uniform_filter(energy, size, mode="constant")
    half = size // 2
    inner = sums[half : half + picture.shape[0] - size + 1, half : half + picture.shape[1] - size + 1]
    y, x = np.unravel_index(int(np.argmax(inner)), inner.shape)
    return int(y), int(x)
