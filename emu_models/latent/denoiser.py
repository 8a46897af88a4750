"""Runs the text-conditioned latent U-Net (Emu paper, sec. 3.1); this file is saved with every model, for its pipeline.

It imports only what a saved pipeline needs: building.py makes new networks.
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
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from emu_models.text import TextFeatures


class DeviceAttention:
    """Attention by plain matrix products on the CPU, where they are faster (docs/log.md, 2026-11-23), and by the fused
    kernel elsewhere, which does not keep a matrix of positions by positions. Chosen at each call, since a network is
    built on the CPU and moved later."""

    def __init__(self, plain: Any, fused: Any) -> None:
        self._plain, self._fused = plain, fused

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return what the chosen processor of diffusers returns; it reads the names of these arguments."""
        processor = self._plain if hidden_states.device.type == "cpu" else self._fused
        given = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": attention_mask}
        return processor(attn, hidden_states, **given, **({} if temb is None else {"temb": temb}))


def choose_attention(denoiser: UNet2DConditionModel) -> None:
    """Make the network choose its attention by the device of each call."""
    chosen: dict[type, Any] = {
        AttnProcessor2_0: DeviceAttention(AttnProcessor(), AttnProcessor2_0()),
        AttnAddedKVProcessor2_0: DeviceAttention(AttnAddedKVProcessor(), AttnAddedKVProcessor2_0()),
    }
    processors: Any = {name: chosen.get(type(p), p) for name, p in denoiser.attn_processors.items()}
    denoiser.set_attn_processor(processors)


def takes_sizes(denoiser: UNet2DConditionModel, pooled_width: int) -> bool:
    """Whether the network is told sizes in pixels: SDXL's, and ours where its config has size_conditioning.
    pooled_width: channels of TextFeatures' pooled_BD."""
    config: Any = denoiser.config
    if config.class_embed_type == "projection":
        return config.projection_class_embeddings_input_dim > pooled_width
    return config.addition_embed_type == "text_time"


def denoise(
    denoiser: UNet2DConditionModel,
    z_BChw: Tensor,
    t_B: Tensor,
    text: TextFeatures,
    factor: int = 8,
    sizes_B6: Tensor | None = None,
) -> Tensor:
    """Return the network's prediction, (B, C, h, w), for noisy latents (B, C, h, w) at integer timesteps t_B (B,).

    The network decides how text enters: as in ours, or as in Stable Diffusion (only tokens) and SDXL, which also attend
    to padding. factor: pixels per side of a latent position. sizes_B6: for networks that take them, in pixels
    (arXiv 2307.01952, sec. 2.2): height and width of the original, top and left of the crop, height and width of what
    is drawn; None for those of an uncropped picture. A network that was built for other numbers gets those, (B, n).
    """
    config: Any = denoiser.config
    pooled_BD = text.pooled_BD
    if not takes_sizes(denoiser, pooled_BD.shape[1]):
        sizes_B6 = None
    elif sizes_B6 is None:
        height, width = (factor * side for side in z_BChw.shape[-2:])
        sizes_B6 = pooled_BD.new_tensor([height, width, 0, 0, height, width]).expand(len(z_BChw), -1)
    if config.class_embed_type == "projection":
        if sizes_B6 is not None:
            channels = (config.projection_class_embeddings_input_dim - pooled_BD.shape[1]) // sizes_B6.shape[1]
            waves = get_timestep_embedding(sizes_B6.flatten(), channels, flip_sin_to_cos=True, downscale_freq_shift=0)
            pooled_BD = torch.cat([pooled_BD, waves.view(len(pooled_BD), -1).to(pooled_BD.dtype)], dim=1)
        conditions = {"class_labels": pooled_BD, "encoder_attention_mask": text.mask_BL}
    elif sizes_B6 is not None:
        conditions = {"added_cond_kwargs": {"text_embeds": pooled_BD, "time_ids": sizes_B6.to(pooled_BD.dtype)}}
    else:
        conditions = {}
    return denoiser(z_BChw, t_B, text.tokens_BLD, **conditions).sample


def grid_multiple(denoiser: UNet2DConditionModel) -> int:
    """Return what the sides of a U-Net's latents must be multiples of: it halves them between two levels."""
    config: Any = denoiser.config
    return 2 ** (len(config.block_out_channels) - 1)


def count_parameters(module: torch.nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
