"""The non-learnable Fourier feature transform in front of the encoder (Emu paper, sec. 3.1).

The paper says that it lifts RGB to more input channels, but not how; the number of bands and the frequencies are chosen
here. For every channel with values x, the channels sin and cos of 2^k * pi * x, k = 0 .. num_bands - 1, are added
(Tancik et al., arXiv 2006.10739, axis-aligned, and on colour instead of position).
"""

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """x: (B, 3, H, W) in [-1, 1] -> (B, 3 * (1 + 2 * num_bands), H, W). It has no parameters; with 0 bands it is the
    identity. Raises ValueError for a negative number of bands."""

    def __init__(self, num_bands: int) -> None:
        super().__init__()
        if num_bands < 0:
            raise ValueError(f"fourier_bands is {num_bands}; it must be 0 (off) or more")
        self.num_bands = num_bands

    @property
    def num_channels(self) -> int:
        """Channels of the output."""
        return 3 * (1 + 2 * self.num_bands)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, num_channels, H, W) from (B, 3, H, W) in [-1, 1]: x itself, then sin and cos per band."""
        parts = [x_BCHW]
        for k in range(self.num_bands):
            angle = x_BCHW * (2**k * math.pi)
            parts += [angle.sin(), angle.cos()]
        return torch.cat(parts, dim=1)
