"""Losses of the autoencoder: L1, KL and an adversarial one (Rombach et al., arXiv 2112.10752; weights are not in Emu).

The adversary is a hinge PatchGAN with adaptive weight (Esser et al., arXiv 2012.09841, eq. 7) that sets in gently: an
abrupt start wrecks reconstructions (field notes). A perceptual loss needs weights that come with no package; it is
left out, and the study says so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """kl_weight: of the KL in nats a picture against the L1 summed over its values (CompVis: 1e-6).

    adversarial_weight is the top of the ramp that runs from adversarial_start to the last step; both shares in 0..1.
    """

    kl_weight: float
    adversarial_weight: float
    adversarial_start: float


class PatchDiscriminator(nn.Module):
    """x: (B, 3, H, W) in [-1, 1] -> logits (B, 1, H / 8, W / 8), one a patch (Isola et al., arXiv 1611.07004)."""

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
        return self.layers(x_BCHW)


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's loss: mean of relu(1 - real) and relu(1 + fake), halved (Lim and Ye, arXiv 1705.02894)."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """|grad of reconstruction| / |grad of adversary| at the last layer, at most 1e4 (Esser et al., eq. 7)."""
    (of_reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (of_adversary,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    return (of_reconstruction.norm() / (of_adversary.norm() + 1e-4)).clamp(max=1e4).detach()
