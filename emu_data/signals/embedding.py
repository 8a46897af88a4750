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

# Pictures, or captions, per forward pass on a CPU. On one core, four pictures take as long each as eight or sixteen
# (ViT-B/32), and waste less on what fills the last batch; a caption takes 33 ms in a full batch, 75 alone.
CPU_BATCH = 4
TEXT_BATCH = 256  # texts per forward pass, of lists that are embedded once; chosen here
LENGTHS = 16  # tokens; lengths of captions are multiples of it, so that they share batches; chosen here
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
        # open_clip's class CLIP; towers of other libraries pool and mask in other ways
        is_last = getattr(self.network, "text_pool_type", None) == "argmax"
        self.is_causal = is_last and getattr(self.network, "attn_mask", None) is not None

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
        parts = []
        for start in range(0, len(texts), TEXT_BATCH):
            tokens_BL = self.tokenizer(list(texts[start : start + TEXT_BATCH])).numpy()
            with in_network(self.device):
                parts.append(self._texts(tokens_BL[:, : max(self._length(row) for row in tokens_BL)]))
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def captions(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Return unit vectors, float32 (D,), of captions that come with pictures: none depends on the others."""
        tokens = [row[: self._length(row)] for row in self.tokenizer(list(captions)).numpy()] if captions else []
        return run_batches(self._texts, tokens, CPU_BATCH if self.device == "cpu" else GPU_BATCH, self.device)

    def _length(self, tokens_L: np.ndarray) -> int:
        """Return how many of a text's tokens matter. In CLIP's own text tower a token sees only those before it, and
        the last one (the largest number) stands for the text: the empty places after it, most of 77, change nothing.
        """
        if not self.is_causal:
            return len(tokens_L)
        used = int(tokens_L.argmax()) + 1
        return min(len(tokens_L), -(-used // LENGTHS) * LENGTHS)

    def _texts(self, tokens_BL: np.ndarray) -> np.ndarray:
        import torch

        text_BL, length = torch.from_numpy(tokens_BL).to(self.device), tokens_BL.shape[1]
        with torch.inference_mode():
            if not self.is_causal:
                return self._unit(self.network.encode_text(text_BL))
            shorter = {
                "positional_embedding": self.network.positional_embedding[:length],
                "attn_mask": self.network.attn_mask[:length, :length],
            }
            made = torch.func.functional_call(self.network, shorter, (), {"text": text_BL})
            return self._unit(made["text_features"] if isinstance(made, dict) else made[1])

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
