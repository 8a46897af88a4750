"""Runs the transformer that fills in masked tokens (Muse, arXiv 2301.00704); this file is saved with every model, for
its pipeline.

It is diffusers' UVit2DModel, as in aMUSEd (arXiv 2401.01808). Its convolutions tell it where a token is. Shapes: tokens
(B, h, w), of which the last of the network's vocabulary is the mask.
"""

import math
from typing import Any

import torch
from diffusers import UVit2DModel
from torch import Tensor

from emu_models.text import TextFeatures


def mask_token(network: UVit2DModel) -> int:
    """Return the token that stands for a masked position."""
    config: Any = network.config
    return config.vocab_size - 1


def predict_logits(network: UVit2DModel, tokens_Bhw: Tensor, text: TextFeatures, factor: int) -> Tensor:
    """Return the logits of the codes, (B, codes, h, w), at all positions of tokens, int64 (B, h, w), some masked.

    factor: pixels per side of a position; the network is told height and width in pixels. It has no mask for text, but
    padding is zero there: since no layer on the way has a bias, its keys and values are zero, too, so that it adds
    nothing but a constant to the attention's denominator.
    """
    height, width = (factor * side for side in tokens_Bhw.shape[-2:])
    sizes_B2 = text.pooled_BD.new_tensor([height, width]).expand(len(tokens_Bhw), -1)
    return network(tokens_Bhw, text.tokens_BLD, text.pooled_BD, sizes_B2)


def share_masked(u: Tensor) -> Tensor:
    """Return the share of positions that are masked, cos(pi u / 2), for u in 0..1: how many are left after the share u
    of the steps of drawing, and in training, for u drawn evenly, with the density 2 / (pi sqrt(1 - r^2)) (MaskGIT,
    arXiv 2202.04200, sec. 3.3; Muse, sec. 2.6)."""
    return torch.cos(u * (math.pi / 2))


def lowest(scores_BN: Tensor, num_B: Tensor) -> Tensor:
    """Return which of the scores (B, N) are among the num_B (B,) lowest of their row, bool (B, N)."""
    ranks = scores_BN.argsort(dim=1).argsort(dim=1)
    return ranks < num_B[:, None]


def halton_order(height: int, width: int) -> Tensor:
    """Return each position's place in the order of drawing, int64 (height, width), such that those of any stretch of it
    are spread over the picture: the points of the Halton sequence in bases 2 and 3 visit the grid's cells (Besnier et
    al., arXiv 2503.17076, sec. 4)."""
    place: dict[tuple[int, int], int] = {}
    point = 1
    while len(place) < height * width:
        cell = int(_reversed_digits(point, 2) * height), int(_reversed_digits(point, 3) * width)
        place.setdefault(cell, len(place))
        point += 1
    return torch.tensor([[place[row, column] for column in range(width)] for row in range(height)])


def _reversed_digits(number: int, base: int) -> float:
    """Return the number in 0..1 whose digits after the point are those of `number`, reversed (van der Corput)."""
    found, scale = 0.0, 1 / base
    while number:
        number, digit = divmod(number, base)
        found += digit * scale
        scale /= base
    return found
