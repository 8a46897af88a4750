"""How the denoiser learns: pretraining at one resolution (Emu paper, sec. 3.2) and quality-tuning (sec. 3.4).

What is particular to Gaussian diffusion is in few methods, which flow/learner.py replaces for rectified flow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from emu_models.checkpoints import AnyAutoencoder
from emu_models.device import autocast
from emu_models.diffusion.objective import WEIGHT_FLOOR, denoising_loss, offset_noise
from emu_models.diffusion.schedule import NUM_TIMESTEPS
from emu_models.latent.autoencoder.network import Moments
from emu_models.latent.denoiser import denoise, takes_sizes
from emu_models.latent.jobs import DenoiserTrainingConfig
from emu_models.text import TextFeatures
from emu_models.training.compiling import compile_blocks
from emu_models.training.distributed import ALONE, World, exchange_gradients, whole
from emu_models.training.ema import copy_for_averaging
from emu_models.training.order import BatchOrder, draw_rows
from emu_models.training.parts import Part
from emu_models.training.rows_at_once import RowsAtOnce

T = TypeVar("T", covariant=True)

BETAS = (0.9, 0.99)  # chosen here, as for the autoencoder
WEIGHT_DECAY = 0.01  # torch's AdamW default
MAX_GRAD_NORM = 1.0  # chosen here
VALIDATION_TIMESTEPS = tuple(range(62, NUM_TIMESTEPS, 125))  # 8, evenly spread, as in MLPerf's Flux benchmark
VALIDATION_SEED = 1_000_003  # of the noise, which is the same at every validation; any number
MAX_VALIDATED = 1024  # held-out rows used by a validation, evenly spread over all; chosen here


class Selects(Protocol[T]):
    """Something from which rows of T can be selected: T itself, or a cache on disk."""

    def select(self, index_B: Tensor, /) -> T:
        """Return the rows at `index_B`, int64 (B,), in that order."""
        ...


@dataclass(frozen=True)
class LatentRows:
    """Rows to train or to validate on. keys, moments (C, h, w) and text features of the captions are found by the
    numbers of rows.

    only: the rows that are meant, by default all, in one bucket; rows in a bucket have the same h and w. in_windows:
    how the rows are shuffled, see order.BatchOrder. sizes: numbers of rows of one bucket -> what a network that takes
    sizes is told of them (PictureRows.sizes_of).
    """

    keys: Sequence[str]
    moments: Selects[Moments]
    text: Selects[TextFeatures]
    only: Part | None = None
    in_windows: bool = False
    sizes: Callable[[np.ndarray], Tensor] | None = None

    @cached_property
    def part(self) -> Part:
        """The rows that are meant."""
        return Part.of(np.zeros(len(self.keys), int)) if self.only is None else self.only


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch: latents z0 and noise (n, C, h, w), timesteps (or noise levels) t_B (n,), text,
    weights_B (n,), 0 for a repeated row, and sizes_B6 (n, 6), if the network takes sizes. beside: channels (n, K, h, w)
    that a network sees beside the noisy latents, if it does."""

    z0: Tensor
    noise: Tensor
    t_B: Tensor
    text: TextFeatures
    weights_B: Tensor
    sizes_B6: Tensor | None = None
    beside: Tensor | None = None

    def split(self, size: int) -> "list[Batch]":
        """Return the batch in parts of `size` rows; the last may be smaller."""
        parts = torch.arange(len(self.z0)).split(size)
        return [self._select(part) for part in parts]

    def _select(self, i: Tensor) -> "Batch":
        sizes, beside = (None if x is None else x[i] for x in (self.sizes_B6, self.beside))
        return Batch(self.z0[i], self.noise[i], self.t_B[i], self.text.select(i), self.weights_B[i], sizes, beside)


class DenoiserLearner:
    """A U-Net that learns to denoise latents of captioned pictures; a `loop.Learner`.

    The loss of a row is objective.denoising_loss, for the scheduler's prediction type, in fp32; the network itself may
    run in half precision. A step is AdamW with the gradients of the whole batch, clipped to norm MAX_GRAD_NORM.

    Args:
        network: predicts (B, C, h, w) from noisy latents, timesteps and text (denoiser.denoise); it learns on its own
            device.
        autoencoder: its `normalise` turns latents from the cached moments into the network's input.
        scheduler: any of diffusers' that adds Gaussian noise by `alphas_cumprod` (T,).
        trained, held: rows to learn from, and rows for `validate`.
        null: the features of the empty caption, one row, which replace a caption's with probability `caption_dropout`.
        world: the processes that share each batch; weights are distributed over them as its mesh says.
    """

    weight_floor = WEIGHT_FLOOR  # of objective.denoising_loss

    def __init__(
        self,
        network: Any,
        autoencoder: AnyAutoencoder,
        scheduler: Any,
        trained: LatentRows,
        held: LatentRows,
        null: TextFeatures,
        config: DenoiserTrainingConfig,
        world: World = ALONE,
    ) -> None:
        self.device = network.device
        self.config, self.trained, self.held, self.null, self.world = config, trained, held, null, world
        self.network, self.autoencoder = network, autoencoder
        self._at_once = RowsAtOnce(
            config.micro_batch_size or config.batch_size,
            alone=world.size == 1,
            otherwise="launch.strategy fsdp on more GPUs",
            also="" if config.gradient_checkpointing else "gradient_checkpointing: true",
        )
        self.averaged = copy_for_averaging(self.network, shares_frozen=world.mesh is None)
        if config.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        if config.compile:
            compile_blocks(self.network, self.device)
        for module in (self.network, self.averaged):
            world.spread(module)
        self.order = BatchOrder(trained.part, config.batch_size, config.seed, trained.in_windows)
        self.read_schedule(scheduler)
        self.modules = {"network": self.network}
        self.optimizers = {
            "network": torch.optim.AdamW(
                [p for p in self.network.parameters() if p.requires_grad],
                config.learning_rate,
                BETAS,
                weight_decay=WEIGHT_DECAY,
                fused=True,  # 9 ms per step instead of 26 for the demo's 5 M weights, docs/log.md
            )
        }

    def read_schedule(self, scheduler: Any) -> None:
        """Keep what the loss needs of the scheduler, and whether the network takes sizes."""
        self.alphas_cumprod, self.prediction_type = scheduler.alphas_cumprod.cpu(), scheduler.config.prediction_type
        self._takes_sizes = takes_sizes(self.network, self.null.pooled_BD.shape[1])

    def draw_times(self, uniform_B: Tensor, z0: Tensor) -> Tensor:
        """Return a timestep for each draw in [0, 1). z0: the latents that are to get their noise."""
        return (uniform_B * len(self.alphas_cumprod)).long()

    def validation_times(self, z0: Tensor) -> Sequence[float]:
        """Return the times at which held-out rows of the shape of z0 are compared."""
        return VALIDATION_TIMESTEPS

    def batch_keys(self, step: int) -> list[str]:
        """Return the keys of the rows of a step's whole batch."""
        return [self.trained.keys[int(i)] for i in self.order.indices(step)]

    def prepare(self, step: int) -> Batch:
        """Return this process's share of a step's batch, on the CPU. A row's random numbers depend on its position in
        the whole batch."""
        config = self.config
        positions, weights_B = self.world.share(config.batch_size)
        index = torch.from_numpy(self.order.indices(step)[positions])
        moments = self.trained.moments.select(index)
        channels, size = moments.mean.shape[1], moments.mean[0].numel()
        normal, uniform = draw_rows(config.seed, step, positions, 2 * size + channels, 2)
        within, noise, shift_BC = normal.split([size, size, channels], dim=1)
        z0 = self.autoencoder.normalise(moments.at(within.view_as(moments.mean)))
        noise = offset_noise(noise.view_as(moments.mean), shift_BC, config.noise_offset)
        t_B = self.draw_times(uniform[:, 0], z0)
        text = self.trained.text.select(index).drop_(uniform[:, 1] < config.caption_dropout, self.null)
        batch = Batch(z0, noise, t_B, text, weights_B, self._sizes_of(self.trained, index.numpy()))
        return self.condition(batch, config.seed, step, positions)

    def condition(self, batch: Batch, seed: int, step: int, positions: np.ndarray) -> Batch:
        """Return a batch with what else its network is given: nothing here. seed, step and positions: (n,), of its
        rows, for random numbers (order.draw_rows)."""
        return batch

    def _sizes_of(self, rows: LatentRows, index: np.ndarray) -> Tensor | None:
        return rows.sizes(index) if self._takes_sizes and rows.sizes is not None else None

    def learn(self, step: int, batch: Batch) -> dict[str, float]:
        """Compute the gradients of a step. Return loss, the mean over the rows, and grad_norm, before clipping.

        If one process trains and its rows do not fit into memory, half as many are computed at a time from here on.
        Raises torch.OutOfMemoryError, which says what to set, if several train: all must have as many parts.
        """
        total = self._at_once.run(len(batch.z0), lambda: self._compute_gradients(batch))
        norm = whole(torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRAD_NORM))
        return {"loss": total.item(), "grad_norm": norm.item()}

    def _compute_gradients(self, batch: Batch) -> Tensor:
        """Compute the gradients of the batch's mean loss, which is returned."""
        self.optimizers["network"].zero_grad()
        parts = batch.split(self._at_once.number)
        scale = self.world.size / self.config.batch_size  # gradients are averaged over the processes
        total = torch.zeros((), device=self.device)
        for part in parts:
            exchange_gradients(self.network, part is parts[-1])
            loss = scale * self.weighted_loss(self.network, part)
            loss.backward()
            total += loss.detach()
        return total

    def weighted_loss(self, network: torch.nn.Module, batch: Batch) -> Tensor:
        """Return the sum over the rows of weight times loss."""
        z0, noise, t_B = (x.to(self.device, non_blocking=True) for x in (batch.z0, batch.noise, batch.t_B))
        a2_B = self.alphas_cumprod[batch.t_B].to(self.device)
        a2 = a2_B[:, None, None, None]
        noisy = a2.sqrt() * z0 + (1 - a2).sqrt() * noise
        assert isinstance(network, UNet2DConditionModel)  # subclasses may have others
        with autocast(self.device):
            text, beside = batch.text.to(self.device), batch.beside
            sizes_B6 = None if batch.sizes_B6 is None else batch.sizes_B6.to(self.device)
            noisy = noisy if beside is None else torch.cat([noisy, beside.to(self.device)], dim=1)
            predicted = self.predict(network, noisy, t_B, text, sizes_B6)
        loss_B = denoising_loss(predicted.float(), z0, noise, a2_B, self.prediction_type, self.weight_floor)
        return (loss_B * batch.weights_B.to(self.device)).sum()

    def predict(self, network: Any, noisy: Tensor, t_B: Tensor, text: TextFeatures, sizes_B6: Tensor | None) -> Tensor:
        """Return the network's prediction (n, C, h, w), for noisy latents and what is beside them."""
        return denoise(network, noisy, t_B, text, self.autoencoder.factor, sizes_B6)

    @torch.no_grad()
    def validate(self, network: torch.nn.Module) -> dict[str, float]:
        """Return val_loss, the training loss on held-out rows, averaged over 8 fixed times with fixed noise; {} if no
        row is held out."""
        if not len(self.held.part):
            return {}
        num = min(len(self.held.part), MAX_VALIDATED)
        places = np.linspace(0, len(self.held.part) - 1, num).round().astype(int)
        rows = self.held.part.rows(places)
        buckets, total = self.held.part.buckets_of(rows), 0.0
        for bucket in np.unique(buckets):
            total += self._validate_rows(network, rows[buckets == bucket], places[buckets == bucket])
        mean = self.world.mean({"sum": total})["sum"] * self.world.size / num
        return {"val_loss": mean}

    def _validate_rows(self, network: torch.nn.Module, rows: np.ndarray, places: np.ndarray) -> float:
        """Return this process's share of the sum of losses of one bucket's held-out rows, averaged over the times.
        places: of the rows among all held-out ones; their noise depends on it."""
        positions, weights_B = self.world.share(len(rows))
        index = rows[positions]
        z0 = self.autoencoder.normalise(self.held.moments.select(torch.from_numpy(index)).mean)
        noise = draw_rows(VALIDATION_SEED, 0, places[positions], z0[0].numel())[0].view_as(z0)
        text, sizes_B6, total = self.held.text.select(torch.from_numpy(index)), self._sizes_of(self.held, index), 0.0
        times = self.validation_times(z0)
        whole = Batch(z0, noise, torch.zeros(len(z0)), text, weights_B, sizes_B6)
        whole = self.condition(whole, VALIDATION_SEED, 0, places[positions])
        for t in times:
            parts = replace(whole, t_B=torch.full((len(z0),), t)).split(self._at_once.number)
            total += sum(self.weighted_loss(network, part).item() for part in parts)
        return total / len(times)
