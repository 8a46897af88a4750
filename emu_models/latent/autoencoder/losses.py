"""Losses of the autoencoder: L1, perceptual, KL and adversarial (Rombach et al., arXiv 2112.10752; Emu gives no
weights).

The adversary is a hinge PatchGAN with an adaptive weight (Esser et al., arXiv 2012.09841, eq. 7) that increases slowly,
since an abrupt start ruins reconstructions. The perceptual distance is in perceptual.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """x: (B, 3, H, W) in [-1, 1] -> logits (B, 1, H / 8, W / 8), one per patch (Isola et al., arXiv 1611.07004)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a logit per patch, (B, 1, H / 8, W / 8), of pictures (B, 3, H, W) in [-1, 1]; above 0 means real."""
        return self.layers(x_BCHW)


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's loss: half the sum of the means of relu(1 - real) and relu(1 + fake) (Lim and Ye,
    arXiv 1705.02894)."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def gradients_at(last_layer: Tensor, reconstruction_loss: Tensor, adversarial_loss: Tensor) -> list[Tensor]:
    """Return the gradients of both losses at the last layer, for `adaptive_weight`, in fp32 whatever their precision:
    squares of small gradients vanish in fp16, and 0 / 0 would stop the training. The losses can still be
    differentiated."""
    return [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()
        for loss in (reconstruction_loss, adversarial_loss)
    ]


def adaptive_weight(gradients: Sequence[Tensor]) -> Tensor:
    """Return |gradient of reconstruction| / |gradient of adversary|, at most 1e4, for the gradients at the last layer
    of a whole batch's losses (Esser et al., eq. 7)."""
    lengths = [gradient.norm() for gradient in gradients]
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(max=1e4).detach()


def adversarial_share(step: int, num_steps: int, start: float) -> float:
    """Return the share (0..1) of the adversary's weight at a step: 0 until `start` (a share of all steps), then a
    linear ramp to 1 at the end."""
    return 0.0 if start >= 1 else max(0.0, (step / num_steps - start) / (1 - start))
