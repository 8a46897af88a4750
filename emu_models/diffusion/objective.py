"""The training objective: v-prediction, min-SNR weights, offset noise (Emu paper, sec. 3.2 and 3.4).

Symbols: z0 clean latents, eps noise, z_t = alpha_t z0 + sigma_t eps, v = alpha_t eps - sigma_t z0,
SNR = (alpha / sigma)^2.
"""

import torch
from torch import Tensor

MIN_SNR_GAMMA = 5.0  # Hang et al., arXiv 2303.09556
WEIGHT_FLOOR = 0.05  # least weight of a timestep; chosen here, 2026-11-23


def draw_noise(shape: torch.Size, noise_offset: float, generator: torch.Generator) -> Tensor:
    """eps + noise_offset * n, n (B, C, 1, 1): one draw a channel, shared by all positions. On CPU, as the generator."""
    noise_BChw = torch.randn(shape, generator=generator)
    if noise_offset:
        noise_BChw = noise_BChw + noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
    return noise_BChw


def velocity_loss(predicted_v: Tensor, z0: Tensor, noise: Tensor, alphas_cumprod_B: Tensor) -> Tensor:
    """The loss of each sample, (B,): mean squared error in v, weighted by min(SNR, gamma) / (SNR + 1).

    The weight is min-SNR's for an x0 error, turned into one for v: ||v - v'||^2 = (SNR + 1) ||x0 - x0'||^2.
    alphas_cumprod_B = alpha_t^2, in [0, 1]: with zero terminal SNR the last timestep has weight 0 by that formula,
    so it keeps WEIGHT_FLOOR, else pure noise would never be learned.
    """
    a2 = alphas_cumprod_B[:, None, None, None]
    target_v = a2.sqrt() * noise - (1 - a2).sqrt() * z0
    snr_B = alphas_cumprod_B / (1 - alphas_cumprod_B).clamp(min=1e-8)
    weight_B = snr_B.clamp(max=MIN_SNR_GAMMA) / (snr_B + 1)
    return (predicted_v - target_v).square().flatten(1).mean(1) * weight_B.clamp(min=WEIGHT_FLOOR)
