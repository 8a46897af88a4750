"""The text-conditioned latent U-Net (Emu paper, sec. 3.1): diffusers' UNet2DConditionModel, sized by a config.

The paper has 2.8 B parameters by wider channels and more residual blocks per level, CLIP ViT-L and T5-XXL together, and
16-channel latents at 1024 px; it gives neither widths nor how the text encoders are combined. Here token features enter
by cross attention, and the pooled text vector is added to the timestep embedding (as in SDXL), with size_conditioning
together with the sizes of the picture. profiles/paper.yaml has
the 2.8 B parameters; `emu plan` says what they cost.

The demo's network is the same code, but narrow, with attention only at the smallest grid: on two cores, many cheap
steps learn more than a few of a wide network (docs/log.md, 2026-11-23).
"""

from diffusers import UNet2DConditionModel

from emu_models.latent.denoiser import choose_attention
from emu_models.latent.jobs import DenoiserConfig

NUM_SIZES = 6  # that `denoise` is told
CHANNELS_TOLD = 256  # of a number that it is told, as many as SDXL has
MIDDLE_BLOCKS = {"full": "UNetMidBlock2DCrossAttn", "joint": "UNetMidBlock2DSimpleCrossAttn"}


def build_denoiser(
    config: DenoiserConfig,
    latent_channels: int,
    token_width: int,
    pooled_width: int | None = None,
    channels_beside: int = 0,
    num_told: int = 0,
) -> UNet2DConditionModel:
    """Return a U-Net for latents (B, latent_channels, h, w); h and w must be multiples of 2 ** (levels - 1).

    token_width, pooled_width: channels of TextFeatures' tokens_BLD and pooled_BD; pooled_width is token_width by
    default. channels_beside: channels that it sees beside the latents and does not predict. num_told: numbers that it
    is told in the place of sizes (`denoise`), for networks without size_conditioning.
    """
    told = NUM_SIZES if config.size_conditioning else num_told
    projected = config.cross_attention_width
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention))
    denoiser = UNet2DConditionModel(
        in_channels=latent_channels + channels_beside,
        out_channels=latent_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_level,
        cross_attention_dim=projected or token_width,
        encoder_hid_dim=token_width if projected else None,
        encoder_hid_dim_type="text_proj" if projected else None,
        # as diffusers uses this name: in its joint block the width of a head, in the others the number of heads
        attention_head_dim=config.head_width
        if config.middle == "joint"
        else tuple(max(1, width // config.head_width) for width in config.widths),  # type: ignore[arg-type]
        norm_num_groups=16,  # divides every width that is a multiple of 16
        mid_block_type=MIDDLE_BLOCKS[config.middle],
        class_embed_type="projection",
        projection_class_embeddings_input_dim=(pooled_width or token_width) + CHANNELS_TOLD * told,
    )
    choose_attention(denoiser)
    return denoiser
