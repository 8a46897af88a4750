"""How the networks of a cascade learn: as any denoiser, and the upscaler beside small pictures with noise (Imagen,
arXiv 2205.11487, sec. 2.4 and algorithm 1)."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emu_models.latent.denoiser_learner import Batch, DenoiserLearner
from emu_models.pixel.denoising import denoise_pixels
from emu_models.pixel.scaling import condition_on, shrink
from emu_models.text import TextFeatures
from emu_models.training.order import draw_rows

# Added to a training's seed for the numbers that only an upscaler draws, so that they are not those of its pictures'
# noise, which order.draw_rows gives for the seed itself; any numbers.
AUGMENTATION_SEED, CROP_SEED = 2_000_003, 3_000_017


class PixelLearner(DenoiserLearner):
    """A U-Net on pixels that learns from captioned pictures; a `loop.Learner`."""

    def predict(self, network: Any, noisy: Tensor, t_B: Tensor, text: TextFeatures, sizes_B6: Tensor | None) -> Tensor:
        """Return the network's prediction (n, 3, h, w), for noisy pixels and what is beside them."""
        return denoise_pixels(network, noisy, t_B, text, self.autoencoder.factor, sizes_B6)


class UpscalerLearner(PixelLearner):
    """An upscaler that learns from captioned pictures; a `loop.Learner`. Its scheduler's prediction type is "sample".

    Args:
        ratio: pixels of a picture per pixel of its small one and side.
        max_augmentation: 0..1; the level of the small pictures' noise is uniform below it, in training and validation.
        crop: side in px of the random parts that it learns from, a multiple of ratio; None for whole pictures.
            Validation always sees whole ones.
        others: as DenoiserLearner takes them; latents are pixels.
    """

    # With the small picture beside it, much of a picture is known even where noise has covered it, and the upscaler's
    # first steps decide whether it follows the small one. At the 0.05 of other denoisers it drew specks of its own.
    weight_floor = 1.0

    def __init__(self, *others: Any, ratio: int, max_augmentation: float, crop: int | None = None) -> None:
        self._ratio, self._max_augmentation, self._crop = ratio, max_augmentation, crop
        super().__init__(*others)

    def read_schedule(self, scheduler: Any) -> None:
        """Keep what the loss needs of the scheduler. The network is told levels of noise instead of sizes."""
        super().read_schedule(scheduler)
        self._takes_sizes = False

    def prepare(self, step: int) -> Batch:
        """Return this process's share of a step's batch, on the CPU."""
        batch = super().prepare(step)
        return batch if self._crop is None else self._cut(batch, step, self._crop)

    def condition(self, batch: Batch, seed: int, step: int, positions: np.ndarray) -> Batch:
        """Return the batch with its pictures scaled down, with noise and enlarged, beside them."""
        small = shrink(batch.z0, self._ratio)
        noise, uniform = draw_rows(seed + AUGMENTATION_SEED, step, positions, small[0].numel(), 1)
        level_B = self._max_augmentation * uniform[:, 0]
        beside, told_B1 = condition_on(small, noise.view_as(small), level_B, self._ratio)
        return replace(batch, beside=beside, sizes_B6=told_B1)

    def _cut(self, batch: Batch, step: int, side: int) -> Batch:
        """Return a random square of each picture, `side` px high and wide, and of what is beside it."""
        height, width = batch.z0.shape[-2:]
        positions, _ = self.world.share(self.config.batch_size)
        _, uniform = draw_rows(self.config.seed + CROP_SEED, step, positions, 0, 2)
        places = torch.tensor([(height - side) // self._ratio + 1, (width - side) // self._ratio + 1])
        corners = ((uniform * places).long().clamp(max=places - 1) * self._ratio).tolist()

        def cut(x: Tensor) -> Tensor:
            return torch.stack([one[:, y : y + side, x : x + side] for one, (y, x) in zip(x, corners, strict=True)])

        assert batch.beside is not None
        return replace(batch, z0=cut(batch.z0), noise=cut(batch.noise), beside=cut(batch.beside))
