"""EasyOCR's recogniser (CRNN, arXiv 1507.05717) on boxes that CRAFT found: is it a word, and how many?

What differs from EasyOCR, and why: boxes go in batches of one shape, so that memory stays flat and a word's reading
does not depend on its neighbours; a box of low contrast is not tried twice; one that is taller than wide is read turned
either way (writing along a picture's side), which EasyOCR does only where asked; weights are read with `weights_only`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from emu_data.signals.craft import weights_folder
from emu_data.signals.networks import find_device, run_batches

HEIGHT, WIDTH = 64, 320  # px of a box as it is read; EasyOCR's height, and a width for about 12 letters
BATCH = 8
MIN_CONFIDENCE = 0.3  # mean probability of the letters, 0..1; chosen here
MARGIN = 0.1  # of a box's height, added all round, as EasyOCR does (add_margin)
MIN_LETTERS = (
    3  # letters and digits that make a reading evidence; chosen here: leaves and seams are read as "11" or "Il"
)

Box = tuple[float, float, float, float]  # left, upper, right, lower; px of the picture


@dataclass(frozen=True)
class Reading:
    """What stands in a box, "" where nothing was read, and how sure that is, 0..1: EasyOCR's own measure
    (recognition.custom_mean), the letters' probabilities multiplied, to the power of 2 / sqrt(their number).
    """

    text: str
    confidence: float


class Recogniser:
    """The English recogniser in memory."""

    def __init__(self) -> None:
        import torch
        from easyocr.config import recognition_models
        from easyocr.model.vgg_model import Model

        self.device = find_device()
        self.letters = recognition_models["gen2"]["english_g2"]["characters"]
        with torch.device("meta"):
            network = Model(input_channel=1, output_channel=256, hidden_size=256, num_class=len(self.letters) + 1)
        state = torch.load(weights_folder() / "english_g2.pth", map_location="cpu", weights_only=True)
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        network.load_state_dict(state, assign=True)
        self.network: Any = network.eval().to(self.device)

    def count_words(self, image: Image.Image, boxes: Sequence[Box]) -> list[int]:
        """Return how many words stand in each box. A word has two letters or digits at least: seams, spokes and eyes
        are read as one.
        """
        texts = [reading.text for reading in self.read(image, boxes)]
        return [sum(sum(map(str.isalnum, word)) >= 2 for word in text.split()) for text in texts]

    def evidence(self, image: Image.Image, boxes: Sequence[Box]) -> float:
        """Return how sure it is, 0..1, that letters stand in any of the boxes: the confidence of the surest reading of
        MIN_LETTERS letters or digits. 0 says nothing: it reads Latin letters only.
        """
        tall = [box for box in boxes if box[3] - box[1] > box[2] - box[0]]
        readings = self.read(image, boxes) + [one for turn in (90, 270) for one in self.read(image, tall, turn)]
        return max((one.confidence for one in readings if sum(map(str.isalnum, one.text)) >= MIN_LETTERS), default=0.0)

    def read(self, image: Image.Image, boxes: Sequence[Box], turn: Literal[0, 90, 270] = 0) -> list[Reading]:
        """Return what stands in each box after it was turned by so many degrees, counter-clockwise."""
        import torch

        grey = image.convert("L")
        crops = [_prepare(grey, box, turn)[None] for box in boxes]

        def forward(crops_B1HW: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                logits_BTC = self.network(torch.from_numpy(crops_B1HW).to(self.device), None)
                return logits_BTC.float().softmax(dim=-1).cpu().numpy()

        return [self._decode(shares) for shares in run_batches(forward, crops, BATCH, self.device)]

    def _decode(self, shares_TC: np.ndarray) -> Reading:
        """Greedy CTC: class 0 is the blank, repeats without a blank between them are one letter."""
        best = shares_TC.argmax(axis=1)
        is_letter = (best != 0) & np.concatenate([[True], best[1:] != best[:-1]])
        sure = shares_TC.max(axis=1)[best != 0]
        if not is_letter.any() or sure.mean() < MIN_CONFIDENCE:
            return Reading("", 0.0)
        text = "".join(self.letters[index - 1] for index in best[is_letter])
        return Reading(text, float(sure.prod() ** (2 / np.sqrt(len(sure)))))


@cache
def load_recogniser() -> Recogniser:
    """Return the recogniser, the same one for all of this process."""
    return Recogniser()


def _prepare(grey: Image.Image, box: Box, turn: Literal[0, 90, 270]) -> np.ndarray:
    """Return a turned box at HEIGHT x WIDTH, -1..1, its last column repeated to the right (EasyOCR's NormalizePAD)."""
    margin = MARGIN * min(box[3] - box[1], box[2] - box[0])
    left, upper = max(0, int(box[0] - margin)), max(0, int(box[1] - margin))
    right, lower = min(grey.width, int(box[2] + margin) + 1), min(grey.height, int(box[3] + margin) + 1)
    across, down = (lower - upper, right - left) if turn else (right - left, lower - upper)
    width = int(np.clip(round(HEIGHT * across / max(1, down)), 1, WIDTH))
    crop = grey.crop((left, upper, right, lower)).rotate(turn, expand=True)
    crop = crop.resize((width, HEIGHT), Image.Resampling.BICUBIC)
    values = np.asarray(crop, np.float32) / 127.5 - 1
    return np.pad(values, ((0, 0), (0, WIDTH - width)), mode="edge")
