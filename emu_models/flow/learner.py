"""How a rectified-flow transformer learns (quality-tuning, Emu paper, sec. 3.4): as a denoiser, with its own noise.

The loss of a row is the mean squared error of the velocity. The level of its noise is drawn from a logistic normal
distribution (Esser et al., arXiv 2403.03206, sec. 3.1) and shifted as the checkpoint's scheduler shifts it for that
number of pixels (ibid., sec. 5.3.2), so that the network learns where it will draw.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from emu_models.device import autocast
from emu_models.flow.layouts import trim
from emu_models.flow.network import position_multiple, predict_velocity, takes_mask
from emu_models.latent.denoiser_learner import Batch, DenoiserLearner

NUM_VALIDATION_LEVELS = 8  # as many as DenoiserLearner's timesteps


def noise_shift(scheduler: Any, num_positions: int) -> float:
    """Return by which factor a scheduler raises the ratio of noise to signal, s / (1 - s), for latents that the network
    sees as `num_positions` patches: its fixed shift, or one that grows with the positions (FLUX)."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return float(config.get("flow_shift") or config.get("shift") or 1.0)
    few, many = config.base_image_seq_len, config.max_image_seq_len
    mu = config.base_shift + (num_positions - few) * (config.max_shift - config.base_shift) / (many - few)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu


class FlowLearner(DenoiserLearner):
    """A rectified-flow transformer that learns to denoise latents of captioned pictures; a `loop.Learner`. The
    scheduler is one of diffusers' for flow matching."""

    def read_schedule(self, scheduler: Any) -> None:
        """Keep what the loss needs of the scheduler."""
        self._scheduler = scheduler
        self._takes_sizes = False

    def prepare(self, step: int) -> Batch:
        """Return this process's share of a step's batch, without text that is padding in all its rows, if the network
        does not attend to it."""
        batch = super().prepare(step)
        return replace(batch, text=trim(batch.text)[0]) if takes_mask(self.network) else batch

    def draw_times(self, uniform_B: Tensor, z0: Tensor) -> Tensor:
        """Return a noise level in (0, 1) for each draw in [0, 1)."""
        normal_B = math.sqrt(2) * torch.erfinv(2 * uniform_B.double().clamp(1e-9, 1 - 1e-9) - 1)
        return self._shift(torch.sigmoid(normal_B), z0).float()

    def validation_times(self, z0: Tensor) -> list[float]:
        """Return evenly spread noise levels, shifted as in training."""
        even = (torch.arange(NUM_VALIDATION_LEVELS, dtype=torch.float64) + 0.5) / NUM_VALIDATION_LEVELS
        return self._shift(even, z0).tolist()

    def _shift(self, level: Tensor, z0: Tensor) -> Tensor:
        height, width = (side // position_multiple(self.network) for side in z0.shape[-2:])
        shift = noise_shift(self._scheduler, height * width)
        return shift * level / (1 + (shift - 1) * level)

    def weighted_loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over the rows of weight times loss."""
        z0, noise, level_B = (x.to(self.device, non_blocking=True) for x in (batch.z0, batch.noise, batch.t_B))
        level = level_B[:, None, None, None]
        with autocast(self.device):
            predicted = predict_velocity(network, (1 - level) * z0 + level * noise, level_B, batch.text.to(self.device))
        loss_B = (predicted.float() - (noise - z0)).square().flatten(1).mean(1)
        return (loss_B * batch.weights_B.to(self.device)).sum()
