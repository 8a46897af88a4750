"""Caches of what is encoded once and read at every step: the autoencoder's moments and text features.

A cache is a folder named after a hash of the encoder: its weights and its code. It knows rows by digests (of the
picture's bytes and size, of the caption), so no row can get a stale value; stored.py says how they are stored. Where a
cache does not pay (emu_models.cost.encoding), rows are encoded whenever they are read, by the same functions.

Moments (mean, log variance) are kept, not samples, since a sampled latent would fix its noise. Moments and text tokens
are kept in half precision, whose rounding (1 / 2048) is far below the latents' own noise.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emu_data.samples import DECODING
from emu_models.budget import ENCODE_BATCH
from emu_models.checkpoints import AnyAutoencoder, AnyTextEncoder
from emu_models.device import autocast_on_gpu, choose_device, lend, precision_on
from emu_models.latent.autoencoder.network import Moments
from emu_models.memory import Batches
from emu_models.text import TextFeatures, list_text_encoders, load_text_encoders
from emu_models.training.distributed import ALONE, World
from emu_models.training.identity import hash_all, hash_weights_at
from emu_models.training.parts import ROWS_PER_BLOCK
from emu_models.training.row_file import Texts
from emu_models.training.rows import PictureRows, crop
from emu_models.training.stored import NUM_BYTES, CachedMoments, CachedText, fill


def hash_weights(module: nn.Module) -> str:
    """Return a SHA-256 of the names and values of a module's state, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bf16
    return digest.hexdigest()


def hash_text_encoder(name: str) -> str:
    """Return a digest of a text encoder and its vocabulary. name: a folder, or a name on a hub."""
    if Path(name).is_dir():
        return hash_weights_at(Path(name))
    encoders = load_text_encoders(name)
    return hash_all(hash_weights(encoders.models[0]), json.dumps(sorted(encoders.tokenizers[0].get_vocab().items())))


@lru_cache(maxsize=1)
def hash_packaged_text_encoder() -> str:
    """Return the digest of the packaged encoder, 90 MB that do not change while a process runs."""
    (name,) = list_text_encoders(None)
    return hash_text_encoder(name)


def hash_text_encoders(names: str | list[str] | None) -> dict[str, str]:
    """Return text_encoder.0, … -> digest of the text encoders that params name, or of the packaged one: what the
    `contents` of a job are."""
    if names is None:
        return {"text_encoder.0": hash_packaged_text_encoder()}
    return {f"text_encoder.{i}": hash_text_encoder(name) for i, name in enumerate(list_text_encoders(names))}


@dataclass(frozen=True)
class LiveMoments:
    """Moments of latents that are encoded whenever they are read, by `encode`: row numbers -> mean, logvar."""

    encode: Callable[[np.ndarray], dict[str, Tensor]]

    @torch.no_grad()
    def select(self, index_B: Tensor) -> Moments:
        """Return the moments of the rows at `index_B`, int64 (B,): (B, C, h, w) in fp32 on the CPU; the rows must have
        one shape."""
        found = self.encode(index_B.numpy())
        return Moments(found["mean"], found["logvar"])


@dataclass(frozen=True)
class LiveText:
    """Text features that are encoded whenever they are read, by `encode`: row numbers -> tokens, mask, pooled."""

    encode: Callable[[np.ndarray], dict[str, Tensor]]

    @torch.no_grad()
    def select(self, index_B: Tensor) -> TextFeatures:
        """Return the features of the rows at `index_B`, int64 (B,), on the CPU, tokens in half precision."""
        found = self.encode(index_B.numpy())
        return TextFeatures(found["tokens"].half(), found["mask"], found["pooled"])


@torch.no_grad()
def encode_moments(
    autoencoder: AnyAutoencoder, rows: PictureRows, folder: Path | None, world: World = ALONE
) -> CachedMoments | LiveMoments:
    """Return the moments (C, h, w) of each row's picture at the size of its bucket. Those in `folder` are not encoded
    again; without a folder, rows are encoded whenever they are read."""
    device = choose_device()
    batches = Batches("encoding pictures", ENCODE_BATCH, device)

    def encode_some(pictures: np.ndarray) -> list[Moments]:
        return batches.run(
            lambda some: _moments_of(autoencoder, pictures[some.start : some.stop], device), len(pictures)
        )

    def encode(index: np.ndarray) -> dict[str, Tensor]:
        with lend(device, autoencoder):
            parts = [part for pictures in rows.read(index, ENCODE_BATCH) for part in encode_some(pictures)]
        return {"mean": torch.cat([p.mean for p in parts]), "logvar": torch.cat([p.logvar for p in parts])}

    if folder is None:
        return LiveMoments(encode)
    # A picture has other moments at another size; the salts keep the two apart.
    salts = [hashlib.sha256(f"{width}x{height}".encode()).digest()[:NUM_BYTES] for width, height in rows.bucket_sizes]
    salt_K = np.frombuffer(b"".join(salts), np.uint8).reshape(-1, NUM_BYTES)

    def digests(block: int) -> np.ndarray:
        return rows.file.numbers(block, "digest")[:, :NUM_BYTES] ^ salt_K[buckets(block)]

    def buckets(block: int) -> np.ndarray:
        numbers = np.arange(block * ROWS_PER_BLOCK, min((block + 1) * ROWS_PER_BLOCK, len(rows)))
        return rows.every.buckets_of(numbers)

    code = (_code_of(autoencoder), inspect.getsource(PictureRows.read), inspect.getsource(crop), str(DECODING))
    cache = folder / hash_all(hash_weights(autoencoder), *code)
    return CachedMoments(cache, *fill(cache, rows, digests, buckets, [], encode, world))


@torch.no_grad()
def encode_captions(
    rows: PictureRows, encoders: AnyTextEncoder, num_tokens: int, folder: Path | None, world: World = ALONE
) -> tuple[CachedText | LiveText, TextFeatures]:
    """Return the features of each row's caption, and of the empty prompt (1 row). Those in `folder` are not encoded
    again; without a folder, rows are encoded whenever they are read."""
    texts = Texts(rows.file, "caption", [""])

    def encode(index: np.ndarray) -> dict[str, Tensor]:
        features = encode_texts([texts[i] for i in index], encoders, num_tokens)
        return {"tokens": features.tokens_BLD, "mask": features.mask_BL, "pooled": features.pooled_BD}

    last = torch.tensor([len(rows)])
    if folder is None:
        return LiveText(encode), LiveText(encode).select(last)

    def digests(block: int) -> np.ndarray:
        return rows.file.numbers(block, "caption_digest")

    weights = [hash_weights(model) for model in encoders.models]
    vocabularies = [json.dumps(sorted(tokenizer.get_vocab().items())) for tokenizer in encoders.tokenizers]
    cache = folder / hash_all(*weights, *vocabularies, _code_of(encoders), encoders.settings, str(num_tokens))
    empty = hashlib.sha256(b"").digest()[:NUM_BYTES]
    device = choose_device()
    with lend(device, *encoders.models, dtype=precision_on(device)):  # once, not for every shard
        text = CachedText(cache, *fill(cache, rows, digests, lambda block: 0, [empty], encode, world))
    return text, text.select(last)


def _moments_of(autoencoder: AnyAutoencoder, images_NHWC: np.ndarray, device: torch.device) -> Moments:
    """Return the moments of pictures, on the CPU."""
    with autocast_on_gpu(device):
        found = autoencoder.encode(to_tensor(images_NHWC).to(device))
    return Moments(found.mean.float().cpu(), found.logvar.float().cpu())


@torch.no_grad()
def encode_texts(texts: list[str], encoders: AnyTextEncoder, num_tokens: int) -> TextFeatures:
    """Return the features of texts, on the CPU. The encoders are on the device only meanwhile."""
    device = choose_device()

    def encode(some: range) -> TextFeatures:
        with autocast_on_gpu(device):
            found = encoders.encode(texts[some.start : some.stop], num_tokens)
        return found.to(torch.device("cpu"))

    with lend(device, *encoders.models, dtype=precision_on(device)):
        return TextFeatures.cat(Batches("encoding captions", ENCODE_BATCH, device).run(encode, len(texts)))


def _code_of(encoder: AnyAutoencoder | AnyTextEncoder) -> str:
    return inspect.getsource(inspect.getmodule(type(encoder)) or type(encoder))


def to_tensor(images_NHWC: np.ndarray) -> Tensor:
    """Convert uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x_NCHW: Tensor) -> np.ndarray:
    """Convert float (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3), clipped."""
    return ((x_NCHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
