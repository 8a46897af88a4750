"""The convolutional autoencoder with a diagonal Gaussian latent (Rombach et al., arXiv 2112.10752; Emu, sec. 3.1).

Differs on purpose from the usual one: the first downsamplings may be a fold of `fold` x `fold` pixels into channels
(space to depth), so that a small machine spends its time in few wide convolutions. `fold: 1` gives the usual ladder.

Shapes: x (B, 3, H, W) in [-1, 1], z (B, C, H / f, W / f) with f = fold * 2 ** (len(widths) - 1).
"""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from emu_models.latent.autoencoder.fourier import FourierFeatures

LOGVAR_RANGE = (-30.0, 20.0)  # CompVis/latent-diffusion, DiagonalGaussianDistribution
VISIBILITY_POWER = 0.7  # chosen here by trial, 2026-11-23: 0, 0.5, 0.7 and 1 compared in docs/log.md
START_LOGVAR = -6.0  # posterior std 0.05 of a unit latent at the start; chosen here
GROUP_SIZE = 16  # channels a group of GroupNorm; chosen here


@dataclass(frozen=True)
class Moments:
    """Mean and log variance of the latent, each (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A latent (B, C, h, w) drawn from the Gaussian."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.at(noise)

    def at(self, noise: Tensor) -> Tensor:
        """The latent that lies `noise` (B, C, h, w) standard deviations from the mean."""
        return self.mean + noise * (0.5 * self.logvar).exp()

    def select(self, index_B: Tensor) -> "Moments":
        """Those of some rows; index_B: int64 (B,)."""
        return Moments(self.mean[index_B], self.logvar[index_B])

    def kl(self) -> Tensor:
        """KL to the unit Gaussian, nats a picture, averaged over the batch: (1/2) sum(mean^2 + var - 1 - logvar).

        In fp32: the variance and the sum of thousands of terms leave the range of half precision.
        """
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, pre-normalised; the second starts at zero, so that the block starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(width // GROUP_SIZE, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(width // GROUP_SIZE, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, width, h, w) to the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Autoencoder(ModelMixin, ConfigMixin):
    """Encoder, diagonal Gaussian, decoder. Saved as config.json and safetensors by diffusers' `save_pretrained`.

    `latent_mean` and `latent_std` (C,) are measured on training latents and kept with the weights: the denoiser works
    on (z - mean) / std, since it learns badly on wide latents that are not normalised.

    Args:
        latent_channels: C.
        fourier_bands: of the pictures' Fourier features (fourier.py); 0 for none.
        fold: px of a side that the first layer folds into channels; 1 for none.
        widths: channels of the levels, finest first, multiples of GROUP_SIZE; each further level halves both sides.
        encoder_blocks, decoder_blocks: residual blocks of a level.
        linear_shortcut: a linear code beside the convolutions (`start_from_principal_components`).
    Raises ValueError for other widths.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        fourier_bands: int = 0,
        fold: int = 4,
        widths: tuple[int, ...] = (128, 192),
        encoder_blocks: int = 1,
        decoder_blocks: int = 1,
        linear_shortcut: bool = True,
    ) -> None:
        super().__init__()
        bad = [w for w in widths if w % GROUP_SIZE]
        if bad:
            raise ValueError(f"autoencoder widths must be multiples of {GROUP_SIZE}; {bad} are not")
        self.fourier = FourierFeatures(fourier_bands)
        self.fold = fold
        self.factor = fold * 2 ** (len(widths) - 1)

        encoder: list[nn.Module] = [nn.Conv2d(self.fourier.num_channels * fold**2, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i:
                encoder.append(nn.Conv2d(widths[i - 1], width, 2, stride=2))
            encoder += [ResidualBlock(width) for _ in range(encoder_blocks)]
        encoder += [nn.GroupNorm(widths[-1] // GROUP_SIZE, widths[-1]), nn.SiLU()]
        encoder.append(nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1))
        self.encoder = nn.Sequential(*encoder)

        decoder: list[nn.Module] = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1)]
        for i in reversed(range(len(widths))):
            decoder += [ResidualBlock(widths[i]) for _ in range(decoder_blocks)]
            if i:
                decoder.append(nn.ConvTranspose2d(widths[i], widths[i - 1], 2, stride=2))
        decoder += [nn.GroupNorm(widths[0] // GROUP_SIZE, widths[0]), nn.SiLU()]
        decoder.append(nn.Conv2d(widths[0], 3 * fold**2, 3, padding=1))
        self.decoder = nn.Sequential(*decoder)

        self.shortcut_in = nn.Conv2d(3, latent_channels, self.factor, stride=self.factor) if linear_shortcut else None
        self.shortcut_out = (
            nn.ConvTranspose2d(latent_channels, 3, self.factor, stride=self.factor) if linear_shortcut else None
        )
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))
        self.latent_mean: Tensor
        self.latent_std: Tensor

    @torch.no_grad()
    def start_from_principal_components(self, x_NCHW: Tensor) -> None:
        """Sets the linear shortcuts to the whitened principal components of the pictures' f x f patches, and the
        convolutional path's outputs to zero: training starts at the best linear code, not at noise. Ours, not the
        paper's; it spares a 2-core machine the first few hundred steps (docs/log.md, 2026-11-23).
        """
        if self.shortcut_in is None or self.shortcut_out is None:
            raise ValueError("this autoencoder was configured with linear_shortcut: false")
        f, num_components = self.factor, self.shortcut_in.out_channels
        patches = F.unfold(x_NCHW, f, stride=f).transpose(1, 2).reshape(-1, 3 * f * f)
        mean = patches.mean(0)
        variance, vectors = torch.linalg.eigh(torch.cov((patches - mean).T.double()))
        basis = vectors[:, -num_components:].flip(1).T.float()  # (C, 3 f f), largest variance first
        scale = variance[-num_components:].flip(0).clamp(min=1e-8).sqrt().float()[:, None]
        self.shortcut_in.weight.copy_((basis / scale).reshape(-1, 3, f, f))
        self.shortcut_in.bias.copy_(-(basis / scale) @ mean)  # type: ignore[union-attr]
        self.shortcut_out.weight.copy_((basis * scale).reshape(-1, 3, f, f))
        self.shortcut_out.bias.zero_()  # type: ignore[union-attr]
        # a transposed convolution has one bias a channel, not one a position: the mean patch is folded into its mean
        self.shortcut_out.bias.copy_(mean.reshape(3, -1).mean(1))  # type: ignore[union-attr]
        for last in (self.encoder[-1], self.decoder[-1]):
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            last.weight.zero_()
            last.bias.zero_()
        self.encoder[-1].bias[num_components:] = START_LOGVAR  # type: ignore[index]

    @torch.no_grad()
    def measure_latents(self, x_NCHW: Tensor) -> None:
        """Sets latent_mean and latent_std from the latents of pictures, so that `normalise` gives the denoiser latents
        of unit variance in all, in which a channel has the more variance the more it shows.

        How much a channel shows: the root mean square change of the decoded pixels when it moves by one standard
        deviation. Its share of the variance goes with that to the power 2 * VISIBILITY_POWER: at 0 every channel counts
        the same and a small denoiser spends its capacity on what nobody sees; at 1 the faint ones are drowned.
        """
        z = self.encode(x_NCHW).mean
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)).clamp(min=1e-6)
        decoded = self.decode(z)
        shows = torch.stack(
            [
                (self.decode(z + std[c] * F.one_hot(torch.tensor(c), len(std)).to(z)[:, None, None]) - decoded)
                .square()
                .mean()
                .sqrt()
                for c in range(len(std))
            ]
        )
        scale = shows.clamp(min=1e-6) ** VISIBILITY_POWER
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std * scale.square().mean().sqrt() / scale)

    @property
    def last_layer(self) -> Tensor:
        """Weight that the adaptive adversarial weight compares gradients at (Esser et al., arXiv 2012.09841)."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def encode(self, x_BCHW: Tensor) -> Moments:
        """Pictures in [-1, 1] to the moments of their latents. ValueError if a side is no multiple of the factor."""
        if x_BCHW.shape[-1] % self.factor or x_BCHW.shape[-2] % self.factor:
            raise ValueError(f"sides {tuple(x_BCHW.shape[-2:])} must be multiples of {self.factor}; resize or crop")
        folded = F.pixel_unshuffle(self.fourier(x_BCHW), self.fold)
        mean, logvar = self.encoder(folded).chunk(2, dim=1)
        if self.shortcut_in is not None:
            mean = mean + self.shortcut_in(x_BCHW)
        return Moments(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, z_BChw: Tensor) -> Tensor:
        """Latents (B, C, h, w), not normalised, to pictures (B, 3, f h, f w), about in [-1, 1], not clipped."""
        x_BCHW = F.pixel_shuffle(self.decoder(z_BChw), self.fold)
        return x_BCHW if self.shortcut_out is None else x_BCHW + self.shortcut_out(z_BChw)

    def normalise(self, z_BChw: Tensor) -> Tensor:
        """Latents (B, C, h, w) as `encode` gives them to what the denoiser works on: (z - latent_mean) / latent_std."""
        mean, std = (x.to(z_BChw)[:, None, None] for x in (self.latent_mean, self.latent_std))
        return (z_BChw - mean) / std

    def denormalise(self, z_BChw: Tensor) -> Tensor:
        """The inverse of `normalise`: what the denoiser made, (B, C, h, w), to what `decode` takes."""
        return z_BChw * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
