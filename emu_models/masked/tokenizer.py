"""The tokenizer of pictures: the convolutional autoencoder, whose latents are rounded to a fixed grid of codes (finite
scalar quantisation, Mentzer et al., arXiv 2309.15505). There is no codebook that could collapse.

This file is saved with every model. Shapes: x (B, 3, H, W) in [-1, 1], z (B, C, h, w), tokens (B, h, w).
"""

import math
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 (diffusers looks for it beside the class)
from torch import Tensor

# diffusers copies only the files that this one imports directly, so the features are named here for the autoencoder
from emu_models.latent.autoencoder.fourier import FourierFeatures  # noqa: F401
from emu_models.latent.autoencoder.network import Autoencoder, Moments

# By which a unit Gaussian is best recovered from its tanh: E[z tanh z] / E[tanh^2 z] = 0.6057 / 0.3943.
RECOVERY = 1.536
NO_NOISE = -30.0  # log variance: a deviation of 3e-7, far below half a level; as little as an autoencoder may have


class PictureTokenizer(Autoencoder):
    """Encoder, rounding, decoder. A latent has a channel per entry of `levels`; a position's code is one of their
    product.

    Channel c is bounded by tanh, and its range (-1, 1) is cut into levels[c] equal parts, each of which stands for its
    middle (the paper's outer parts are half as wide; equal ones are chosen here, since they keep odd and even levels
    alike). Gradients pass the rounding as if it were not there (straight-through, ibid., sec. 3.1).

    Args:
        levels: of each channel, 2 or more; [8, 5, 5, 5] gives 1000 codes, [8, 6, 5] gives 240 (ibid., table 1).
        The others are Autoencoder's.
    Raises ValueError for other levels or widths.
    """

    @register_to_config
    def __init__(
        self,
        levels: tuple[int, ...] = (8, 6, 5),
        fourier_bands: int = 0,
        fold: int = 4,
        widths: tuple[int, ...] = (128, 192),
        encoder_blocks: int = 1,
        decoder_blocks: int = 1,
        linear_shortcut: bool = True,
    ) -> None:
        if not levels or min(levels) < 2:
            raise ValueError(f"levels are {list(levels)}; give one or more numbers, each 2 or more")
        network = (fourier_bands, fold, widths, encoder_blocks, decoder_blocks, linear_shortcut)
        super().__init__(len(levels), *network)
        self.levels = tuple(levels)
        self.num_codes = math.prod(levels)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the config of a folder, without the number of channels, which follows from the levels."""
        config = super().load_config(*args, **kwargs)
        found = config[0] if isinstance(config, tuple) else config
        found.pop("latent_channels", None)
        return config

    def encode(self, x_BCHW: Tensor) -> Moments:
        """Return the rounded latents of pictures (B, 3, H, W) in [-1, 1] as moments without noise: what other
        autoencoders return, so that trainings and caches can treat them alike. Raises ValueError if a side is not a
        multiple of the factor."""
        mean = self.round(super().encode(x_BCHW).mean.float())
        return Moments(mean, torch.full_like(mean, NO_NOISE))

    def round(self, z_BChw: Tensor) -> Tensor:
        """Return the middles of the parts in which tanh(z) lies, (B, C, h, w) in (-1, 1)."""
        bounded = z_BChw.tanh()
        levels = self._of_channels(self.levels, bounded)
        digits = ((bounded + 1) / 2 * levels).floor().clamp(min=0).minimum(levels - 1)
        return bounded + ((2 * digits + 1) / levels - 1 - bounded).detach()

    def tokens_of(self, z_BChw: Tensor) -> Tensor:
        """Return the tokens, int64 (B, h, w) in 0..num_codes - 1, of rounded latents."""
        levels, bases = self._of_channels(self.levels, z_BChw), self._of_channels(self._bases, z_BChw)
        digits = (((z_BChw + 1) * levels - 1) / 2).round()
        return (digits.clamp(min=0).minimum(levels - 1) * bases).sum(1).long()

    def latents_of(self, tokens_Bhw: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) that tokens (B, h, w) stand for: the inverse of `tokens_of`."""
        tokens = tokens_Bhw[:, None]
        levels, bases = self._of_channels(self.levels, tokens), self._of_channels(self._bases, tokens)
        return (2 * (tokens // bases % levels) + 1).to(self.dtype) / levels.to(self.dtype) - 1

    @property
    def _bases(self) -> tuple[int, ...]:
        """By what each channel's digit counts in a token."""
        return tuple(math.prod(self.levels[:c]) for c in range(len(self.levels)))

    @staticmethod
    def _of_channels(values: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]

    @torch.no_grad()
    def start_from_principal_components(self, x_NCHW: Tensor) -> None:
        """Start at the linear code of pictures (N, 3, H, W) in [-1, 1], as the autoencoder does, corrected for the
        tanh. Raises ValueError without linear_shortcut."""
        super().start_from_principal_components(x_NCHW)
        assert self.shortcut_out is not None
        self.shortcut_out.weight.mul_(RECOVERY)


def count_codes(tokens: Tensor, num_codes: int) -> dict[str, float]:
    """Return codes_used, 0..1, the share of the codes that occur among tokens, int64 of any shape, and code_entropy, in
    nats: the loss of a guess that knows only how frequent each code is."""
    share = torch.bincount(tokens.flatten(), minlength=num_codes).double() / tokens.numel()
    return {"codes_used": (share > 0).double().mean().item(), "code_entropy": torch.special.entr(share).sum().item()}
