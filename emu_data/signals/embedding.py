"""The image embedding that several signals share: open_clip's, computed once per picture.

An `Encoder` names the weights; `embed` returns the embeddings of a batch and keeps them on the samples, so that
alignment, concept, aesthetics, safety and the text probe together cost one forward pass.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from emu_data.clip_models import find_clip, load_clip
from emu_data.files import file_sha256
from emu_data.signals import LazySample

# Pictures per forward pass; smaller batches are padded, so that values do not depend on the number of pictures. On one
# core, four take as long per picture as eight or sixteen (ViT-B/32), and waste less on padding; 64 is chosen here and
# was not tried.
BATCH = {"cpu": 4, "cuda": 64}
# Increase it when clip_models loads the same name differently. 2: with the activation that the tag specifies.
LOADING = 2
FOLDS_FILE = "folds.parquet"  # key, fold: the model in fold_N/ was trained without the pairs of fold N


@dataclass(frozen=True)
class Encoder:
    """open_clip weights.

    Args:
        model: a source for clip_models.find_clip, with absolute paths: a folder (open_clip_config.json and
            open_clip_model.safetensors), or an open_clip name with a file of weights or, if it may be downloaded, with
            its tag (NAME@TAG).
    """

    model: str

    def settings(self) -> Any:
        """What embeddings depend on: the digests of the files, and the name and tag that say how they are loaded."""
        source = find_clip(self.model)
        digests = {file.name: digest(file) for file in source.files()}
        if not source.name:
            return digests
        return {"name": source.name, "tag": source.tag, "loading": LOADING, "files": list(digests.values())}

    @property
    def label(self) -> str:
        """A name for people: without the path's folders."""
        return find_clip(self.model).label


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
        """Return unit vectors, float32 (T, D); (0, 1) without texts."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), 256):
                tokens = self.tokenizer(list(texts[start : start + 256])).to(self.device)
                parts.append(self.network.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


@cache
def load_encoder(encoder: Encoder) -> Embedder:
    """Load an encoder, once for all signals of this process."""
    return Embedder(encoder)


def embed(encoder: Encoder, samples: Sequence[LazySample], mirrored: bool = False) -> np.ndarray:
    """Return unit vectors, float32 (N, D), of the samples' pictures, or of their mirror images."""
    embedder = load_encoder(encoder)
    missing = [sample for sample in samples if (encoder, mirrored) not in sample.embeddings]
    if missing:
        images = [sample.image for sample in missing]
        start = time.perf_counter()
        vectors = embedder.images([ImageOps.mirror(image) for image in images] if mirrored else images)
        seconds = (time.perf_counter() - start) / len(missing)
        for sample, vector in zip(missing, vectors, strict=True):
            sample.embeddings[encoder, mirrored] = vector
            sample.seconds["embedding"] += seconds
    return np.stack([sample.embeddings[encoder, mirrored] for sample in samples])


def shared_encoder(model: str) -> Encoder:
    """Return a single encoder for uses that need one space for all pictures: the model itself, or its first fold."""
    folder = Path(model)
    return Encoder(str(folder / "fold_0") if (folder / FOLDS_FILE).is_file() else model)


def digest(file: Path) -> str:
    """Return a file's SHA-256, computed again only when its size or time changes."""
    status = file.stat()
    return _digest(str(file), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(file: str, _size: int, _time: int) -> str:
    return file_sha256(Path(file))
