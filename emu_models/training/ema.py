"""The exponential moving average of weights that samples are drawn with."""

import copy

import torch
from torch import nn


def copy_for_averaging(module: nn.Module) -> nn.Module:
    """A copy of `module` that is not trained, to be averaged into."""
    return copy.deepcopy(module).eval().requires_grad_(False)


class WeightAverage:
    """Moves the weights of `averaged`, which must start as those of the module that is trained, towards them.

    The decay warms up as min(decay, (1 + n) / (10 + n)), n updates so far (the rule of TensorFlow's
    ExponentialMovingAverage), so that short runs are not held at the start.
    """

    def __init__(self, averaged: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.averaged = averaged

    @torch.no_grad()
    def update(self, module: nn.Module, num_updates: int) -> None:
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(module.parameters()), 1 - decay)
        for mine, theirs in zip(self.averaged.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
