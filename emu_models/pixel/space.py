"""Pixels as latents, for networks that draw pictures themselves."""

import torch
from torch import Tensor, nn

from emu_models.latent.autoencoder.network import Moments
from emu_models.latent.autoencoder.scaled import NO_NOISE


class PixelSpace(nn.Module):
    """An Autoencoder that changes nothing: it has no weights, and a position is a pixel."""

    factor = 1

    @property
    def device(self) -> torch.device:
        """Where it would have weights."""
        return torch.device("cpu")

    def encode(self, x_BCHW: Tensor) -> Moments:
        """Return pictures (B, 3, H, W) in [-1, 1] as moments without noise."""
        return Moments(x_BCHW, torch.full_like(x_BCHW, NO_NOISE))

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Return the pictures (B, 3, H, W), which may leave [-1, 1]."""
        return z_BCHW

    def normalise(self, z_BCHW: Tensor) -> Tensor:
        """Return the input of the denoiser, (B, 3, H, W): the pictures themselves."""
        return z_BCHW
