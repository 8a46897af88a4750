"""The networks of a cascade in pixels (Imagen, arXiv 2205.11487, sec. 2.4): U-Nets, as in the latent family.

The base predicts v of small pictures. The upscaler predicts whole ones, and sees beside them the small one, with noise
and enlarged; it is told the level of that noise (Ho et al., arXiv 2106.15282). It predicts the picture itself, since a
narrow network passes the noise of many pixels only by much training (Li and He, arXiv 2511.13720): with v, the demo's
left noise in every picture.
"""

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from emu_models.diffusion.schedule import build_scheduler
from emu_models.latent.building import build_denoiser
from emu_models.latent.jobs import DenoiserConfig

CHANNELS = 3  # of a picture: red, green, blue
# Dynamic thresholding (Imagen, sec. 2.3): guidance drives a predicted picture out of [-1, 1], and its values are
# divided by their 99.5 % quantile (the default of diffusers), which counts at most 1.5 times (as in DeepFloyd IF).
THRESHOLDING: dict[str, Any] = {"thresholding": True, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.5}

# Sizes near the published ones. Imagen's 64 px base has 2 B parameters (sec. 2.4 and appendix F.1: 512 channels times
# 1, 2, 3, 4 with 3 blocks per level, and attention at 32, 16 and 8 px); its U-Net has plain attention layers where
# diffusers' also has feed-forward layers, so that 2 blocks give its number. Its 64 to 256 px upscaler has 600 M.
PUBLISHED_BASE = DenoiserConfig((512, 1024, 1536, 2048), (False, True, True, True), 2, cross_attention_width=512)
PUBLISHED_UPSCALER = DenoiserConfig((128, 256, 512, 1024), (False, False, False, True), 4, cross_attention_width=512)


def build_base(config: DenoiserConfig, token_width: int, pooled_width: int, patch: int = 1) -> UNet2DConditionModel:
    """Return a network for small pictures (B, 3, h, w); h and w must be multiples of patch times 2 ** (levels - 1).

    token_width, pooled_width: channels of TextFeatures' tokens_BLD and pooled_BD. patch: see pixel/denoising.py.
    """
    return build_denoiser(config, CHANNELS * patch**2, token_width, pooled_width)


def build_upscaler(config: DenoiserConfig, token_width: int, pooled_width: int, patch: int = 1) -> UNet2DConditionModel:
    """Return a network for noisy pictures beside enlarged small ones, (B, 6, H, W), that is told the level of these; it
    predicts (B, 3, H, W). Before it has learned, these are the small ones (denoise_pixels). Arguments: as of
    `build_base`."""
    channels = CHANNELS * patch**2
    network = build_denoiser(config, channels, token_width, pooled_width, channels_beside=channels, num_told=1)
    for parameter in network.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return network


def build_pixel_scheduler(noise_shift: float = 1.0, predicts: str = "v_prediction") -> DDIMScheduler:
    """Return the project's schedule (diffusion/schedule.py) for pixels, whose range is known. predicts: "v_prediction"
    or "sample", the picture."""
    # as keywords: entries of a config that were defaults when it was made are not read
    return DDIMScheduler.from_config(build_scheduler(noise_shift).config, prediction_type=predicts, **THRESHOLDING)
