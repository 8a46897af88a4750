"""The noise schedule: a diffusers scheduler that is saved with the pipeline, so that training and sampling share it.

The paper names none. Chosen here: 1 000 timesteps, cosine alphas (Nichol and Dhariwal, arXiv 2102.09672), rescaled to
zero terminal SNR with trailing timesteps (Lin et al., arXiv 2305.08891), v-prediction (Salimans and Ho, arXiv
2202.00512).
"""

from diffusers import DDIMScheduler

NUM_TIMESTEPS = 1000  # DDPM, arXiv 2006.11239


def build_scheduler() -> DDIMScheduler:
    """Return the scheduler that training and sampling share (see the module)."""
    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
