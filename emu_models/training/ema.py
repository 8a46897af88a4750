"""The exponential moving average of weights, with which samples are drawn."""

import copy

import torch
from torch import nn


def copy_for_averaging(module: nn.Module, shares_frozen: bool = False) -> nn.Module:
    """Return a copy of `module` for `WeightAverage`, in evaluation mode and without gradients. shares_frozen: weights
    that are not trained are those of `module` itself, which saves their memory beside adapters."""
    frozen = [p for p in module.parameters() if shares_frozen and not p.requires_grad]
    return copy.deepcopy(module, memo={id(p): p for p in frozen}).eval().requires_grad_(False)


class WeightAverage:
    """Averages the trained module's weights into those of `averaged`, which must start equal to them.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage, so that
    short runs do not stay near their start. Raises ValueError for a decay outside 0..1.
    """

    def __init__(self, averaged: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.averaged = averaged

    @torch.no_grad()
    def update(self, module: nn.Module, num_updates: int) -> None:
        """Move the average towards `module` after update `num_updates` (from 0); buffers are copied."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        pairs = zip(self.averaged.parameters(), module.parameters(), strict=True)
        learnt = [(mine, theirs) for mine, theirs in pairs if theirs.requires_grad]  # frozen weights stay equal
        torch._foreach_lerp_((*(mine for mine, _ in learnt),), (*(theirs for _, theirs in learnt),), 1 - decay)
        for mine, theirs in zip(self.averaged.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
