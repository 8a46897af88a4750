"""The training objective: v-prediction (or what a given checkpoint predicts), min-SNR weights, and offset noise (Emu
paper, sec. 3.2 and 3.4).

Symbols: z0 clean latents, eps noise, z_t = alpha_t z0 + sigma_t eps, v = alpha_t eps - sigma_t z0,
SNR = (alpha / sigma)^2.
"""

from torch import Tensor

MIN_SNR_GAMMA = 5.0  # Hang et al., arXiv 2303.09556
WEIGHT_FLOOR = 0.05  # smallest weight of a timestep; chosen here, 2026-11-23


def offset_noise(noise: Tensor, shift_BC: Tensor, noise_offset: float) -> Tensor:
    """Return noise + noise_offset * shift. noise: standard normal (B, C, h, w); shift_BC: one standard normal draw per
    channel, shared by all its positions."""
    return noise + noise_offset * shift_BC[:, :, None, None]


def denoising_loss(
    predicted: Tensor,
    z0: Tensor,
    noise: Tensor,
    alphas_cumprod_B: Tensor,
    prediction_type: str = "v_prediction",
    weight_floor: float = WEIGHT_FLOOR,
) -> Tensor:
    """Return the loss of each sample, (B,): the mean squared error of the network's prediction, with min-SNR weights.

    predicted, z0, noise: (B, C, h, w). prediction_type, as in diffusers' schedulers: "epsilon" (eps), "v_prediction"
    (v) or "sample" (z0). Min-SNR weighs an error in z0 by min(SNR, gamma). For errors in v and eps, that weight is
    divided by SNR + 1 and by SNR, since ||v - v'||^2 = (SNR + 1) ||z0 - z0'||^2 and ||eps - eps'||^2 = SNR ||z0 -
    z0'||^2. alphas_cumprod_B = alpha_t^2, in [0, 1]: with zero terminal SNR, the weights for z0 and v would be 0 at the
    last timestep, and pure noise would never be learned; so they are at least weight_floor. Raises ValueError for
    another prediction_type.
    """
    a2 = alphas_cumprod_B[:, None, None, None]
    snr_B = alphas_cumprod_B / (1 - alphas_cumprod_B).clamp(min=1e-8)
    capped_B = snr_B.clamp(max=MIN_SNR_GAMMA)
    if prediction_type == "v_prediction":
        target, weight_B = a2.sqrt() * noise - (1 - a2).sqrt() * z0, (capped_B / (snr_B + 1)).clamp(min=weight_floor)
    elif prediction_type == "epsilon":
        target, weight_B = noise, capped_B / snr_B.clamp(min=1e-8)
    elif prediction_type == "sample":
        target, weight_B = z0, capped_B.clamp(min=weight_floor)
    else:
        raise ValueError(f"prediction_type is {prediction_type!r}; it must be epsilon, v_prediction or sample")
    return (predicted - target).square().flatten(1).mean(1) * weight_B
