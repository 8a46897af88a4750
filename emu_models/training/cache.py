"""Caches of what is encoded once and read at every step: the autoencoder's moments and text features.

A cache is a folder named after a hash of the encoder: its weights and its code. It holds shards of a thousand rows,
safetensors with the rows' digests (of the picture's bytes and size, of the caption) in their headers. Only rows whose
digest is in no shard are encoded, so no row can get a stale value, and an interrupted build continues at the next
shard. Shards are read as memory maps: unused rows stay on disk.

Moments (mean, log variance) are kept, not samples, since a sampled latent would fix its noise. Moments and text tokens
are kept in half precision, whose rounding (1 / 2048) is far below the latents' own noise.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from emu_data.files import atomic_file
from emu_data.samples import DECODING
from emu_models.device import autocast_on_gpu, choose_device, lend
from emu_models.latent.autoencoder.network import Moments
from emu_models.latent.checkpoints import AnyAutoencoder, AnyTextEncoder
from emu_models.memory import Batches
from emu_models.text import TextFeatures, list_text_encoders, load_text_encoders
from emu_models.training.distributed import ALONE, World
from emu_models.training.identity import hash_weights_at
from emu_models.training.rows import PictureRows

ENCODE_BATCH = 64  # pictures or captions at a time; fixed, since bytes change with the batch; chosen here
ROWS_PER_SHARD = 1024  # a multiple of ENCODE_BATCH; 1 GB of 16-channel moments at 1024 px; chosen here
OPEN_SHARDS = 256  # memory maps kept open; chosen here
HALVED = ("mean", "logvar", "tokens")  # tensors kept in half precision


def hash_weights(module: nn.Module) -> str:
    """Return a SHA-256 of the names and values of a module's state, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bf16
    return digest.hexdigest()


def hash_all(*parts: str | bytes) -> str:
    """Return 128 bits of a SHA-256 of the parts, as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


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


@dataclass(frozen=True)
class CachedRows:
    """Rows in shards: row i is row row_N[i] of shards[shard_N[i]]."""

    shards: tuple[Path, ...]
    shard_N: np.ndarray
    row_N: np.ndarray

    def __len__(self) -> int:
        return len(self.row_N)

    def subset(self, index: np.ndarray) -> Self:
        """Return the rows at `index`, int64 (n,), in that order; nothing is read."""
        return type(self)(self.shards, self.shard_N[index], self.row_N[index])

    def read(self, index_B: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the rows at `index_B`, int64 (B,), in their stored precision; they must have one
        shape.
        """
        shard_B, row_B = self.shard_N[index_B.numpy()], torch.from_numpy(self.row_N[index_B.numpy()])
        found: dict[str, Tensor] = {}
        for shard in np.unique(shard_B):
            places = torch.from_numpy(np.flatnonzero(shard_B == shard))
            for name, stored in _open_shard(self.shards[shard]).items():
                values = stored[row_B[places]]
                if len(places) == len(index_B):  # all from one shard, as in a small set: no second copy
                    found[name] = values
                    continue
                if name not in found:
                    found[name] = values.new_empty(len(index_B), *values.shape[1:])
                found[name][places] = values
        return found


@dataclass(frozen=True)
class CachedMoments(CachedRows):
    """Moments of latents in a cache on disk."""

    def select(self, index_B: Tensor) -> Moments:
        """Return the moments of the rows at `index_B`, int64 (B,): (B, C, h, w) in fp32; the rows must have one
        shape."""
        found = self.read(index_B)
        return Moments(found["mean"].float(), found["logvar"].float())


@dataclass(frozen=True)
class CachedText(CachedRows):
    """Text features in a cache on disk."""

    def select(self, index_B: Tensor) -> TextFeatures:
        """Return the features of the rows at `index_B`, int64 (B,), in half precision, so that the larger part of a
        batch has half its size when it is copied and sent to the device."""
        found = self.read(index_B)
        return TextFeatures(found["tokens"], found["mask"], found["pooled"])


@torch.no_grad()
def encode_moments(autoencoder: AnyAutoencoder, rows: PictureRows, folder: Path, world: World = ALONE) -> CachedMoments:
    """Return the moments (C, h, w) of each row's picture at the size of its bucket; those in `folder` are not encoded
    again."""
    sizes = [rows.bucket_sizes[bucket] for bucket in rows.bucket_N]
    digests = [hash_all(d, f"{width}x{height}") for d, (width, height) in zip(rows.digests, sizes, strict=True)]

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

    code = (_code_of(autoencoder), inspect.getsource(PictureRows), str(DECODING))
    cache = folder / hash_all(hash_weights(autoencoder), *code)
    return CachedMoments(*_fill(cache, digests, rows.bucket_N, encode, world))


def encode_captions(
    captions: list[str], encoders: AnyTextEncoder, num_tokens: int, folder: Path, world: World = ALONE
) -> tuple[CachedText, TextFeatures]:
    """Return the features of N captions and of the empty prompt (1 row); those in `folder` are not encoded again."""
    texts = [*captions, ""]

    def encode(index: np.ndarray) -> dict[str, Tensor]:
        features = encode_texts([texts[i] for i in index], encoders, num_tokens)
        return {"tokens": features.tokens_BLD, "mask": features.mask_BL, "pooled": features.pooled_BD}

    weights = [hash_weights(model) for model in encoders.models]
    vocabularies = [json.dumps(sorted(tokenizer.get_vocab().items())) for tokenizer in encoders.tokenizers]
    cache = folder / hash_all(*weights, *vocabularies, _code_of(encoders), encoders.settings, str(num_tokens))
    shards, shard_N, row_N = _fill(cache, [hash_all(t) for t in texts], np.zeros(len(texts), int), encode, world)
    every = CachedText(shards, shard_N, row_N)
    return CachedText(shards, shard_N[:-1], row_N[:-1]), every.select(torch.tensor([len(captions)]))


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

    with lend(device, *encoders.models):
        return TextFeatures.cat(Batches("encoding captions", ENCODE_BATCH, device).run(encode, len(texts)))


def _code_of(encoder: AnyAutoencoder | AnyTextEncoder) -> str:
    return inspect.getsource(inspect.getmodule(type(encoder)) or type(encoder))


def _fill(
    folder: Path,
    digests: Sequence[str],
    group_N: np.ndarray,
    encode: Callable[[np.ndarray], dict[str, Tensor]],
    world: World,
) -> tuple[tuple[Path, ...], np.ndarray, np.ndarray]:
    """Encode the rows whose digests are in no shard, equal ones once, and return the arguments of CachedRows.

    A shard holds rows of one group (shape). Each process encodes every world.size-th shard.
    """
    known = _index(folder)
    missing: dict[int, dict[str, int]] = {}
    for position, (digest, group) in enumerate(zip(digests, group_N, strict=True)):
        if digest not in known:
            missing.setdefault(int(group), {}).setdefault(digest, position)
    chunks = [
        list(rows.items())[start : start + ROWS_PER_SHARD]
        for _, rows in sorted(missing.items())
        for start in range(0, len(rows), ROWS_PER_SHARD)
    ]
    world.wait()  # all processes look for missing rows before one of them writes
    for chunk in chunks[world.rank :: world.size]:
        names = [digest for digest, _ in chunk]
        tensors = encode(np.array([position for _, position in chunk]))
        kept = {name: t.half() if name in HALVED else t for name, t in tensors.items()}
        with atomic_file(folder / f"{hash_all(*names)}.safetensors") as partial:
            save_file({n: t.cpu().contiguous() for n, t in kept.items()}, partial, {"rows": json.dumps(names)})
    world.wait()
    known = _index(folder) if chunks else known
    shards = tuple(sorted({path for path, _ in known.values()}))
    numbers = {path: i for i, path in enumerate(shards)}
    places = [known[digest] for digest in digests]
    return shards, np.array([numbers[path] for path, _ in places]), np.array([row for _, row in places])


def _index(folder: Path) -> dict[str, tuple[Path, int]]:
    """Return digest -> (shard, row), from the shards' headers."""
    known = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        with safe_open(path, "pt") as shard:
            known |= {digest: (path, row) for row, digest in enumerate(json.loads(shard.metadata()["rows"]))}
    return known


@lru_cache(maxsize=OPEN_SHARDS)
def _open_shard(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a shard as views of its memory map."""
    with safe_open(path, "pt") as shard:
        return {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)


def to_tensor(images_NHWC: np.ndarray) -> Tensor:
    """Convert uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x_NCHW: Tensor) -> np.ndarray:
    """Convert float (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3), clipped."""
    return ((x_NCHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
