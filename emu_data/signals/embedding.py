"""The image embedding that several signals look at: open_clip's, computed once a picture.

An `Encoder` names the weights; `embed` hands out the embeddings of a batch and keeps them on the records, so that
alignment, concept, aesthetics, safety and the text probe cost one forward pass together.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from emu_data.clip_models import load_clip
from emu_data.files import file_sha256
from emu_data.signals import Record

# Pictures a forward pass, padded to it, so that values do not depend on their neighbours' number. On one core four are
# as fast a picture as eight or sixteen (ViT-B/32), and less is padding; the GPU's is chosen here and not run.
BATCH = {"cpu": 4, "cuda": 64}
FOLDS_FILE = "folds.parquet"  # key, fold: the model in fold_N/ was trained without the pairs of fold N


@dataclass(frozen=True)
class Encoder:
    """open_clip weights.

    Args:
        model: a folder (open_clip_config.json and open_clip_model.safetensors), or an open_clip name with its tag,
            NAME@TAG, where the network allows it.
    """

    model: str

    def settings(self) -> Any:
        """What embeddings depend on: the digests of the files, or the name."""
        folder = Path(self.model)
        if not folder.is_dir():
            return self.model
        return {file.name: digest(file) for file in sorted(folder.glob("open_clip_*"))}


class Embedder:
    """An encoder in memory."""

    def __init__(self, encoder: Encoder):
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_clip(encoder.model)
        self.network, self.preprocess = loaded.network.to(self.device), loaded.transform
        self.tokenizer = loaded.tokenize

    def images(self, batch: Sequence[Any]) -> np.ndarray:
        """Return unit vectors, float32 (N, D), of RGB pictures."""
        import torch

        parts, size = [], BATCH[self.device]
        for start in range(0, len(batch), size):
            pixels = [self.preprocess(image) for image in batch[start : start + size]]
            num = len(pixels)
            pixels += [torch.zeros_like(pixels[0])] * (size - num)
            with torch.inference_mode():
                features = self.network.encode_image(torch.stack(pixels).to(self.device), normalize=True)
            parts.append(features.float().cpu().numpy()[:num])
        return np.concatenate(parts)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (T, D); (0, 1) of no text."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), 256):
                tokens = self.tokenizer(list(texts[start : start + 256])).to(self.device)
                parts.append(self.network.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


@cache
def load_encoder(encoder: Encoder) -> Embedder:
    """Return the encoder in memory, the same one for all signals of this process."""
    return Embedder(encoder)


def embed(encoder: Encoder, records: Sequence[Record], mirrored: bool = False) -> np.ndarray:
    """Return unit vectors, float32 (N, D), of the records' pictures, or of their mirror images."""
    embedder = load_encoder(encoder)
    missing = [record for record in records if (encoder, mirrored) not in record.embeddings]
    if missing:
        images = [record.image for record in missing]
        start = time.perf_counter()
        vectors = embedder.images([ImageOps.mirror(image) for image in images] if mirrored else images)
        seconds = (time.perf_counter() - start) / len(missing)
        for record, vector in zip(missing, vectors, strict=True):
            record.embeddings[encoder, mirrored] = vector
            record.seconds["embedding"] += seconds
    return np.stack([record.embeddings[encoder, mirrored] for record in records])


def shared_encoder(model: str) -> Encoder:
    """Return the one encoder of a model for what needs one space for all pictures: itself, of folds the first."""
    folder = Path(model)
    return Encoder(str(folder / "fold_0") if (folder / FOLDS_FILE).is_file() else model)


def digest(file: Path) -> str:
    """Return a file's SHA-256, computed again only when its size or time changes."""
    status = file.stat()
    return _digest(str(file), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(file: str, _size: int, _time: int) -> str:
    return file_sha256(Path(file))
