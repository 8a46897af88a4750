"""How the text-conditioned latent U-Net is run (Emu paper, sec. 3.1); saved beside every model, for its pipeline.

It imports nothing that a saved pipeline would not need: a new network is made in building.py.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
)
from torch import Tensor

from emu_models.text import TextFeatures


def choose_attention(denoiser: UNet2DConditionModel) -> None:
    """Plain matrix products on CPU, where they beat the fused kernel; the default on CUDA."""
    if denoiser.device.type == "cpu":
        plain = {AttnProcessor2_0: AttnProcessor, AttnAddedKVProcessor2_0: AttnAddedKVProcessor}
        denoiser.set_attn_processor({n: plain.get(type(p), type(p))() for n, p in denoiser.attn_processors.items()})


def denoise(denoiser: UNet2DConditionModel, z_BChw: Tensor, t_B: Tensor, text: TextFeatures, factor: int = 8) -> Tensor:
    """The network's prediction, (B, C, h, w), for noisy latents at integer timesteps t_B (B,).

    How the text enters is the network's own: ours, or the layouts of Stable Diffusion (tokens alone) and SDXL, which
    look at padding too. SDXL is also told sizes in pixels (arXiv 2307.01952, sec. 2.2: original, crop corner, target),
    here those of a whole picture; factor: pixels a side of a latent position.
    """
    config: Any = denoiser.config
    if config.class_embed_type == "projection":
        conditions = {"class_labels": text.pooled_BD, "encoder_attention_mask": text.mask_BL}
    elif config.addition_embed_type == "text_time":
        height, width = (factor * side for side in z_BChw.shape[-2:])
        sizes = text.pooled_BD.new_tensor([height, width, 0, 0, height, width]).expand(len(z_BChw), -1)
        conditions = {"added_cond_kwargs": {"text_embeds": text.pooled_BD, "time_ids": sizes}}
    else:
        conditions = {}
    return denoiser(z_BChw, t_B, text.tokens_BLD, **conditions).sample


def count_parameters(module: torch.nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
