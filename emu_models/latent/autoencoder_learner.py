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
from emu_models.training.distributed import ALONE, World
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

    world: the processes that share each batch. Each holds all weights, since they are few, and gradients are averaged.
    """

    def __init__(
        self, network: Autoencoder, rows: Rows, config: AutoencoderTrainingConfig, world: World = ALONE
    ) -> None:
        self.device = choose_device()
        self.config, self.world = config, world
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.adversary = PatchDiscriminator().to(self.device)
        for module in (self.network, self.adversary):
            world.equalise(module)
        self.averaged = copy_for_averaging(self.network)
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
        """Return this process's pictures of a step, float (n, 3, H, W) in [-1, 1] on the CPU, each mirrored with
        probability 1/2."""
        positions, _ = self.world.portion(self.config.batch_size)
        x = to_tensor(self.trained.images[self._indices(step)[positions]])
        drawn = torch.rand(self.config.batch_size, generator=generator_for(self.config.seed, step, 1))
        mirrored = drawn[positions] < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        if step % 4 == 3:
            factor = self.network.factor
            side = x.shape[-1] * (2 if step % 8 == 3 else 3) // 4 // factor * factor
            x = F.interpolate(x, size=(side, side), mode="area")
        return x

    def learn(self, step: int, batch: torch.Tensor) -> dict[str, float]:
        """Compute the gradients of a step, and those of the adversary once it has started. Return loss (only the L1),
        kl (nats per picture), the parts of the loss that are on, and the norms of the gradients, before clipping."""
        config, generator = self.config.losses, generator_for(self.config.seed, step)
        positions, factor = self.world.portion(self.config.batch_size)
        x = batch.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device):
            moments = self.network.encode(x)
            # of the whole batch, so that a picture gets the same noise however many processes share it
            noise = torch.randn(self.config.batch_size, *moments.mean.shape[1:], generator=generator)[positions]
            noise = noise.to(self.device)
            y = self.network.decode(moments.at(noise))
        y = y.float()  # the losses are in fp32
        l1 = factor * (y - x).abs().mean()
        reconstruction, kl = l1, factor * moments.kl()
        metrics = {"loss": l1.item(), "kl": kl.item()}
        if self.perceptual is not None:
            distance = factor * self.perceptual(y, x).mean()
            reconstruction = l1 + config.perceptual.weight * distance
            metrics["perceptual"] = distance.item()
        loss = reconstruction + config.kl_weight * kl / x[0].numel()

        share = adversarial_share(step, self.config.num_steps, config.adversarial_start)
        adversarial = config.adversarial_weight > 0 and share > 0
        if adversarial:
            self.adversary.requires_grad_(False)
            fooled = -factor * self.adversary(y).mean()
            weight = adaptive_weight(reconstruction, fooled, self.network.last_layer, self.world.average)
            loss = loss + config.adversarial_weight * share * weight * fooled
            self.adversary.requires_grad_(True)
            metrics["adversarial_weight"] = weight.item()
        metrics["grad_norm"] = self._differentiate("network", loss)
        if adversarial:
            loss_of_adversary = factor * hinge_loss(self.adversary(x), self.adversary(y.detach()))
            metrics["adversary_grad_norm"] = self._differentiate("adversary", loss_of_adversary)
            metrics["adversary_loss"] = loss_of_adversary.item()
        return metrics

    def _differentiate(self, name: str, loss: torch.Tensor) -> float:
        self.optimizers[name].zero_grad()
        loss.backward()
        parameters = list(self.modules[name].parameters())
        self.world.average([p.grad for p in parameters if p.grad is not None])
        return torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item()

    @torch.no_grad()
    def validate(self, network: torch.nn.Module) -> dict[str, float]:
        """Return val_loss, the L1 on held-out pictures at full size, decoded from the mean latent, and val_psnr in
        dB."""
        assert isinstance(network, Autoencoder)
        positions, factor = self.world.portion(len(self.held.images))
        l1, psnr, num = 0.0, 0.0, len(positions)
        for index in np.split(positions, range(self.config.batch_size, num, self.config.batch_size)):
            x = to_tensor(self.held.images[index]).to(self.device)
            error_B = (network.decode(network.encode(x).mean).clamp(-1, 1) - x).flatten(1)
            l1 += error_B.abs().mean(1).sum().item()
            psnr += (-10 * (error_B / 2).square().mean(1).log10()).sum().item()
        return self.world.mean({"val_loss": factor * l1 / num, "val_psnr": factor * psnr / num})
