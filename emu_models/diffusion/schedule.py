"""The noise schedule: a diffusers scheduler that is saved with the pipeline, so that training and sampling share it.

The paper names none. Chosen here: 1 000 timesteps, cosine alphas (Nichol and Dhariwal, arXiv 2102.09672), rescaled to
zero terminal SNR with trailing timesteps (Lin et al., arXiv 2305.08891), v-prediction (Salimans and Ho, arXiv
2202.00512).
"""

from typing import Any

import torch
from diffusers import DDIMScheduler

NUM_TIMESTEPS = 1000  # DDPM, arXiv 2006.11239


def build_scheduler(noise_shift: float = 1.0) -> DDIMScheduler:
    """Return the scheduler that training and sampling share (see the module).

    noise_shift: factor of every timestep's ratio of noise to signal, sigma / alpha. More pixels show more of the same
    picture under the same noise, so larger pictures need more: Hoogeboom et al. (arXiv 2301.11093, sec. 3.1) take the
    ratio of the sides. Raises ValueError if it is not positive.
    """
    if noise_shift <= 0:
        raise ValueError(f"noise_shift is {noise_shift}; it must be above 0")
    shared: dict[str, Any] = {
        "num_train_timesteps": NUM_TIMESTEPS,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": True,
    }
    scheduler = DDIMScheduler(**shared)
    if noise_shift == 1:
        return scheduler
    a2_T = scheduler.alphas_cumprod.double()
    shifted_T = a2_T / (a2_T + noise_shift**2 * (1 - a2_T))
    before_T = torch.cat([shifted_T.new_ones(1), shifted_T[:-1]])
    return DDIMScheduler(**shared, trained_betas=(1 - shifted_T / before_T).tolist())
