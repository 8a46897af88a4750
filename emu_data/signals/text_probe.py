"""A cheap look for text, so that CRAFT sees only the pictures that may have some.

A convolutional network of 107 000 weights over the picture at 384 px: a hundredth of CRAFT's operations there. It
comes with this package (text_probe.safetensors), so that a corpus with few texts or none has it too. It was trained on
writing in many scripts, rendered over photographs and drawings, and on what merely looks like writing: bricks, windows,
fences, leaves (benchmarks/text_probe.py). Its threshold was chosen on other pictures; benchmarks/text.py measures it on
others again, with other fonts and words.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu_data.signals.networks import find_device, place, run_batches

WEIGHTS = Path(__file__).with_name("text_probe.safetensors")
# Of its bytes: with other weights the code is another, and so are the versions of what was measured.
WEIGHTS_SHA256 = "ab6af965a8fb0eac7d3290376698d9612f90485ea8cdcda43a2271f1aa4ff20b"
SIDE = 384  # px, the long side at which it looks: letters of 3 % of a picture have 9 px; smaller ones are not enlarged
MULTIPLE = 8  # px, what pictures are padded to
WIDTHS = (16, 32, 32, 64, 64, 64)  # channels of its layers; chosen here: CRAFT costs more than what they save it
STRIDES, DILATIONS = (2, 2, 1, 2, 1, 1), (1, 1, 1, 1, 2, 2)
STRIDE = 8  # px of a position
# 15 measured beside other processes, on a machine where the smaller network before it took 15, too; that one had 6.5 on
# a quieter one.
MILLISECONDS = 6.0
GPU_BATCH = 4  # pictures of one shape a pass: shapes are many, and what fills a batch is lost; chosen here, not run
# Logit, chosen on the part "tuned": there it loses 5 of 333 texts and spares 52 % of 329 clean pictures (docs/log.md).
THRESHOLD = 0.2
PLAIN = -20.0  # logit of a picture of one colour; chosen here


def build_text_probe(with_norms: bool = False) -> Any:
    """Return the network, untrained: pixels (B, 3, H, W) in -1..1 -> logits (B, 1, H / 8, W / 8) that text is there. A
    position sees 87 px, a word. with_norms: with batch norms, as it is trained; they are folded into its weights then.
    """
    from torch import nn

    layers: list[Any] = []
    for inputs, width, stride, dilation in zip((3, *WIDTHS[:-1]), WIDTHS, STRIDES, DILATIONS, strict=True):
        layers.append(nn.Conv2d(inputs, width, 3, stride, padding=dilation, dilation=dilation, bias=not with_norms))
        layers += [nn.BatchNorm2d(width), nn.ReLU()] if with_norms else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(WIDTHS[-1], 1, 1))


@cache
def load_text_probe() -> Any:
    """Return the network in memory, the same one for all of this process. Raises ValueError for other weights."""
    import torch
    from safetensors.torch import load

    data = WEIGHTS.read_bytes()
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(f"{WEIGHTS} is not the file that this version was made with: install emu_data again")
    network = build_text_probe()
    network.load_state_dict(load(data))
    return place(network, find_device()).to(memory_format=torch.channels_last)


def score_text(images: Sequence[Image.Image]) -> list[float]:
    """Return how much each RGB picture looks as if it had text, a logit; below THRESHOLD it is not looked at again. A
    picture of one colour has none.
    """
    device = find_device()
    plain = [_is_plain(image) for image in images]
    seen = [to_pixels(image) for image, is_plain in zip(images, plain, strict=True) if not is_plain]
    logits = iter(run_batches(_run, seen, 1 if device == "cpu" else GPU_BATCH, device))
    return [PLAIN if is_plain else float(next(logits)) for is_plain in plain]


def _is_plain(image: Image.Image) -> bool:
    return all(low == high for low, high in image.getextrema())  # pyrefly: ignore


def _run(pixels_BHWC: np.ndarray) -> np.ndarray:
    import torch

    network = load_text_probe()
    weight = next(network.parameters())
    with torch.inference_mode():
        x_B3HW = to_input(pixels_BHWC).to(weight.device, weight.dtype)
        return picture_logits(network(x_B3HW).float()).cpu().numpy()


def to_pixels(image: Image.Image) -> np.ndarray:
    """Return an RGB picture as the probe sees it, uint8 (H, W, 3): SIDE px at most, its edges repeated to MULTIPLE."""
    scale = min(1.0, SIDE / max(image.size))
    size = max(16, round(image.width * scale)), max(16, round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))
    return np.pad(pixels, ((0, -size[1] % MULTIPLE), (0, -size[0] % MULTIPLE), (0, 0)), mode="edge")


def to_input(pixels: "Sequence[np.ndarray] | np.ndarray") -> Any:
    """Return pictures of one size, uint8 (H, W, 3), as the network takes them: float32 (B, 3, H, W) in -1..1."""
    import torch

    return torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture_logits(logits_B1HW: Any) -> Any:
    """Return a logit per picture (B,): that of its surest place, a mean over 2 x 2 positions (16 px)."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(logits_B1HW, 2, stride=1).flatten(1).amax(dim=1)
