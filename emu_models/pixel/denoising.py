"""Runs a U-Net on pixels, several of which may be one of its positions; this file is saved with every cascade, for its
pipeline.

High resolutions are dear, and few channels there suffice: a network of patch p sees p x p pixels as the channels of one
position (Hoogeboom et al., arXiv 2301.11093, sec. 3.3, "avoid high resolution feature maps"). Only the order of the
numbers changes, so that noise and loss are the same.
"""

import math
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from emu_models.latent.denoiser import denoise, grid_multiple
from emu_models.text import TextFeatures


def patch_of(network: UNet2DConditionModel) -> int:
    """Return how many pixels per side are a position of the network."""
    config: Any = network.config
    return math.isqrt(config.out_channels // 3)


def pixel_multiple(network: UNet2DConditionModel) -> int:
    """Return what the sides of a network's pictures must be multiples of, in px."""
    return patch_of(network) * grid_multiple(network)


def denoise_pixels(
    network: UNet2DConditionModel, x_BCHW: Tensor, t_B: Tensor, text: TextFeatures, factor: int, told: Tensor | None
) -> Tensor:
    """Return the network's prediction, (B, 3, H, W), for pixels (B, C, H, W), the noisy ones first, at timesteps (B,).

    C is 3, or 6 for an upscaler, which predicts by how much the picture differs from the small one beside its noisy
    pixels (as SRDiff does, Li et al., arXiv 2104.14951), so that what it need not change it need not learn; here the
    sum of the two is returned. factor, told: as `denoise` takes them.
    """
    patch = patch_of(network)
    predicted = F.pixel_shuffle(
        denoise(network, F.pixel_unshuffle(x_BCHW, patch), t_B, text, factor * patch, told), patch
    )
    return predicted if x_BCHW.shape[1] == 3 else predicted + x_BCHW[:, 3:]
