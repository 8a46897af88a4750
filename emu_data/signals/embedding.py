"""The image embedding that several signals share: open_clip's, computed once per picture.

An `Encoder` names the weights; `embed` returns the embeddings of a batch and keeps them on the samples, so that
alignment, concept, aesthetics, safety and the text probe together cost one forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from emu_data.clip_models import find_clip, load_clip
from emu_data.costs import Spent, in_network, spent_since, spent_so_far
from emu_data.files import file_sha256
from emu_data.signals import LazySample
from emu_data.signals.networks import GPU_BATCH, find_device, place, run_batches

# Pictures per forward pass on a CPU. On one core, four take as long per picture as eight or sixteen (ViT-B/32), and
# waste less on what fills the last batch.
CPU_BATCH = 4
TEXT_BATCH = 256  # texts per forward pass, of lists that are embedded once; chosen here
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
        self.device = find_device()
        loaded = load_clip(encoder.model)
        self.network, self.preprocess = place(loaded.network, self.device), loaded.transform
        self.tokenizer = loaded.tokenize
        self.dtype = next(self.network.parameters()).dtype

    def images(self, batch: Sequence[Any]) -> np.ndarray:
        """Return unit vectors, float32 (N, D), of RGB pictures."""
        import torch

        def forward(pixels_B3HW: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                x_B3HW = torch.from_numpy(pixels_B3HW).to(self.device, self.dtype)
                return self._unit(self.network.encode_image(x_B3HW))

        pixels = [self.preprocess(image).numpy() for image in batch]
        return np.stack(run_batches(forward, pixels, CPU_BATCH if self.device == "cpu" else GPU_BATCH, self.device))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (T, D), of a list of texts that is embedded once; (0, 1) without texts."""
        parts = [self._texts(list(texts[start : start + TEXT_BATCH])) for start in range(0, len(texts), TEXT_BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def captions(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Return unit vectors, float32 (D,), of captions that come with pictures: none depends on the others."""
        size, found = 1 if self.device == "cpu" else GPU_BATCH, []
        for start in range(0, len(captions), size):
            part = list(captions[start : start + size])
            found += list(self._texts(part + [""] * (size - len(part)))[: len(part)])
        return found

    def _texts(self, texts: list[str]) -> np.ndarray:
        import torch

        with in_network(self.device), torch.inference_mode():
            return self._unit(self.network.encode_text(self.tokenizer(texts).to(self.device)))

    @staticmethod
    def _unit(features_BD: Any) -> np.ndarray:
        import torch

        return torch.nn.functional.normalize(features_BD.float(), dim=-1).cpu().numpy()


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
        before = spent_so_far()
        vectors = embedder.images([ImageOps.mirror(image) for image in images] if mirrored else images)
        spent = spent_since(before)
        for sample, vector in zip(missing, vectors, strict=True):
            sample.embeddings[encoder, mirrored] = vector
            sample.spent["embedding"] = sample.spent.get("embedding", Spent()).plus(spent, 1 / len(missing))
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
