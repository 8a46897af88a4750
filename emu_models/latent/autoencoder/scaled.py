"""Autoencoders of others' checkpoints, with the methods of our Autoencoder that tuning calls."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKLQwenImage
from torch import Tensor, nn

from emu_models.latent.autoencoder.network import Moments

NO_NOISE = -30.0  # log variance of latents that an autoencoder gives as values; within half precision's range


class ScaledAutoencoder(nn.Module):
    """diffusers' AutoencoderKL, AutoencoderDC or AutoencoderKLQwenImage with the statistics of its latents.

    mean, std: of each channel or of all; `normalise` is the inverse of what the checkpoint's pipeline does before it
    decodes (checkpoints.latents_of).
    """

    def __init__(self, vae: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.vae = vae
        self.register_buffer("latent_mean", torch.tensor(mean))
        self.register_buffer("latent_std", torch.tensor(std))
        self.latent_mean: Tensor
        self.latent_std: Tensor

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.vae.device

    @property
    def factor(self) -> int:
        """Pixels per side of a latent position."""
        widths = self.vae.config.get("block_out_channels")
        return 2 ** (len(widths) - 1) if widths else self.vae.spatial_compression_ratio

    def encode(self, x_BCHW: Tensor) -> Moments:
        """Return the moments (B, C, h, w) of the latents of pictures (B, 3, H, W) in [-1, 1]."""
        if isinstance(self.vae, AutoencoderDC):
            mean = self.vae.encode(x_BCHW).latent
            return Moments(mean, torch.full_like(mean, NO_NOISE))
        if isinstance(self.vae, AutoencoderKLQwenImage):  # a video of one frame
            found = self.vae.encode(x_BCHW[:, :, None]).latent_dist
            return Moments(found.mean[:, :, 0], found.logvar[:, :, 0])
        found = self.vae.encode(x_BCHW).latent_dist
        return Moments(found.mean, found.logvar)

    def decode(self, z_BChw: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W), about in [-1, 1], from latents (B, C, h, w) that are not normalised."""
        if isinstance(self.vae, AutoencoderKLQwenImage):
            return self.vae.decode(z_BChw[:, :, None]).sample[:, :, 0]
        return self.vae.decode(z_BChw).sample

    def normalise(self, z_BChw: Tensor) -> Tensor:
        """Return the input of the checkpoint's denoiser, (z - latent_mean) / latent_std, for latents (B, C, h, w) from
        `encode`."""
        mean, std = (x.to(z_BChw)[:, None, None] for x in (self.latent_mean, self.latent_std))
        return (z_BChw - mean) / std
