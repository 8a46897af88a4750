"""A small open_clip model trained on the corpus itself, for machines that no CLIP weights can reach.

It answers one question, whether a caption fits a picture (Emu paper, section 3.3: CLIP image-text score). For
filtering it must not have seen the pair that it judges, so one model is trained for each fold, without that
fold (data filtering networks, arXiv 2309.17425, are the precedent for training a network for the filter). The
judge of the reports is another one, trained on what passed the gates (judge_training.py).

What differs from CLIP on purpose: every picture is compared with all distinct captions of the corpus (up to
MAX_CANDIDATES), not with those of its batch, since in a small corpus several pictures share a caption; the
loss is therefore one-sided, a softmax over captions with smoothed labels (some captions are wrong: finding
them is the task). Token embeddings stay as drawn: with a few hundred captions a random, nearly orthogonal
code is all that the text tower needs, and nine tenths of the weights need no optimiser.

Folders are written in open_clip's own layout (open_clip_config.json, open_clip_model.safetensors), to be
loaded by `local-dir:FOLDER`.
"""

import dataclasses
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from emu_data.files import atomic_dir, fingerprint, link_or_copy, restore_dir, write_json, write_parquet
from emu_data.shards import read_images
from emu_models.device import choose_device
from emu_models.training.jobs import Job, run_alone

if TYPE_CHECKING:
    from emu_models.training.running import Running

FOLDS_FILE = "folds.parquet"  # key, fold: what emu_data.signals.alignment reads
MAX_CANDIDATES = 512  # captions that a picture is compared with in a step

# A picture is flipped, turned, scaled, moved and its colours are mixed, so that the few drawings of a subject
# stand for others of it. Sizes chosen here, by the out-of-fold AUC on the demo (docs/log.md).
TURN = 0.25  # radians, either way
SCALE = (0.8, 1.25)
SHIFT = 0.12  # of half a side, either way
COLOUR_MIX = 0.08  # standard deviation of the entries of the colour matrix


@dataclass(frozen=True)
class AlignmentConfig:
    """Sizes and schedule of a model; values chosen here for about 500 drawings and some ten seconds a
    model.
    """

    num_folds: int = 3
    image_size: int = 32  # px
    width: int = 16  # of the convolutional tower's first stage (open_clip's ModifiedResNet)
    embed_dim: int = 128
    text_width: int = 64
    max_tokens: int = 16  # the text tower is as long as the corpus's longest caption, up to this
    num_steps: int = 350
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    label_smoothing: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class AlignmentResult:
    """folder: of this training; its result/ holds fold_0 … and folds.parquet. losses: the mean loss of each
    model's last 20 steps."""

    folder: Path
    losses: dict[str, float]


def assign_folds(captions: Sequence[str], groups: Sequence[str], num_folds: int) -> np.ndarray:
    """Return the fold (0..num_folds-1) of each picture, int64 (N,).

    Pictures of one group (copies: see emu_data.selection.near_duplicate_groups) share a fold, so that none is
    scored by a model that saw its copy. Groups of one caption go round the folds, so that each model has seen
    every subject that the corpus shows often enough. Depends on captions and group names alone, not on the
    order.
    """
    caption_of: dict[str, str] = {}
    for caption, group in zip(captions, groups, strict=True):
        caption_of[group] = min(caption, caption_of.get(group, caption))
    members: dict[str, list[str]] = {}
    for group, caption in caption_of.items():
        members.setdefault(caption, []).append(group)
    fold_of: dict[str, int] = {}
    for caption, names in members.items():
        start = _digest(caption)
        for position, group in enumerate(sorted(names, key=_digest)):
            fold_of[group] = (start + position) % num_folds
    return np.array([fold_of[group] for group in groups], np.int64)


def train_alignment(
    images: np.ndarray,
    captions: Sequence[str],
    keys: Sequence[str],
    folds: np.ndarray,
    config: AlignmentConfig,
    states: Path,
    code: str = "",
    progress: bool = True,
) -> AlignmentResult:
    """Train fold_0 … (each without its fold), in a folder of their own below `states`.

    Args:
        images: uint8 (N, H, W, 3), square.
        captions, keys: N each.
        folds: int (N,) from `assign_folds`.
        states: the folder in which each training has one, named by the pairs, folds, config and code that decide it:
            another one is made beside, and what is there is found again.
        code: names the code that trains.
    A model that stands is kept: an interrupted training goes on with the next. result/ stands when all are whole. Uses
    CUDA where there is one.
    """
    num_images = len(images)
    if not num_images == len(captions) == len(keys) == len(folds):
        raise ValueError("images, captions, keys and folds must be equally many")
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be uint8 (N, S, S, 3), not {images.dtype} {images.shape}")
    captions = list(captions)
    contents = {"rows": _hash_pairs(images, captions, keys, folds), "code": code}
    settings = {"name": "alignment_model", "spec": dataclasses.asdict(config)}
    identity = fingerprint([settings, contents])
    jobs = [(f"fold_{fold}", np.flatnonzero(folds != fold)) for fold in range(config.num_folds)]
    for name, rows in jobs:
        if not rows.size:
            raise ValueError(f"{name} has no picture to learn from: fewer folds, or more pictures")
    folder = Path(states) / identity
    restore_dir(folder / "result")
    write_json(folder / "identity.json", {"settings": settings, "contents": contents})
    waiting = [job for job in jobs if not any(_read_meta(folder / part / job[0]) for part in ("result", "state"))]
    bar = tqdm(
        total=len(waiting) * config.num_steps,
        desc="alignment models",
        unit="step",
        disable=not progress or not waiting,
        file=sys.stderr,
    )
    for name, rows in waiting:
        bar.set_postfix_str(name)
        network, loss = train_network(images[rows], [captions[i] for i in rows], config, bar)
        with atomic_dir(folder / "state" / name) as partial:
            save_network(network, config, partial)
            write_json(partial / "meta.json", {"num_images": len(rows), "loss": round(loss, 4), "config": config})
    bar.close()
    if not (folder / "result").is_dir():
        with atomic_dir(folder / "result") as partial:
            for name, _ in jobs:
                shutil.copytree(folder / "state" / name, partial / name, copy_function=link_or_copy)
            write_parquet(partial / FOLDS_FILE, pd.DataFrame({"key": list(keys), "fold": folds.astype(np.int64)}))
            write_json(partial / "meta.json", {"name": "alignment_model", "identity": identity})
    return AlignmentResult(folder, {name: _read_meta(folder / "result" / name)["loss"] for name, _ in jobs})


@dataclass(frozen=True, kw_only=True)
class AlignmentJob(Job):
    """Alignment models, a fold each. rows: also with a column group, whose pictures share a fold."""

    config: AlignmentConfig

    @property
    def num_steps(self) -> int:
        return self.config.num_folds * self.config.num_steps

    def run(self, running: "Running") -> dict[str, Any]:
        """They are small: one process trains them and the others wait."""
        return run_alone(self._train, running)

    def _train(self) -> dict[str, Any]:
        table = pd.read_parquet(self.rows)
        keys, captions = table["key"].tolist(), table["caption"].tolist()
        images = read_images(self.shards, keys, self.config.image_size)
        folds = assign_folds(captions, table["group"].tolist(), self.config.num_folds)
        result = train_alignment(images, captions, keys, folds, self.config, self.states, self.code)
        losses = {f"loss_{name}": loss for name, loss in result.losses.items()}
        return self.reported(result.folder, num_images=len(table), **losses)


def _hash_pairs(images: np.ndarray, captions: list[str], keys: Sequence[str], folds: np.ndarray) -> str:
    texts = fingerprint([captions, list(keys), folds.tolist(), images.shape]).encode()
    return hashlib.sha256(images.tobytes() + texts).hexdigest()[:32]


def train_network(
    images: np.ndarray, captions: Sequence[str], config: AlignmentConfig, bar: Any
) -> tuple[torch.nn.Module, float]:
    """Train one model on uint8 (N, S, S, 3) pictures with N captions; `bar.update()` is called every step.

    Return the trained network (eval mode, CPU) and its mean loss over the last 20 steps.
    """
    from open_clip.tokenizer import SimpleTokenizer

    device = choose_device()
    distinct = sorted(set(captions))
    tokens_TL = SimpleTokenizer()(distinct, config.max_tokens).to(device)
    context_length = int((tokens_TL != 0).sum(dim=1).max())
    tokens_TL = tokens_TL[:, :context_length]
    with torch.random.fork_rng(devices=[]):  # the towers draw their weights from torch's global generator
        torch.manual_seed(config.seed)
        network = _build(config, context_length).to(device)
    index = {caption: row for row, caption in enumerate(distinct)}
    label_N = torch.tensor([index[caption] for caption in captions])
    pixels_NCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    size = (config.image_size, config.image_size)
    pixels_NCHW = F.interpolate(pixels_NCHW, size=size, mode="bicubic", antialias=True).clamp(-1, 1)

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    generator = torch.Generator().manual_seed(config.seed)
    recent: list[float] = []
    network.train()
    for step in range(config.num_steps):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.num_steps)
        rows = torch.randint(len(captions), (config.batch_size,), generator=generator)
        candidates, target_B = _choose_captions(label_N[rows], len(distinct), generator)
        batch_BCHW = _augment(pixels_NCHW[rows], generator).to(device, memory_format=torch.channels_last)
        image_BD = network.encode_image(batch_BCHW, normalize=True)
        text_TD = network.encode_text(tokens_TL[candidates.to(device)], normalize=True)
        logits_BT = network.logit_scale.exp() * image_BD @ text_TD.T
        loss = F.cross_entropy(logits_BT, target_B.to(device), label_smoothing=config.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        with torch.no_grad():
            network.logit_scale.clamp_(0, math.log(100))  # CLIP's own limit
        recent = [*recent[-19:], loss.item()]
        bar.update()
    assert all(map(math.isfinite, recent)), f"the loss is no number: {recent}"
    return network.eval().cpu(), float(np.mean(recent))


def _build(config: AlignmentConfig, context_length: int) -> Any:
    from open_clip.model import CLIP

    network: Any = CLIP(**_model_config(config, context_length))
    with torch.no_grad():
        # Rounded to half precision, in which they are saved.
        drawn = torch.randn_like(network.token_embedding.weight) * 0.1
        network.token_embedding.weight.copy_(drawn.half().float())
    network.token_embedding.weight.requires_grad_(False)
    return network


def _model_config(config: AlignmentConfig, context_length: int) -> dict[str, Any]:
    vision = {"image_size": config.image_size, "layers": [1, 1, 1, 1], "width": config.width, "head_width": 32}
    text = {
        "context_length": context_length,
        "vocab_size": 49408,  # open_clip's SimpleTokenizer
        "width": config.text_width,
        "heads": max(1, config.text_width // 32),
        "layers": 1,
    }
    return {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}


def save_network(network: Any, config: AlignmentConfig, folder: Path) -> None:
    """Write a trained model into `folder` in open_clip's own layout."""
    from safetensors.torch import save

    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    open_clip_config = {
        "model_cfg": _model_config(config, network.context_length),
        "preprocess_cfg": preprocess,
    }
    write_json(folder / "open_clip_config.json", open_clip_config)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"].half()
    # Not save_file, which makes files that only their owner may read.
    (folder / "open_clip_model.safetensors").write_bytes(save(state))


def _choose_captions(
    label_B: torch.Tensor, num_captions: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of the captions to compare with, int64 (T,), and each picture's place among them, int64
    (B,).
    """
    if num_captions <= MAX_CANDIDATES:
        return torch.arange(num_captions), label_B
    own, target_B = label_B.unique(return_inverse=True)
    others = torch.randperm(num_captions, generator=generator)[: MAX_CANDIDATES + len(own)]
    others = others[~torch.isin(others, own)][: MAX_CANDIDATES - len(own)]
    return torch.cat([own, others]), target_B


def _augment(x_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return pictures (values -1..1) flipped, turned, scaled, moved, on white, with their colours mixed."""
    num = len(x_BCHW)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(num, *shape, generator=generator) * (high - low) + low

    scale, angle, flip = uniform(*SCALE), uniform(-TURN, TURN), uniform(0, 1).round() * 2 - 1
    affine_B23 = torch.zeros(num, 2, 3)
    affine_B23[:, 0, 0], affine_B23[:, 0, 1] = scale * angle.cos() * flip, -scale * angle.sin()
    affine_B23[:, 1, 0], affine_B23[:, 1, 1] = scale * angle.sin() * flip, scale * angle.cos()
    affine_B23[:, :, 2] = uniform(-SHIFT, SHIFT, 2)
    grid = F.affine_grid(affine_B23, list(x_BCHW.shape), align_corners=False)
    # Less 1, so that what comes in from outside (0) is white.
    darkness = F.grid_sample(x_BCHW - 1, grid, align_corners=False)
    mix_B33 = torch.eye(3) + torch.randn(num, 3, 3, generator=generator) * COLOUR_MIX
    return torch.einsum("bij,bjhw->bihw", mix_B33, darkness) + 1


def _schedule(step: int, num_steps: int) -> float:
    """Return the factor of the learning rate: up over 20 steps, then a half cosine to 2 %."""
    return min(1.0, (step + 1) / 20) * (0.5 * (1 + math.cos(math.pi * step / num_steps)) + 0.02)


def _read_meta(folder: Path) -> Any:
    meta = folder / "meta.json"
    return json.loads(meta.read_text()) if meta.is_file() else None


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
