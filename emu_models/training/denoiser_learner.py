"""How the denoiser learns: pretraining at one resolution (Emu paper, sec. 3.2) and quality-tuning (sec. 3.4)."""

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from emu_models.autoencoder.network import Autoencoder, Moments
from emu_models.denoiser import denoise
from emu_models.diffusion.objective import draw_noise, velocity_loss
from emu_models.diffusion.schedule import NUM_TIMESTEPS
from emu_models.text import TextFeatures
from emu_models.training.device import autocast, choose_device
from emu_models.training.order import batch_indices, generator_for

BETAS = (0.9, 0.99)  # chosen here, as for the autoencoder
WEIGHT_DECAY = 0.01  # torch's AdamW default
MAX_GRAD_NORM = 1.0  # chosen here
VALIDATION_TIMESTEPS = tuple(range(62, NUM_TIMESTEPS, 125))  # 8 fixed ones (MLPerf's Flux benchmark), evenly spread
VALIDATION_SEED = 1_000_003  # noise of the validation, the same at every one


@dataclass(frozen=True)
class LatentRows:
    """Cached rows of one resolution: keys, moments (N, C, h, w), text features of the captions."""

    keys: list[str]
    moments: Moments
    text: TextFeatures


@dataclass(frozen=True)
class DenoiserTrainingConfig:
    """noise_offset: 0.02 in the last pretraining stage, 0.1 in tuning, else 0 (paper). caption_dropout in 0..1."""

    num_steps: int
    batch_size: int
    learning_rate: float
    noise_offset: float
    caption_dropout: float
    seed: int


class DenoiserLearner:
    def __init__(
        self,
        network: UNet2DConditionModel,
        autoencoder: Autoencoder,
        scheduler: DDIMScheduler,
        trained: LatentRows,
        held: LatentRows,
        null: TextFeatures,
        config: DenoiserTrainingConfig,
    ) -> None:
        self.device = choose_device()
        self.config, self.trained, self.held = config, trained, held
        self.network, self.autoencoder = network.to(self.device), autoencoder.cpu()  # type: ignore[arg-type]
        self.null = null.to(self.device)
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.modules = {"network": self.network}
        self.optimizers = {
            "network": torch.optim.AdamW(
                self.network.parameters(), config.learning_rate, BETAS, weight_decay=WEIGHT_DECAY
            )
        }

    def batch_keys(self, step: int) -> list[str]:
        config = self.config
        return [
            self.trained.keys[i] for i in batch_indices(step, config.batch_size, len(self.trained.keys), config.seed)
        ]

    def learn(self, step: int) -> dict[str, float]:
        config, generator = self.config, generator_for(self.config.seed, step)
        index = torch.from_numpy(batch_indices(step, config.batch_size, len(self.trained.keys), config.seed))
        z0 = self._latents(self.trained.moments, index, generator)
        noise = draw_noise(z0.shape, config.noise_offset, generator)
        t_B = torch.randint(NUM_TIMESTEPS, (len(z0),), generator=generator)
        dropped_B = torch.rand(len(z0), generator=generator) < config.caption_dropout
        text = self.trained.text.select(index).to(self.device).drop(dropped_B.to(self.device), self.null)
        loss = self._loss(self.network, z0, noise, t_B, text)
        self.optimizers["network"].zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRAD_NORM)
        self.optimizers["network"].step()
        return {"loss": loss.item(), "grad_norm": norm.item()}

    def _latents(self, moments: Moments, index: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        picked = moments.select(index)
        z = picked.mean if generator is None else picked.sample(generator)
        return self.autoencoder.normalise(z)

    def _loss(
        self, network: torch.nn.Module, z0: torch.Tensor, noise: torch.Tensor, t_B: torch.Tensor, text: TextFeatures
    ) -> torch.Tensor:
        a2_B = self.alphas_cumprod[t_B]
        a2 = a2_B[:, None, None, None]
        noisy = a2.sqrt() * z0 + (1 - a2).sqrt() * noise
        assert isinstance(network, UNet2DConditionModel)
        with autocast(self.device):
            predicted = denoise(network, noisy.to(self.device), t_B.to(self.device), text)
        loss_B = velocity_loss(predicted.float(), z0.to(self.device), noise.to(self.device), a2_B.to(self.device))
        return loss_B.mean()

    @torch.no_grad()
    def validate(self, network: torch.nn.Module) -> dict[str, float]:
        """val_loss: the training loss on held-out rows, averaged over 8 fixed timesteps with fixed noise."""
        every = torch.arange(len(self.held.keys))
        z0 = self._latents(self.held.moments, every, None)
        noise = draw_noise(z0.shape, 0.0, generator_for(VALIDATION_SEED, 0))
        text = self.held.text.to(self.device)
        losses = [self._loss(network, z0, noise, torch.full((len(z0),), t), text) for t in VALIDATION_TIMESTEPS]
        return {"val_loss": torch.stack(losses).mean().item()}
