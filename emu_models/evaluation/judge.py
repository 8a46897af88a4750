"""The judge: an open_clip model that compares pictures with captions, and that filtering never used.

By default it is the small model that `emu_models.judge_training` trains on the rows that passed the gates; any
open_clip folder or name can take its place. A small judge knows only its corpus, so reports show its rates beside those
for real pictures, and its decisions beside its error on known pairs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from emu_data.clip_models import ClipSource, find_clip, load_clip
from emu_data.files import file_sha256, fingerprint

if TYPE_CHECKING:
    import torch

BATCH_SIZE = 64  # fixed, since the last bits of embeddings change with the batch; chosen here


@dataclass(frozen=True)
class Judge:
    """A loaded open_clip model. name: which one, for the reports. transform, tokenize: see clip_models.ClipModel."""

    name: str
    model: Any
    transform: Callable[[Image.Image], "torch.Tensor"]
    tokenize: Callable[[list[str]], "torch.Tensor"]

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Return the embeddings of uint8 (N, H, W, 3) pictures, float32 (N, D), rows of length 1. Raises ValueError for
        other arrays."""
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
        """Return the embeddings of N captions, float32 (N, D), rows of length 1."""
        import torch

        batches = [captions[start : start + BATCH_SIZE] for start in range(0, len(captions), BATCH_SIZE)]
        with torch.inference_mode():
            parts = [self.model.encode_text(self.tokenize(list(batch)), normalize=True) for batch in batches]
        return torch.cat(parts).float().numpy()


def load_faithfulness_judge(folder: Path, root: Path) -> tuple[Judge, dict[str, Any]]:
    """Return the judge in data/models/faithfulness_judge, and its `judge_error` (known_pairs.JudgeError) as plain
    values.

    root: the project, to which paths of given weights are relative. Raises ValueError if there is no judge, or its
    weights have changed since its error was measured.
    """
    error, meta = read_judge_error(folder), json.loads((folder / "meta.json").read_text())
    if not (weights := meta["weights"]):
        return load_judge(folder), error
    if digest_weights(weights, root) != meta["weights_digest"]:
        raise ValueError(f"{weights} has changed since the judge's error was measured: materialise {folder.name} again")
    return load_judge(find_clip(weights, root)), error


def is_trained_here(folder: Path) -> bool:
    """Whether the judge of a folder was trained on the corpus, so that it knows only the corpus's captions."""
    return not json.loads((folder / "meta.json").read_text())["weights"]


def read_judge_error(folder: Path) -> dict[str, Any]:
    """Return a judge's error on known pairs from its folder. Raises ValueError if there is no judge."""
    meta = folder / "meta.json"
    if not meta.is_file():
        raise ValueError(f"{folder} is not a judge: it lacks meta.json; materialise faithfulness_judge first")
    return json.loads(meta.read_text())["judge_error"]


def digest_weights(weights: str, root: Path) -> str:
    """Return a fingerprint of weights that params name: of their files' bytes, or of a name without files."""
    source = find_clip(weights, root)
    return fingerprint([source.name, source.tag, [(file.name, file_sha256(file)) for file in source.files()]])


def load_judge(source: ClipSource | Path) -> Judge:
    """Load a judge by `clip_models.load_clip`; raises what that raises."""
    found = find_clip(source) if isinstance(source, Path) else source
    loaded = load_clip(str(found))
    return Judge(found.label, loaded.network, loaded.transform, loaded.tokenize)
