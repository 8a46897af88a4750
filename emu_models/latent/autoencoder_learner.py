"""How the autoencoder learns (Emu paper, sec. 3.1): L1 and perceptual distance, KL, and an adversary that starts late
and slowly."""

import numpy as np
import torch
from torch.nn import functional as F

from emu_models.device import autocast, choose_device
from emu_models.latent.autoencoder.losses import (
    PatchDiscriminator,
    adaptive_weight,
    adversarial_share,
    hinge_loss,
)
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.autoencoder.perceptual import build_perceptual
from emu_models.latent.jobs import AutoencoderTrainingConfig
from emu_models.training.cache import to_tensor
from emu_models.training.ema import copy_for_averaging
from emu_models.training.order import batch_indices, generator_for
from emu_models.training.rows import Rows

BETAS = (0.9, 0.99)  # chosen here: runs of hundreds of steps need a shorter memory than Adam's 0.999
WEIGHT_DECAY = 1e-4  # of the network; chosen here
MAX_GRAD_NORM = 1.0  # chosen here


class AutoencoderLearner:
    """An autoencoder that learns to reconstruct pictures; a `loop.Learner`.

    It learns at full size and, every fourth step, at half or three quarters of it, since the low-resolution
    pretrainings need latents of such pictures. The loss, in fp32, is L1 and perceptual distance on values in [-1, 1],
    the KL in nats per value, and an adversary from `adversarial_start` on.
    """

    def __init__(self, network: Autoencoder, rows: Rows, config: AutoencoderTrainingConfig) -> None:
        self.device = choose_device()
        self.config = config
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy_for_averaging(self.network)
        self.adversary = PatchDiscriminator().to(self.device)
        perceptual = build_perceptual(config.losses.perceptual)
        self.perceptual = None if perceptual is None else perceptual.to(self.device)
        self.trained, self.held = rows.trained, rows.held
        self.modules = {"network": self.network, "adversary": self.adversary}
        self.optimizers = {
            "network": torch.optim.AdamW(
                self.network.parameters(), config.learning_rate, BETAS, weight_decay=WEIGHT_DECAY
            ),
            "adversary": torch.optim.AdamW(self.adversary.parameters(), config.learning_rate, BETAS),
        }

    def batch_keys(self, step: int) -> list[str]:
        """Return the keys of the pictures of a step."""
        return [self.trained.keys[i] for i in self._indices(step)]

    def _indices(self, step: int) -> np.ndarray:
        return batch_indices(step, self.config.batch_size, len(self.trained.keys), self.config.seed)

    def prepare(self, step: int) -> torch.Tensor:
        """Return the pictures of a step, float (B, 3, H, W) in [-1, 1] on the CPU, each mirrored with probability
        1/2."""
        x = to_tensor(self.trained.images[self._indices(step)])
        mirrored = torch.rand(len(x), generator=generator_for(self.config.seed, step, 1)) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        if step % 4 == 3:
            factor = self.network.factor
            side = x.shape[-1] * (2 if step % 8 == 3 else 3) // 4 // factor * factor
            x = F.interpolate(x, size=(side, side), mode="area")
        return x

    def learn(self, step: int, batch: torch.Tensor) -> dict[str, float]:
        """Do one step of the network, and of the adversary once it has started. Return loss (only the L1), kl (nats per
        picture), and the parts of the loss that are on."""
        config, generator = self.config.losses, generator_for(self.config.seed, step)
        x = batch.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device):
            moments = self.network.encode(x)
            noise = torch.randn(moments.mean.shape, generator=generator).to(self.device)
            y = self.network.decode(moments.at(noise))
        y = y.float()  # the losses are in fp32
        l1 = (y - x).abs().mean()
        reconstruction, kl = l1, moments.kl()
        metrics = {"loss": l1.item(), "kl": kl.item()}
        if self.perceptual is not None:
            distance = self.perceptual(y, x).mean()
            reconstruction = l1 + config.perceptual.weight * distance
            metrics["perceptual"] = distance.item()
        loss = reconstruction + config.kl_weight * kl / x[0].numel()

        share = adversarial_share(step, self.config.num_steps, config.adversarial_start)
        adversarial = config.adversarial_weight > 0 and share > 0
        if adversarial:
            self.adversary.requires_grad_(False)
            fooled = -self.adversary(y).mean()
            weight = adaptive_weight(reconstruction, fooled, self.network.last_layer)
            loss = loss + config.adversarial_weight * share * weight * fooled
            self.adversary.requires_grad_(True)
            metrics["adversarial_weight"] = weight.item()
        self._update("network", loss)
        if adversarial:
            loss_of_adversary = hinge_loss(self.adversary(x), self.adversary(y.detach()))
            self._update("adversary", loss_of_adversary)
            metrics["adversary_loss"] = loss_of_adversary.item()
        return metrics

    def _update(self, name: str, loss: torch.Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules[name].parameters(), MAX_GRAD_NORM)
        self.optimizers[name].step()

    @torch.no_grad()
    def validate(self, network: torch.nn.Module) -> dict[str, float]:
        """Return val_loss, the L1 on held-out pictures at full size, decoded from the mean latent, and val_psnr in
        dB."""
        assert isinstance(network, Autoencoder)
        l1, psnr, num = 0.0, 0.0, len(self.held.images)
        for part in np.split(self.held.images, range(self.config.batch_size, num, self.config.batch_size)):
            x = to_tensor(part).to(self.device)
            error_B = (network.decode(network.encode(x).mean).clamp(-1, 1) - x).flatten(1)
            l1 += error_B.abs().mean(1).sum().item()
            psnr += (-10 * (error_B / 2).square().mean(1).log10()).sum().item()
        return {"val_loss": l1 / num, "val_psnr": psnr / num}
