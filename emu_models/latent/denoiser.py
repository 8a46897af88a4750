"""The text-conditioned latent U-Net (Emu paper, sec. 3.1): diffusers' UNet2DConditionModel, sized by a config.

The paper: 2.8 B parameters by wider channels and more residual blocks in each stage, CLIP ViT-L and T5-XXL together,
16-channel latents, one stage at 1024 px; it gives no widths and no fusion. Ours: token features by cross attention,
the pooled text vector added to the timestep embedding (as SDXL does). The 2.8 B are in profiles/paper.yaml; `emu plan`
says what they cost.
The demo's network is the same code, narrow, with the attention at its smallest grid only: on two cores a cheap step
that is repeated often learns more than a wide one (docs/log.md, 2026-11-23).
"""

from dataclasses import dataclass
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

MIDDLE_BLOCKS = {"full": "UNetMidBlock2DCrossAttn", "joint": "UNetMidBlock2DSimpleCrossAttn"}


@dataclass(frozen=True)
class DenoiserConfig:
    """widths: channels a level, finest first; attention: whether that level attends to itself and to the text.

    middle: "full" for a transformer block at the smallest grid, "joint" for one attention over positions and text
    together, which costs a small network a third less a step (docs/log.md, 2026-11-23).
    cross_attention_width: what token features are projected to before any attention; None leaves them as they are.
    """

    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    layers_per_level: int
    middle: str = "full"
    cross_attention_width: int | None = None
    head_width: int = 64

    def __post_init__(self) -> None:
        for name in ("widths", "attention"):  # lists where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.widths) != len(self.attention):
            raise ValueError(f"denoiser has {len(self.widths)} widths but {len(self.attention)} attention flags")
        if self.widths[-1] % self.head_width:
            raise ValueError(
                f"denoiser's last width {self.widths[-1]} must be a multiple of {self.head_width}: its middle attends"
            )
        if self.middle not in MIDDLE_BLOCKS:
            raise ValueError(f"denoiser middle is {self.middle!r}; it must be one of {', '.join(MIDDLE_BLOCKS)}")


def build_denoiser(
    config: DenoiserConfig, latent_channels: int, token_width: int, pooled_width: int | None = None
) -> UNet2DConditionModel:
    """A U-Net for latents (B, latent_channels, h, w); h and w must be multiples of 2 ** (levels - 1).

    token_width, pooled_width: channels of TextFeatures' tokens_BLD and pooled_BD; the second is the first's by default.
    """
    projected = config.cross_attention_width
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention))
    denoiser = UNet2DConditionModel(
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_level,
        cross_attention_dim=projected or token_width,
        encoder_hid_dim=token_width if projected else None,
        encoder_hid_dim_type="text_proj" if projected else None,
        # diffusers' name; in its joint block it is the width of a head, in the others the number of heads
        attention_head_dim=config.head_width
        if config.middle == "joint"
        else tuple(max(1, width // config.head_width) for width in config.widths),  # type: ignore[arg-type]
        norm_num_groups=16,  # divides every width that is a multiple of 16
        mid_block_type=MIDDLE_BLOCKS[config.middle],
        class_embed_type="projection",
        projection_class_embeddings_input_dim=pooled_width or token_width,
    )
    choose_attention(denoiser)
    return denoiser


def choose_attention(denoiser: UNet2DConditionModel) -> None:
    """Plain matrix products on CPU, where they beat the fused kernel (field notes); the default on CUDA."""
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
