"""The convolutional autoencoder with a diagonal Gaussian latent (Rombach et al., arXiv 2112.10752; Emu, sec. 3.1).

It differs from the usual one on purpose: the first downsamplings may be replaced by folding `fold` x `fold` pixels into
channels (space to depth), so that a small machine spends its time on a few wide convolutions. `fold: 1` gives the usual
network.

Shapes: x (B, 3, H, W) in [-1, 1], z (B, C, H / f, W / f) with f = fold * 2 ** (len(widths) - 1).
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from emu_models.latent.autoencoder.fourier import FourierFeatures

LIBRARY = "emu_models"  # the library of the class, for model_index.json and config.json
LOGVAR_RANGE = (-30.0, 20.0)  # CompVis/latent-diffusion, DiagonalGaussianDistribution
VISIBILITY_POWER = 0.7  # chosen here by trial, 2026-11-23: docs/log.md compares 0, 0.5, 0.7 and 1
START_LOGVAR = -6.0  # a posterior std of 0.05 for a unit latent at the start; chosen here
MEASURED_AT_ONCE = 16  # pictures of which latents are measured; 2 GB at 256 px in fp32; chosen here
GROUP_SIZE = 16  # channels per group of GroupNorm; chosen here


@dataclass(frozen=True)
class Moments:
    """Mean and log variance of the latent, each (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return a latent (B, C, h, w) drawn from the Gaussian."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.at(noise)

    def at(self, noise: Tensor) -> Tensor:
        """Return the latent that is `noise` (B, C, h, w) standard deviations from the mean."""
        return self.mean + noise * (0.5 * self.logvar).exp()

    def select(self, index_B: Tensor) -> "Moments":
        """Return the moments of the rows index_B, int64 (B,)."""
        return Moments(self.mean[index_B], self.logvar[index_B])

    def kl(self) -> Tensor:
        """Return the KL to the unit Gaussian in nats per picture, averaged over the batch:
        (1/2) sum(mean^2 + var - 1 - logvar).

        It is computed in fp32: the variance and the sum of thousands of terms exceed the range of half precision.
        """
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a normalisation; the second starts at zero, so the block starts as the
    identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(width // GROUP_SIZE, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(width // GROUP_SIZE, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for x (B, width, h, w), of the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Autoencoder(ModelMixin, ConfigMixin):
    """Encoder, diagonal Gaussian, decoder. diffusers' `save_pretrained` saves it as config.json and safetensors.

    `latent_mean` and `latent_std` (C,) are measured on training latents and saved with the weights: the denoiser works
    on (z - mean) / std, since it learns badly on latents with many channels that are not normalised.

    Args:
        latent_channels: C.
        fourier_bands: of the pictures' Fourier features (fourier.py); 0 for none.
        fold: side in px of the squares that the first layer folds into channels; 1 for none.
        widths: channels per level, the finest first, multiples of GROUP_SIZE; each further level halves both sides.
        encoder_blocks, decoder_blocks: residual blocks per level.
        linear_shortcut: whether there is a linear code beside the convolutions (`start_from_principal_components`).
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

    def to_json_string(self) -> str:
        """Return the config, with {library: class} as `_class_name`. With a plain name, any class of diffusers would
        load this folder, with random weights and only a warning; they refuse a `_class_name` that is not a string.
        """
        config = json.loads(super().to_json_string())
        return json.dumps({**config, "_class_name": {LIBRARY: type(self).__name__}}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the config of a folder, also of one by an older version, which wrote a plain `_class_name`."""
        config = super().load_config(*args, **kwargs)
        found = config[0] if isinstance(config, tuple) else config
        found["_class_name"] = cls.__name__
        return config

    @torch.no_grad()
    def start_from_principal_components(self, x_NCHW: Tensor) -> None:
        """Set the linear shortcuts to the whitened principal components of the f x f patches of pictures (N, 3, H, W)
        in [-1, 1], and the outputs of the convolutions to zero, so that training starts at the best linear code. This
        is not in the paper; it saves a 2-core machine the first few hundred steps (docs/log.md, 2026-11-23). Raises
        ValueError without linear_shortcut.
        """
        if self.shortcut_in is None or self.shortcut_out is None:
            raise ValueError("principal components need linear_shortcut: true, but this autoencoder has false")
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
        # a transposed convolution has one bias per channel, not per position, so the mean patch becomes its mean
        self.shortcut_out.bias.copy_(mean.reshape(3, -1).mean(1))  # type: ignore[union-attr]
        for last in (self.encoder[-1], self.decoder[-1]):
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            last.weight.zero_()
            last.bias.zero_()
        self.encoder[-1].bias[num_components:] = START_LOGVAR  # type: ignore[index]

    @torch.no_grad()
    def measure_latents(self, x_NCHW: Tensor) -> None:
        """Set latent_mean and latent_std from the latents of pictures (N, 3, H, W) in [-1, 1], so that `normalise`
        gives the denoiser latents of unit variance overall, in which a channel's variance increases with its
        visibility.

        A channel's visibility is the root mean square change of the decoded pixels if the channel changes by one
        standard deviation. Its share of the variance is proportional to visibility to the power 2 * VISIBILITY_POWER:
        at 0 every channel counts the same, and a small denoiser spends its capacity on invisible ones; at 1 the less
        visible ones are lost.
        """
        z = torch.cat([self.encode(x.to(self.latent_mean.device)).mean for x in x_NCHW.split(MEASURED_AT_ONCE)])
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)).clamp(min=1e-6)
        parts = z.split(MEASURED_AT_ONCE)
        decoded = [self.decode(part) for part in parts]

        def change_of(channel: int) -> Tensor:
            step = std[channel] * F.one_hot(torch.tensor(channel), len(std)).to(z)[:, None, None]
            squares = [
                (self.decode(z + step) - x).square().mean((1, 2, 3)) for z, x in zip(parts, decoded, strict=True)
            ]
            return torch.cat(squares).mean().sqrt()

        shows = torch.stack([change_of(channel) for channel in range(len(std))])
        scale = shows.clamp(min=1e-6) ** VISIBILITY_POWER
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std * scale.square().mean().sqrt() / scale)

    @property
    def last_layer(self) -> Tensor:
        """The weight at which the adaptive adversarial weight compares gradients (Esser et al., arXiv 2012.09841)."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def encode(self, x_BCHW: Tensor) -> Moments:
        """Return the moments of the latents of pictures (B, 3, H, W) in [-1, 1]. Raises ValueError if a side is not a
        multiple of the factor."""
        if x_BCHW.shape[-1] % self.factor or x_BCHW.shape[-2] % self.factor:
            raise ValueError(f"sides {tuple(x_BCHW.shape[-2:])} must be multiples of {self.factor}; resize or crop")
        folded = F.pixel_unshuffle(self.fourier(x_BCHW), self.fold)
        mean, logvar = self.encoder(folded).chunk(2, dim=1)
        if self.shortcut_in is not None:
            mean = mean + self.shortcut_in(x_BCHW)
        return Moments(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, z_BChw: Tensor) -> Tensor:
        """Return pictures (B, 3, f h, f w), about in [-1, 1] but not clipped, from latents (B, C, h, w) that are not
        normalised."""
        x_BCHW = F.pixel_shuffle(self.decoder(z_BChw), self.fold)
        return x_BCHW if self.shortcut_out is None else x_BCHW + self.shortcut_out(z_BChw)

    def normalise(self, z_BChw: Tensor) -> Tensor:
        """Return the denoiser's input, (z - latent_mean) / latent_std, for latents (B, C, h, w) from `encode`."""
        mean, std = (x.to(z_BChw)[:, None, None] for x in (self.latent_mean, self.latent_std))
        return (z_BChw - mean) / std

    def denormalise(self, z_BChw: Tensor) -> Tensor:
        """Return the input of `decode` for latents (B, C, h, w) from the denoiser: the inverse of `normalise`."""
        return z_BChw * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
