"""How the autoencoder learns (Emu paper, sec. 3.1): L1 and perceptual distance, KL, and an adversary that starts late
and slowly."""

from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from emu_models.device import autocast, choose_device
from emu_models.latent.autoencoder.losses import (
    PatchDiscriminator,
    adaptive_weight,
    adversarial_share,
    gradients_at,
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
from emu_models.training.rows_at_once import RowsAtOnce

BETAS = (0.9, 0.99)  # chosen here: runs of hundreds of steps need a shorter memory than Adam's 0.999
WEIGHT_DECAY = 1e-4  # of the network; chosen here
MAX_GRAD_NORM = 1.0  # chosen here


@dataclass(frozen=True)
class PartLosses:
    """The losses of pictures x, decoded as y (n, 3, H, W). Each is a mean over the pictures times their share of the
    batch, so that those of all parts add up to the batch's. fooled: of the adversary, None before it has started."""

    x: Tensor
    y: Tensor
    share: float
    l1: Tensor
    kl: Tensor
    perceptual: Tensor | None
    fooled: Tensor | None


class AutoencoderLearner:
    """An autoencoder that learns to reconstruct pictures; a `loop.Learner`.

    It learns at full size and, every fourth step, at half or three quarters of it, since the low-resolution
    pretrainings need latents of such pictures. The loss, in fp32, is L1 and perceptual distance on values in [-1, 1],
    the KL in nats per value, and an adversary from `adversarial_start` on.

    world: the processes that share each batch. Each holds all weights, since they are few, and gradients are averaged.

    A process computes `micro_batch_size` pictures at a time and adds up the gradients. Every loss is a mean over
    pictures, no layer looks at other pictures of the batch (GroupNorm), and each picture has its own noise, so that the
    sums are the whole batch's gradients to rounding. The adversary's weight is a ratio of lengths of the whole batch's
    gradients: they are added up before, which costs another forward pass of each part, if there are several, once the
    adversary has started. Its own gradients are added up alike.
    """

    def __init__(
        self, network: Autoencoder, rows: Rows, config: AutoencoderTrainingConfig, world: World = ALONE
    ) -> None:
        self.device = choose_device()
        self.config, self.world = config, world
        self._at_once = RowsAtOnce(
            config.micro_batch_size or config.batch_size, alone=world.size == 1, otherwise="more GPUs"
        )
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

    def prepare(self, step: int) -> Tensor:
        """Return this process's pictures of a step, float (n, 3, H, W) in [-1, 1] on the CPU, each mirrored with
        probability 1/2."""
        positions, _ = self.world.portion(self.config.batch_size)
        x = to_tensor(self.trained.images[self._indices(step)[positions]])
        drawn = torch.rand(self.config.batch_size, generator=generator_for(self.config.seed, step, 1))
        mirrored = drawn[positions] < 0.5
        return self.resize(step, torch.where(mirrored[:, None, None, None], x.flip(-1), x))

    def resize(self, step: int, x: Tensor) -> Tensor:
        """Return the pictures x (n, 3, H, W) at the size of a step."""
        if step % 4 != 3:
            return x
        factor = self.network.factor
        side = x.shape[-1] * (2 if step % 8 == 3 else 3) // 4 // factor * factor
        return F.interpolate(x, size=(side, side), mode="area")

    def learn(self, step: int, batch: Tensor) -> dict[str, float]:
        """Compute the gradients of a step, and those of the adversary once it has started. Return loss (only the L1),
        kl (nats per picture), the parts of the loss that are on, and the norms of the gradients, before clipping.

        If one process trains and its pictures do not fit into memory, half as many are computed at a time from here on.
        """
        return self._at_once.run(len(batch), lambda: self._learn(step, batch))

    def _learn(self, step: int, batch: Tensor) -> dict[str, float]:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        config = self.config.losses
        ramp = adversarial_share(step, self.config.num_steps, config.adversarial_start)
        adversarial = config.adversarial_weight > 0 and ramp > 0
        batch = batch.to(self.device, memory_format=torch.channels_last)
        parts, noises = batch.split(self._at_once.number), self._noise(step, batch).split(self._at_once.number)
        factor = self.world.portion(self.config.batch_size)[1]

        def compute(place: int) -> PartLosses:
            x = parts[place]
            return self.losses(x, noises[place], factor * (len(x) / len(batch)), adversarial)

        if len(parts) == 1:
            compute = cache(compute)  # nothing is computed twice
        weight = scale = None
        if adversarial:
            # no name holds a part's losses, or two parts would be in memory at once
            of_parts = [self._gradients_at_last(compute(place)) for place in range(len(parts))]
            gradients = [reduce(torch.add, those) for those in zip(*of_parts, strict=True)]
            self.world.average(gradients)
            weight = adaptive_weight(gradients)
            scale = config.adversarial_weight * ramp * weight
        found = [self._add_gradients(compute(place), scale) for place in range(len(parts))]
        metrics = {name: sum(part[name] for part in found) for name in found[0]}
        metrics["grad_norm"] = self._finish("network")
        if weight is not None:
            metrics["adversarial_weight"] = weight.item()
            metrics["adversary_grad_norm"] = self._finish("adversary")
        return metrics

    def _noise(self, step: int, batch: Tensor) -> Tensor:
        """Return the noise in the latents of this process's pictures; it is drawn for the whole batch, so that a
        picture gets the same however many processes share it."""
        channels, sides = len(self.network.latent_mean), [side // self.network.factor for side in batch.shape[-2:]]
        generator = generator_for(self.config.seed, step)
        noise = torch.randn(self.config.batch_size, channels, *sides, generator=generator)
        return noise[self.world.portion(self.config.batch_size)[0]].to(self.device)

    def losses(self, x: Tensor, noise: Tensor, share: float, adversarial: bool) -> PartLosses:
        """Return the losses of pictures x (n, 3, H, W) with noise (n, C, h, w) in their latents. share: of the batch.
        adversarial: whether the adversary has started."""
        with autocast(self.device):
            moments = self.network.encode(x)
            y = self.network.decode(moments.at(noise))
        y = y.float()  # the losses are in fp32
        perceptual = None if self.perceptual is None else share * self.perceptual(y, x).mean()
        fooled = None
        if adversarial:
            self.adversary.requires_grad_(False)
            fooled = -share * self.adversary(y).mean()
            self.adversary.requires_grad_(True)
        return PartLosses(x, y, share, share * (y - x).abs().mean(), share * moments.kl(), perceptual, fooled)

    def _reconstruction(self, losses: PartLosses) -> Tensor:
        perceptual = losses.perceptual
        return losses.l1 if perceptual is None else losses.l1 + self.config.losses.perceptual.weight * perceptual

    def _gradients_at_last(self, losses: PartLosses) -> list[Tensor]:
        assert losses.fooled is not None
        return gradients_at(self.network.last_layer, self._reconstruction(losses), losses.fooled)

    def _add_gradients(self, losses: PartLosses, scale: Tensor | None) -> dict[str, float]:
        """Add a part's gradients, also the adversary's if its loss counts `scale` times, and return the losses."""
        metrics = {"loss": losses.l1.item(), "kl": losses.kl.item()}
        if losses.perceptual is not None:
            metrics["perceptual"] = losses.perceptual.item()
        loss = self._reconstruction(losses) + self.config.losses.kl_weight * losses.kl / losses.x[0].numel()
        if scale is None or losses.fooled is None:
            loss.backward()
            return metrics
        (loss + scale * losses.fooled).backward()
        of_adversary = losses.share * hinge_loss(self.adversary(losses.x), self.adversary(losses.y.detach()))
        of_adversary.backward()
        return {**metrics, "adversary_loss": of_adversary.item()}

    def _finish(self, name: str) -> float:
        """Average a module's gradients over the processes and clip them; return their norm before that."""
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
        for index in np.split(positions, range(self._at_once.number, num, self._at_once.number)):
            x = to_tensor(self.held.images[index]).to(self.device)
            error_B = (network.decode(network.encode(x).mean).clamp(-1, 1) - x).flatten(1)
            l1 += error_B.abs().mean(1).sum().item()
            psnr += (-10 * (error_B / 2).square().mean(1).log10()).sum().item()
        return self.world.mean({"val_loss": factor * l1 / num, "val_psnr": factor * psnr / num})
