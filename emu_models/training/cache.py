"""What is encoded once and read at every step: moments of the autoencoder and text features.

An entry is keyed by a hash of the encoder's weights and of everything that was encoded, so another encoder or another
row is another entry and a stale value cannot be served. Moments (mean, log variance) are kept, not samples: a sampled
latent bakes its noise in.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emu_data.files import atomic_file
from emu_models.autoencoder.network import Autoencoder, Moments
from emu_models.text import TextEncoders, TextFeatures, encode_prompts

ENCODE_BATCH = 64  # pictures or captions at a time; fixed, since bytes change with the batch


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over names and values of a module's state, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy knows no bf16
    return digest.hexdigest()


def _cached(folder: Path, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    path = folder / f"{key[:32]}.safetensors"
    if not path.is_file():
        tensors = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            save_file(tensors, partial)
    return load_file(path)


@torch.no_grad()
def encode_moments(autoencoder: Autoencoder, images_NHWC: np.ndarray, folder: Path) -> Moments:
    """Moments (N, C, h, w) of uint8 pictures (N, H, W, 3), on the CPU, from `folder` where computed before."""

    def compute() -> dict[str, Tensor]:
        parts = [
            autoencoder.encode(to_tensor(images_NHWC[i : i + ENCODE_BATCH]).to(autoencoder.device))
            for i in range(0, len(images_NHWC), ENCODE_BATCH)
        ]
        return {
            "mean": torch.cat([p.mean for p in parts]).cpu().contiguous(),
            "logvar": torch.cat([p.logvar for p in parts]).cpu().contiguous(),
        }

    digest = hashlib.sha256(hash_weights(autoencoder).encode())
    digest.update(repr(images_NHWC.shape).encode())
    digest.update(np.ascontiguousarray(images_NHWC).tobytes())
    tensors = _cached(folder, digest.hexdigest(), compute)
    return Moments(tensors["mean"], tensors["logvar"])


def encode_captions(
    captions: list[str], encoders: TextEncoders, num_tokens: int, folder: Path
) -> tuple[TextFeatures, TextFeatures]:
    """Features of the captions (N rows) and of the empty prompt (1 row), from `folder` where computed before."""

    def compute() -> dict[str, Tensor]:
        texts = [*captions, ""]
        features = TextFeatures.cat(
            [
                encode_prompts(texts[i : i + ENCODE_BATCH], encoders, num_tokens)
                for i in range(0, len(texts), ENCODE_BATCH)
            ]
        )
        return {"tokens": features.tokens_BLD, "mask": features.mask_BL, "pooled": features.pooled_BD}

    digest = hashlib.sha256("".join(hash_weights(model) for model in encoders.models).encode())
    digest.update(repr((num_tokens, captions)).encode())
    tensors = _cached(folder, digest.hexdigest(), compute)
    features = TextFeatures(tensors["tokens"], tensors["mask"], tensors["pooled"])
    last = torch.tensor([len(captions)])
    return features.select(torch.arange(len(captions))), features.select(last)


def to_tensor(images_NHWC: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x_NCHW: Tensor) -> np.ndarray:
    """float (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3), clipped."""
    return ((x_NCHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
