"""How a small open_clip model learns which caption fits a picture: its network, its batches, a step and a validation.

It differs from CLIP on purpose. Every picture is compared with all distinct captions of the corpus (up to
MAX_CANDIDATES), not with those of its batch, since in a small corpus several pictures share a caption. The loss is
therefore one-sided: a softmax over captions, with smoothed labels since some captions are wrong (finding them is the
task). Token embeddings keep their random initial values: for a few hundred captions, a random, nearly orthogonal code
is all that the text tower needs, and 90 % of the weights need no optimiser.

Folders are written in open_clip's layout (open_clip_config.json, open_clip_model.safetensors) and loaded as
`local-dir:FOLDER`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emu_data.files import write_json
from emu_models.device import choose_device
from emu_models.training.ema import copy_for_averaging
from emu_models.training.order import batch_indices, generator_for
from emu_models.training.rows import Rows

MAX_CANDIDATES = 512  # captions that a picture is compared with in a step; chosen here
MAX_VALIDATED = 1024  # held-out pictures used by a validation, evenly spread over all; chosen here
BETAS = (0.9, 0.98)  # CLIP's, for its transformers (Radford et al., arXiv 2103.00020, table of hyperparameters)
MAX_GRAD_NORM = 1.0  # chosen here
MAX_LOGIT_SCALE = 100.0  # CLIP's limit (arXiv 2103.00020, section 2.5)
VALIDATION_STREAM = 1  # of the random numbers that choose a validation's captions, the same at every validation

# Pictures are flipped, rotated, scaled and shifted, and their colours are mixed, so that the few drawings of a subject
# stand for others. Strengths chosen here, by the out-of-fold AUC on the demo (docs/log.md).
TURN = 0.25  # radians, in either direction
SCALE = (0.8, 1.25)
SHIFT = 0.12  # of half a side, in either direction
COLOUR_MIX = 0.08  # standard deviation of the entries of the colour matrix


@dataclass(frozen=True)
class AlignmentConfig:
    """The network and its batches; values chosen here for about 500 drawings and about ten seconds per model.

    width: channels of the convolutional tower's first stage (open_clip's ModifiedResNet). max_tokens: upper limit for
    the text tower's length, which is that of the corpus's longest caption. batch_size: pictures per step. seed: of
    initial weights and random draws.
    """

    width: int = 16
    embed_dim: int = 128
    text_width: int = 64
    max_tokens: int = 16
    batch_size: int = 64
    weight_decay: float = 0.1
    label_smoothing: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Pictures (B, 3, S, S) in [-1, 1], the rows of the captions to compare with (T,), and the place of each picture's
    own caption among them (B,)."""

    pictures: Tensor
    candidates_T: Tensor
    target_B: Tensor


class AlignmentLearner:
    """An open_clip model that learns to distinguish a picture's own caption from others; a `loop.Learner`.

    Several processes all learn from the same batches, with the same result as one and no faster.

    Args:
        rows: square pictures, whose side determines the network's. Held-out rows, if any, are for validation.
    """

    def __init__(self, rows: Rows, config: AlignmentConfig) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.device = choose_device()
        self.config, self.trained, self.held = config, rows.trained, rows.held
        learnt = sorted(set(self.trained.captions))
        captions = [*learnt, *sorted(set(self.held.captions) - set(learnt))]
        self.num_learnt = len(learnt)  # captions that steps compare with; validations compare with all
        tokens_TL = SimpleTokenizer()(captions, config.max_tokens)
        tokens_TL = tokens_TL[:, : int((tokens_TL != 0).sum(dim=1).max())]
        self.tokens_TL = tokens_TL.to(self.device)
        place = {caption: row for row, caption in enumerate(captions)}
        self.label_N, self.held_label_N = (
            torch.tensor([place[caption] for caption in part.captions]) for part in (self.trained, self.held)
        )
        self.network: Any = build_network(config, rows.images.shape[1], tokens_TL.shape[1]).to(self.device)
        self.averaged = copy_for_averaging(self.network)
        self.weights = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in self.weights if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in self.weights if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.modules = {"network": self.network}
        self.optimizers = {"network": torch.optim.AdamW(groups, betas=BETAS, fused=True)}
        self.optimizers["network"].register_step_post_hook(self._limit_scale)

    def batch_keys(self, step: int) -> list[str]:
        """Return the keys of the pictures of a step."""
        return [self.trained.keys[i] for i in self._indices(step)]

    def _indices(self, step: int) -> np.ndarray:
        return batch_indices(step, self.config.batch_size, len(self.trained.keys), self.config.seed)

    def prepare(self, step: int) -> Batch:
        """Return the batch of a step, on the CPU."""
        index, generator = self._indices(step), generator_for(self.config.seed, step)
        candidates_T, target_B = choose_captions(self.label_N[index], self.num_learnt, generator)
        return Batch(augment(_to_pictures(self.trained.images[index]), generator), candidates_T, target_B)

    def learn(self, step: int, batch: Batch) -> dict[str, float]:
        """Compute the gradients of a step. Return loss, the mean smoothed cross entropy in nats, and grad_norm, before
        clipping."""
        loss = self._loss(self._compare(self.network.train(), batch), batch)
        self.optimizers["network"].zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, MAX_GRAD_NORM)
        return {"loss": loss.item(), "grad_norm": norm.item()}

    @torch.no_grad()
    def _limit_scale(self, *of_hook: Any) -> None:
        self.network.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))

    def _compare(self, network: Any, batch: Batch) -> Tensor:
        """Return the logits (B, T) of each picture and caption."""
        pictures = batch.pictures.to(self.device, memory_format=torch.channels_last)
        image_BD = network.encode_image(pictures, normalize=True)
        text_TD = network.encode_text(self.tokens_TL[batch.candidates_T.to(self.device)], normalize=True)
        return network.logit_scale.exp() * image_BD @ text_TD.T

    def _loss(self, logits_BT: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits_BT, batch.target_B.to(self.device), label_smoothing=self.config.label_smoothing)

    @torch.no_grad()
    def validate(self, network: torch.nn.Module) -> dict[str, float]:
        """Return val_loss, the loss on held-out pictures without augmentation, and val_rank, the mean share of other
        captions that fit a picture less well than its own (equal ones count half). Empty if no picture is held out.
        """
        generator = generator_for(self.config.seed, 0, VALIDATION_STREAM)
        num = min(len(self.held.keys), MAX_VALIDATED)
        rows = np.linspace(0, len(self.held.keys) - 1, num).round().astype(int)
        totals = {"val_loss": 0.0, "val_rank": 0.0}
        for index in np.split(rows, range(self.config.batch_size, num, self.config.batch_size)) if num else ():
            candidates_T, target_B = choose_captions(self.held_label_N[index], len(self.tokens_TL), generator)
            batch = Batch(_to_pictures(self.held.images[index]), candidates_T, target_B)
            logits_BT = self._compare(network, batch)
            totals["val_loss"] += len(index) * self._loss(logits_BT, batch).item()
            totals["val_rank"] += rank_of(logits_BT.cpu(), target_B).sum().item()
        return {name: total / num for name, total in totals.items()} if num else {}


def rank_of(logits_BT: Tensor, target_B: Tensor) -> Tensor:
    """Return the share (B,), 0..1, of other captions below the target's logit; equal ones count half, 1 without
    others.
    """
    own_B1 = logits_BT.gather(1, target_B[:, None])
    below_B = (logits_BT < own_B1).sum(1) + 0.5 * ((logits_BT == own_B1).sum(1) - 1)
    num_others = logits_BT.shape[1] - 1
    return below_B / num_others if num_others else torch.ones(len(logits_BT))


def _to_pictures(images: np.ndarray) -> Tensor:
    """Convert uint8 (N, S, S, 3) to float (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def build_network(config: AlignmentConfig, image_size: int, context_length: int) -> Any:
    """Return a new open_clip model for pictures of image_size px per side and captions of context_length tokens."""
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):  # the towers draw their weights from torch's global generator
        torch.manual_seed(config.seed)
        network: Any = CLIP(**_model_config(config, image_size, context_length))
        with torch.no_grad():
            # Rounded to half precision, since save_network saves them so.
            drawn = torch.randn_like(network.token_embedding.weight) * 0.1
            network.token_embedding.weight.copy_(drawn.half().float())
    network.token_embedding.weight.requires_grad_(False)
    return network


def _model_config(config: AlignmentConfig, image_size: int, context_length: int) -> dict[str, Any]:
    vision = {"image_size": image_size, "layers": [1, 1, 1, 1], "width": config.width, "head_width": 32}
    text = {
        "context_length": context_length,
        "vocab_size": 49408,  # open_clip's SimpleTokenizer
        "width": config.text_width,
        "heads": max(1, config.text_width // 32),
        "layers": 1,
    }
    return {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}


def save_network(network: Any, config: AlignmentConfig, folder: Path) -> None:
    """Write a trained model into `folder` in open_clip's layout."""
    from safetensors.torch import save

    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    open_clip_config = {
        "model_cfg": _model_config(config, network.visual.image_size, network.context_length),
        "preprocess_cfg": preprocess,
    }
    write_json(folder / "open_clip_config.json", open_clip_config)
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"].half()
    # save_file would make a file that only its owner may read.
    (folder / "open_clip_model.safetensors").write_bytes(save(state))


def choose_captions(label_B: Tensor, num_captions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the rows of the captions to compare with, int64 (T,), and the place of each picture's own among them,
    int64 (B,). They are all captions or, if there are too many, the pictures' own and others up to MAX_CANDIDATES.
    """
    if num_captions <= MAX_CANDIDATES:
        return torch.arange(num_captions), label_B
    own, target_B = label_B.unique(return_inverse=True)
    others = torch.randperm(num_captions, generator=generator)[: MAX_CANDIDATES + len(own)]
    others = others[~torch.isin(others, own)][: max(0, MAX_CANDIDATES - len(own))]
    return torch.cat([own, others]), target_B


def augment(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures (values -1..1) flipped, rotated, scaled and shifted on white, with their colours mixed."""
    num = len(x_BCHW)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(num, *shape, generator=generator) * (high - low) + low

    scale, angle, flip = uniform(*SCALE), uniform(-TURN, TURN), uniform(0, 1).round() * 2 - 1
    affine_B23 = torch.zeros(num, 2, 3)
    affine_B23[:, 0, 0], affine_B23[:, 0, 1] = scale * angle.cos() * flip, -scale * angle.sin()
    affine_B23[:, 1, 0], affine_B23[:, 1, 1] = scale * angle.sin() * flip, scale * angle.cos()
    affine_B23[:, :, 2] = uniform(-SHIFT, SHIFT, 2)
    grid = F.affine_grid(affine_B23, list(x_BCHW.shape), align_corners=False)
    # Minus 1, so that padding (0) is white.
    darkness = F.grid_sample(x_BCHW - 1, grid, align_corners=False)
    mix_B33 = torch.eye(3) + torch.randn(num, 3, 3, generator=generator) * COLOUR_MIX
    return torch.einsum("bij,bjhw->bihw", mix_B33, darkness) + 1
