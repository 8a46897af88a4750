"""The perceptual loss of the autoencoder: LPIPS if its weights are given, or the corpus's own image encoder.

LPIPS (Zhang et al., arXiv 1801.03924) takes the features of a frozen network at several depths, scales each position to
unit length over its channels, and weights squared differences per channel, averages them over positions and sums them
over depths. Its weights for channels come with torchmetrics; those of VGG-16 come with no package, and are read from a
file and never downloaded. With an image encoder there are no learned weights for channels; all count the same, as in
LPIPS's unlearned baseline, up to a factor. Gradients flow only to the pictures. Everything is computed in fp32, since
half precision loses small differences, by whose norm the features are divided.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emu_data.clip_models import load_clip
from emu_models.latent.jobs import PerceptualConfig

EPSILON = 1e-8  # under the root of the norm, as in torchmetrics' LPIPS


class EncoderDistance(nn.Module):
    """The distance on the features of an open_clip image tower. y, x: (B, 3, H, W) in [-1, 1] -> (B,), at least 0."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        tower: Any = load_clip(folder).network.get_submodule("visual")
        self.tower = tower.requires_grad_(False)
        # a transformer has position embeddings for one size only; convolutions take any size
        self.size: tuple[int, int] | None = None if hasattr(tower, "layer1") else _as_pair(tower.image_size)
        mean, std = (torch.tensor(getattr(tower, f"image_{name}", None) or [0.5] * 3) for name in ("mean", "std"))
        self.register_buffer("shift", (2 * mean - 1)[:, None, None], persistent=False)
        self.register_buffer("scale", (2 * std)[:, None, None], persistent=False)
        self.shift: Tensor
        self.scale: Tensor

    def train(self, mode: bool = True) -> "EncoderDistance":  # its batch statistics must not change
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return a tensor (B, C, h, w) per depth, each position with unit length over its channels."""
        x = (x_BCHW.float() - self.shift) / self.scale
        if self.size is not None:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        depths = self.tower.forward_intermediates(x, intermediates_only=True)["image_intermediates"]
        return [f / (f.square().sum(1, keepdim=True) + EPSILON).sqrt() for f in depths]

    def forward(self, y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return the distance (B,), in fp32; gradients flow only to `y_BCHW`."""
        with torch.autocast(y_BCHW.device.type, enabled=False):
            with torch.no_grad():
                target = self.features(x_BCHW)
            pairs = zip(self.features(y_BCHW), target, strict=True)
            return torch.stack([(f - g).square().sum(1).mean((1, 2)) for f, g in pairs]).sum(0)


class LpipsDistance(nn.Module):
    """LPIPS on VGG-16, with random weights until `load`. y, x: (B, 3, H, W) in [-1, 1] -> (B,), at least 0."""

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.functional.image import lpips

        network: Any = lpips._LPIPS(net="vgg", pnet_rand=True)  # the public class would download VGG-16
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: Path) -> "LpipsDistance":
        """Return the distance with torchvision's weights of VGG-16. Raises ValueError if the file is missing or of
        another network."""
        if not weights.is_file():
            raise ValueError(f"perceptual.path {weights} is not a file; give torchvision's weights of VGG-16")
        made = cls()
        state = torch.load(weights, map_location="cpu", weights_only=True)
        wanted = {name: f"features.{name.split('.', 1)[1]}" for name in made.network.net.state_dict()}
        missing = sorted(set(wanted.values()) - set(state))
        if missing:
            raise ValueError(f"perceptual.path {weights.name} lacks {missing[0]}; give torchvision's VGG-16")
        made.network.net.load_state_dict({name: state[source] for name, source in wanted.items()})
        return made

    def train(self, mode: bool = True) -> "LpipsDistance":  # its heads have dropout
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return the distance (B,), in fp32; gradients flow only to `y_BCHW`."""
        with torch.autocast(y_BCHW.device.type, enabled=False):
            return self.network(y_BCHW.float(), x_BCHW.detach().float()).flatten()


def build_perceptual(config: PerceptualConfig) -> EncoderDistance | LpipsDistance | None:
    """Return the configured distance, frozen and in evaluation mode; None if it is off."""
    if not config.is_on:
        return None
    assert config.path is not None
    path = Path(config.path)
    return EncoderDistance(path) if config.kind == "encoder" else LpipsDistance.load(path)


def describe_perceptual(config: PerceptualConfig) -> str:
    """Describe the loss for the report: its features and its weight."""
    if not config.is_on:
        return "no perceptual loss"
    name = "LPIPS (VGG-16)" if config.kind == "lpips" else "features of the corpus’s own image encoder (not LPIPS)"
    return f"perceptual loss on {name}, weight {config.weight:g}"


def _as_pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
