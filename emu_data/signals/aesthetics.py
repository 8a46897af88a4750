"""How appealing a picture looks: a head on the shared embedding that learned from votes or, without a head, a plain
measure of how rich the picture looks.

The paper gates on an aesthetic score (section 3.3, threshold not given). A head is one affine map of the unit
embedding: fitted to this project's votes (`fit_head`), or any LAION-style predictor by its path. Without one,
`aesthetics` is `richness`, the mean of colourfulness, contrast and sharpness; no report calls it an aesthetic score.
Colourfulness: Hasler and Süsstrunk, "Measuring colourfulness in natural images" (2003), metric M3 of section 7.
Each part is centred and scaled by the constants below, taken on the demo's undamaged pictures, so that 0 is an
ordinary picture of the demo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from typing_extensions import override

from emu_data.files import atomic_file
from emu_data.signals import Columns, LazySample, Measure, Signal
from emu_data.signals.embedding import Encoder, digest, embed, load_encoder

SIDE = 128  # px to which pictures are resized, so that sharpness is comparable across sizes; chosen here
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the ridge, of which leave-one-out error picks one; chosen here
MIN_VOTED = 10  # pictures with votes that a head is fitted to; chosen here

# (mean, standard deviation) of the parts over the demo corpus; chosen here, 2026-11-23.
NORMS = {"colourfulness": (81.0, 33.0), "contrast": (58.0, 16.0), "sharpness": (6.1, 2.4)}


@dataclass(frozen=True)
class AestheticsSignal(Signal):
    """`aesthetics`, in the head's own units, or `richness` without a head; `richness`, the mean of the three parts in
    standard deviations; and the parts, in 8-bit grey levels.

    Args:
        head: a .safetensors of `fit_head`, or a LAION-style predictor (.pth or .safetensors, linear layers).
        encoder: the one whose embeddings the head was fitted to; required with a head.
    """

    head: str | None = None
    encoder: Encoder | None = None

    name: ClassVar = "aesthetics"
    revision: ClassVar = 2
    columns: ClassVar = {
        "aesthetics": "Float64",
        "richness": "Float64",
        "colourfulness": "Float64",
        "contrast": "Float64",
        "sharpness": "Float64",
    }
    sees: ClassVar = 2 * SIDE  # of the short side; a head sees what the embedding does, more
    milliseconds: ClassVar = 5.0

    def __post_init__(self) -> None:
        if self.head is not None and self.encoder is None:
            raise ValueError("an aesthetics head needs the encoder whose embeddings it was fitted to")

    @override
    def settings(self) -> Any:
        """Return the digest of the head and the encoder's settings; None without a head."""
        if self.head is None or self.encoder is None:
            return None
        return {"head": digest(Path(self.head)), "encoder": self.encoder.settings()}

    @property
    @override
    def needs_embedding(self) -> bool:
        """Whether there is a head, which scores the shared embedding."""
        return self.head is not None

    @override
    def describe(self) -> str:
        """Return what scores the picture, in a few words."""
        if self.head is None:
            return "plain richness (colourfulness, contrast, sharpness), no learned score"
        return f"the head {Path(self.head).name} on the image embedding"

    @override
    def load(self) -> Measure:
        """Load the head and its encoder; without a head, nothing is loaded. What is returned raises ValueError if the
        head was fitted to another encoder.
        """
        if self.head is None or self.encoder is None:
            return measure_richness
        weight_D, bias = read_head(Path(self.head))
        encoder = self.encoder
        load_encoder(encoder)

        def measure(batch: Sequence[LazySample]) -> Columns:
            vectors = embed(encoder, batch)
            if vectors.shape[1] != len(weight_D):
                raise ValueError(
                    f"{self.head} takes {len(weight_D)} dimensions, but the embedding has {vectors.shape[1]}: name the "
                    "encoder that the head was fitted to"
                )
            scores = [float(vector.astype(np.float64) @ weight_D + bias) for vector in vectors]
            return {**measure_richness(batch), "aesthetics": scores}

        return measure


def measure_richness(batch: Sequence[LazySample]) -> Columns:
    """Return the columns of AestheticsSignal, without a head."""
    columns: Columns = {name: [] for name in AestheticsSignal.columns}
    for sample in batch:
        image = sample.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        rgb = np.asarray(image, np.float64)
        red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
        red_green, yellow_blue = red - green, (red + green) / 2 - blue
        spread = np.hypot(red_green.std(), yellow_blue.std())
        centre = np.hypot(red_green.mean(), yellow_blue.mean())
        luma = np.asarray(image.convert("L"), np.float64)
        parts = {
            "colourfulness": float(spread + 0.3 * centre),
            "contrast": float(luma.std()),
            "sharpness": float(np.hypot(np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1]).mean()),
        }
        scaled = [(parts[name] - mean) / deviation for name, (mean, deviation) in NORMS.items()]
        columns["richness"].append(float(np.mean(scaled)))
        columns["aesthetics"].append(columns["richness"][-1])
        for name, value in parts.items():
            columns[name].append(value)
    return columns


def read_head(path: Path) -> tuple[np.ndarray, float]:
    """Return a head as one affine map: weight float64 (D,) and bias.

    Takes a chain of linear layers in the order of their numbers (LAION's improved predictor: `layers.0.weight`, …;
    between them it has only dropout, so that the chain is one map), or one layer (`weight`, `bias`). Raises
    ValueError for anything else. Nothing is unpickled.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: params.yaml names it as the aesthetics head")
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        state: Mapping[str, np.ndarray] = load_file(path)
    else:
        import torch

        state = {
            name: tensor.float().numpy()
            for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items()
        }
    names = [name.removesuffix("weight") for name in state if name.endswith("weight")]
    names.sort(key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
    if not names or any(state[f"{name}weight"].ndim != 2 or f"{name}bias" not in state for name in names):
        raise ValueError(f"{path} is not a chain of linear layers: it holds {sorted(state)}")
    weight, bias = np.eye(state[f"{names[0]}weight"].shape[1]), np.zeros(state[f"{names[0]}weight"].shape[1])
    for name in names:
        layer = state[f"{name}weight"].astype(np.float64)
        if layer.shape[1] != len(weight):
            raise ValueError(f"{path}: {name}weight is {layer.shape}, after a layer of {len(weight)} outputs")
        weight, bias = layer @ weight, layer @ bias + state[f"{name}bias"].astype(np.float64)
    if len(weight) != 1:
        raise ValueError(f"{path} gives {len(weight)} numbers per picture; a score is one number")
    return weight[0], float(bias[0])


def fit_head(embeddings_ND: np.ndarray, scores_N: np.ndarray, path: Path) -> float:
    """Fit a ridge from unit embeddings to scores (such as the share of raters who kept the picture), write it to `path`
    (.safetensors), and return its leave-one-out R² (1 is perfect, 0 no better than the mean). Raises ValueError for
    fewer than MIN_VOTED pictures, or equal scores.
    """
    from safetensors.numpy import save
    from sklearn.linear_model import RidgeCV

    assert len(embeddings_ND) == len(scores_N), (len(embeddings_ND), len(scores_N))
    if len(scores_N) < MIN_VOTED or np.ptp(scores_N) == 0:
        raise ValueError(
            f"an aesthetics head needs votes on at least {MIN_VOTED} pictures that differ; there are {len(scores_N)} "
            "pictures with votes: collect more"
        )
    ridge = RidgeCV(alphas=PENALTIES, store_cv_results=True).fit(embeddings_ND.astype(np.float64), scores_N)
    weights = {"weight": np.asarray(ridge.coef_, np.float32)[None], "bias": np.array([ridge.intercept_], np.float32)}
    with atomic_file(path) as temporary:
        temporary.write_bytes(save(weights))
    chosen = list(PENALTIES).index(float(ridge.alpha_))  # type: ignore[arg-type]
    errors = ridge.cv_results_[:, chosen]
    return float(1 - errors.mean() / np.var(scores_N))
