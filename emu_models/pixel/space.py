"""Pixels in the place of latents: what learners and caches expect of an autoencoder, for networks that draw pixels."""

import torch
from torch import Tensor, nn

from emu_models.latent.autoencoder.network import Moments
from emu_models.latent.autoencoder.scaled import NO_NOISE
from emu_models.pixel.scaling import enlarge, shrink


class PixelSpace(nn.Module):
    """Stands where an autoencoder stands (checkpoints.latents_of), and has nothing to learn: its latents are the pixels
    themselves, in [-1, 1], or those of the picture scaled down.

    factor: pixels of a picture per side of a latent position; 1 leaves pictures as they are. A larger one takes the
    mean of each square of factor x factor pixels, so that the small picture has exactly the mean colour of the large
    one. Raises ValueError if it is below 1.
    """

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"the factor of a pixel space is {factor}; it must be 1 or more")
        # part of the state, whose hash is the name of a cache (training/cache.py): each factor has its own
        self.register_buffer("pixels_per_side", torch.tensor(factor))
        self.factor = factor

    @property
    def device(self) -> torch.device:
        """Where it would have weights."""
        return torch.device("cpu")

    def encode(self, x_BCHW: Tensor) -> Moments:
        """Return the moments (B, 3, H / factor, W / factor) of pictures (B, 3, H, W) in [-1, 1]: their pixels, without
        noise. Raises ValueError if a side is not a multiple of the factor."""
        mean = shrink(x_BCHW, self.factor)
        return Moments(mean, torch.full_like(mean, NO_NOISE))

    def decode(self, z_BChw: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) from what `encode` gives, (B, 3, h, w): the same pixels, not clamped, or, with a
        factor above 1, those enlarged smoothly."""
        return enlarge(z_BChw, self.factor)

    def normalise(self, z_BChw: Tensor) -> Tensor:
        """Return a network's input for latents (B, 3, h, w): the same."""
        return z_BChw
