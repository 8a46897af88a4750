"""Pictures scaled down and up, and what the upscaler of a cascade sees of a small one; this file is saved with every
cascade, for its pipeline.

Symbols: x a picture (B, C, H, W) with values in [-1, 1], y a small one (B, C, h, w); H = factor h, W = factor w.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LEVEL_SCALE = 1000.0  # a network is told 1000 x level, so that its waves (made for timesteps) tell levels apart


def shrink(x_BCHW: Tensor, factor: int) -> Tensor:
    """Return the means (B, C, h, w) of the squares of factor x factor pixels. Raises ValueError if a side is not a
    multiple of the factor."""
    height, width = x_BCHW.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"height {height} and width {width} must be multiples of {factor}")
    return x_BCHW if factor == 1 else F.avg_pool2d(x_BCHW, factor)


def enlarge(y_BChw: Tensor, factor: int) -> Tensor:
    """Return small pictures enlarged to (B, C, H, W) by bicubic interpolation, which may leave their range by a little
    at edges."""
    if factor == 1:
        return y_BChw
    return F.interpolate(y_BChw, scale_factor=factor, mode="bicubic", align_corners=False)


def augment(y_BChw: Tensor, noise: Tensor, level_B: Tensor) -> Tensor:
    """Return small pictures with noise of a level in [0, 1]: cos(pi/2 level) y + sin(pi/2 level) noise. 0 leaves them,
    and 1 is noise alone (noise conditioning augmentation, Ho et al., arXiv 2106.15282, sec. 4; the schedule is chosen
    here)."""
    angle = (0.5 * math.pi * level_B)[:, None, None, None]
    return angle.cos() * y_BChw + angle.sin() * noise


def condition_on(y_BChw: Tensor, noise: Tensor, level_B: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return what an upscaler is given of small pictures: them with noise of a level (B,) in [0, 1], enlarged to
    (B, C, H, W), and the numbers (B, 1) that it is told."""
    return enlarge(augment(y_BChw, noise, level_B), factor), LEVEL_SCALE * level_B[:, None]


def keep_colours(x_BCHW: Tensor, y_BChw: Tensor, cell: int) -> Tensor:
    """Return pictures in [-1, 1] whose smooth colours are those of the small ones, and whose mean colours exactly are.

    First the difference of the mean colours of cells, (cell x cell) pixels of y, is added, smoothly enlarged. Clipping
    undoes some of that in plain areas, so then each channel is mixed with white or with black, as much as its mean over
    the picture needs. Raises ValueError if a side of y is not a multiple of the cell.
    """
    factor = x_BCHW.shape[-1] // y_BChw.shape[-1] * cell
    x, y = x_BCHW.clamp(-1, 1), y_BChw.clamp(-1, 1)
    x = (x + enlarge(shrink(y, cell) - shrink(x, factor), factor)).clamp(-1, 1)
    mean, wanted = (one.mean((2, 3), keepdim=True) for one in (x, y))
    end = torch.where(wanted > mean, 1.0, -1.0).to(x)
    share = (wanted - mean) / (end - mean).abs().clamp(min=1e-6) * end  # 0..1, since wanted lies between mean and end
    return x + share.clamp(0, 1) * (end - x)
