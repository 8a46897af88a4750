"""Runs the transformers of rectified flow that diffusers has: a velocity from noisy latents, a noise level and a text.

z_s = (1 - s) z0 + s eps for a noise level s in [0, 1]; the network predicts the velocity eps - z0 (Liu et al., arXiv
2209.03003). Each layout has its own names for the conditions, its own scale of time, and some take latents as a
sequence of patches.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    PRXTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor, nn

from emu_models.text import TextFeatures

NUM_TIMESTEPS = 1000  # SD3 and SANA are told 1000 s; the schedulers' num_train_timesteps
PATCH = 2  # latent positions per side of a patch, in FLUX and Qwen-Image
# What a guidance-distilled network (FLUX.1-dev) is told while it is tuned; as in diffusers' README of its FLUX example.
TOLD_GUIDANCE = 1.0
MIN_LEVEL = 0.05  # by which (z - z0) is divided at least; diffusers' PRXPixelPipeline; JiT, arXiv 2511.13720, sec. 4.1


def predict_velocity(network: nn.Module, z_BChw: Tensor, level_B: Tensor, text: TextFeatures) -> Tensor:
    """Return the network's velocity, (B, C, h, w), for noisy latents (B, C, h, w) at noise levels (B,) in [0, 1].

    h and w must be multiples of `position_multiple`.
    """
    # not by the type itself: one that is shared between processes has a class of torch's, derived from its own
    predict = next(function for kind, function in PREDICTIONS.items() if isinstance(network, kind))
    return predict(network, z_BChw, level_B, text)


def position_multiple(network: nn.Module) -> int:
    """Return what the sides of the network's latents must be multiples of."""
    config: Any = network.config
    return PATCH if isinstance(network, (FluxTransformer2DModel, QwenImageTransformer2DModel)) else config.patch_size


def takes_mask(network: nn.Module) -> bool:
    """Whether the network leaves out padding of the text; the others attend to it."""
    return not isinstance(network, (SD3Transformer2DModel, FluxTransformer2DModel))


def _predict_prx(network: Any, z: Tensor, level_B: Tensor, text: TextFeatures) -> Tensor:
    """One with a bottleneck draws pixels and predicts the clean picture z0, from which the velocity is (z - z0) / s."""
    predicted = network(
        hidden_states=z,
        timestep=level_B,
        encoder_hidden_states=text.tokens_BLD,
        attention_mask=text.mask_BL,
        return_dict=False,
    )[0]
    if network.config.bottleneck_size is None:
        return predicted
    return (z - predicted) / level_B.clamp(min=MIN_LEVEL)[:, None, None, None]


def _predict_sd3(network: Any, z: Tensor, level_B: Tensor, text: TextFeatures) -> Tensor:
    return network(
        hidden_states=z,
        timestep=level_B * NUM_TIMESTEPS,
        encoder_hidden_states=text.tokens_BLD,
        pooled_projections=text.pooled_BD,
        return_dict=False,
    )[0]


def _predict_sana(network: Any, z: Tensor, level_B: Tensor, text: TextFeatures) -> Tensor:
    predicted = network(
        z,
        encoder_hidden_states=text.tokens_BLD,
        encoder_attention_mask=text.mask_BL.to(text.tokens_BLD.dtype),
        timestep=level_B * NUM_TIMESTEPS * network.config.timestep_scale,
        return_dict=False,
    )[0]
    return predicted[:, : z.shape[1]]  # some also predict a variance, which its pipeline drops


def _predict_flux(network: Any, z: Tensor, level_B: Tensor, text: TextFeatures) -> Tensor:
    height, width = (side // PATCH for side in z.shape[-2:])
    places = torch.zeros(height, width, 3, device=z.device, dtype=z.dtype)
    places[..., 1] = torch.arange(height, device=z.device)[:, None]
    places[..., 2] = torch.arange(width, device=z.device)
    predicted = network(
        hidden_states=pack(z),
        timestep=level_B,
        guidance=torch.full_like(level_B, TOLD_GUIDANCE) if network.config.guidance_embeds else None,
        pooled_projections=text.pooled_BD,
        encoder_hidden_states=text.tokens_BLD,
        txt_ids=places.new_zeros(text.tokens_BLD.shape[1], 3),
        img_ids=places.flatten(0, 1),
        return_dict=False,
    )[0]
    return unpack(predicted, height, width)


def _predict_qwen(network: Any, z: Tensor, level_B: Tensor, text: TextFeatures) -> Tensor:
    height, width = (side // PATCH for side in z.shape[-2:])
    predicted = network(
        hidden_states=pack(z),
        timestep=level_B,
        encoder_hidden_states=text.tokens_BLD,
        encoder_hidden_states_mask=text.mask_BL,
        img_shapes=[[(1, height, width)]] * len(z),
        return_dict=False,
    )[0]
    return unpack(predicted, height, width)


def pack(z_BChw: Tensor) -> Tensor:
    """Return latents (B, C, h, w) as a sequence of patches, (B, h/2 w/2, 4 C)."""
    B, C, h, w = z_BChw.shape
    patches = z_BChw.view(B, C, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(B, -1, C * PATCH**2)


def unpack(patches_BND: Tensor, height: int, width: int) -> Tensor:
    """Invert `pack`. height, width: in patches."""
    B, _, D = patches_BND.shape
    z = patches_BND.view(B, height, width, D // PATCH**2, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(B, D // PATCH**2, height * PATCH, width * PATCH)


PREDICTIONS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor, TextFeatures], Tensor]] = {
    SD3Transformer2DModel: _predict_sd3,
    PRXTransformer2DModel: _predict_prx,
    FluxTransformer2DModel: _predict_flux,
    SanaTransformer2DModel: _predict_sana,
    QwenImageTransformer2DModel: _predict_qwen,
}
