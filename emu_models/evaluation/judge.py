"""The judge: an open_clip model that compares pictures with captions, and that filtering never used.

The default is the small one that `emu_models.judge_training` trains on the rows that passed the gates; any open_clip
model folder, or name of one, can take its place. Small judges know only the corpus they were trained on, so every rate
from them is read against the rate for real pictures, and what they decide against their error on known pairs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from emu_data.clip_models import load_clip

if TYPE_CHECKING:
    import torch

BATCH_SIZE = 64  # fixed: embedding bits change with the batch


@dataclass(frozen=True)
class Judge:
    """A loaded open_clip model. `name` says which one, for the reports."""

    name: str
    model: Any
    transform: Callable[[Image.Image], "torch.Tensor"]
    tokenize: Callable[[list[str]], "torch.Tensor"]

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) to float32 (N, D), rows of length 1. Raises ValueError for other arrays."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"pictures must be uint8 (N, H, W, 3); got {images.dtype} {images.shape}")
        import torch

        batches = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
        with torch.inference_mode():
            parts = [
                self.model.encode_image(
                    torch.stack([self.transform(Image.fromarray(one)) for one in batch]), normalize=True
                )
                for batch in batches
            ]
        return torch.cat(parts).float().numpy()

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """N captions to float32 (N, D), rows of length 1."""
        import torch

        batches = [captions[start : start + BATCH_SIZE] for start in range(0, len(captions), BATCH_SIZE)]
        with torch.inference_mode():
            parts = [self.model.encode_text(self.tokenize(list(batch)), normalize=True) for batch in batches]
        return torch.cat(parts).float().numpy()


def load_faithfulness_judge(folder: Path, root: Path) -> tuple[Judge, dict[str, Any]]:
    """The judge of data/models/faithfulness_judge, and its `judge_error` (see known_pairs.JudgeError) as plain values.

    root: the project, from which weights that were brought along are named. Raises ValueError where there is no judge.
    """
    error, weights = read_judge_error(folder), json.loads((folder / "meta.json").read_text())["weights"]
    return load_judge(find_weights(weights, root) if weights else folder), error


def read_judge_error(folder: Path) -> dict[str, Any]:
    """What a judge's folder says of its error on known pairs. Raises ValueError where there is no judge."""
    meta = folder / "meta.json"
    if not meta.is_file():
        raise ValueError(f"{folder} is no judge: it lacks meta.json; materialise faithfulness_judge")
    return json.loads(meta.read_text())["judge_error"]


def find_weights(weights: str, root: Path) -> str | Path:
    """A folder named from `root`; or `weights` as it is, a name that open_clip knows."""
    return root / weights if (root / weights).is_dir() else weights


def load_judge(source: str | Path) -> Judge:
    """The judge of `clip_models.load_clip`, whose errors these are; named as its folder, or as `source`."""
    loaded = load_clip(source)
    name = Path(source).name if Path(source).is_dir() else str(source)
    return Judge(name, loaded.network, loaded.transform, loaded.tokenize)
