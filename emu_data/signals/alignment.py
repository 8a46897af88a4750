"""How well the caption fits the picture: open_clip's cosine, and its rank among the corpus's other captions.

The paper gates on a CLIP score (section 3.3, threshold not given). Here the weights are any that open_clip
loads, or the small models that emu_models/alignment.py trains on the corpus itself. Those score out of fold: a pair is
scored by the one model that never saw it (for training a model just to filter, data filtering networks, arXiv
2309.17425, are the precedent). The rank asks whether this caption fits better than the others of the corpus, which
needs no calibration across models.

The mirrored picture can be scored too: things look the same in a mirror, but letters do not, so a caption that is
written in the picture rather than shown by it scores lower there (T-MARS, arXiv 2307.03132, removes text for the same
reason).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from typing_extensions import override

from emu_data.files import fingerprint
from emu_data.signals import Columns, LazySample, Measure, Signal
from emu_data.signals.embedding import FOLDS_FILE, Encoder, digest, embed, load_encoder

MAX_CAPTIONS = 4096  # compared with a picture's own caption; more would change its rank by less than 0.01; chosen here


@dataclass(frozen=True)
class AlignmentSignal(Signal):
    """`alignment`, the cosine (-1..1); `alignment_rank`, the share (0..1) of the corpus's other captions that fit this
    picture less well than its own (equal ones count half); `alignment_mirrored`, the cosine to the mirrored picture,
    null unless `mirrored`.

    Args:
        model: a folder with fold_0/, fold_1/, … and folds.parquet; or a model as in embedding.Encoder.
        captions: distinct captions of the corpus, at most MAX_CAPTIONS.
        mirrored: whether to embed the mirrored picture as well, in a second forward pass.
    """

    model: str
    captions: tuple[str, ...]
    mirrored: bool = False

    name: ClassVar = "alignment"
    revision: ClassVar = 3
    columns: ClassVar = {"alignment": "Float64", "alignment_rank": "Float64", "alignment_mirrored": "Float64"}
    milliseconds: ClassVar = 0.03

    @override
    def settings(self) -> Any:
        """Return the digests of the models and folds, a fingerprint of the captions, and `mirrored`."""
        folder = Path(self.model)
        folds = [digest(folder / FOLDS_FILE)] if (folder / FOLDS_FILE).is_file() else []
        model = [encoder.settings() for encoder in self._encoders()] + folds
        return {"model": model, "captions": fingerprint(sorted(self.captions)), "mirrored": self.mirrored}

    @property
    @override
    def needs_embedding(self) -> bool:
        """True: the shared embedding is compared with captions."""
        return True

    @override
    def describe(self) -> str:
        """Return which models compare picture and caption, in a few words."""
        folds = (Path(self.model) / FOLDS_FILE).is_file()
        return f"open_clip, {'trained on the corpus, out of fold' if folds else Encoder(self.model).label}"

    def _encoders(self) -> list[Encoder]:
        folder = Path(self.model)
        if not (folder / FOLDS_FILE).is_file():
            return [Encoder(self.model)]
        folds = sorted(folder.glob("fold_*"))
        if not folds:
            raise ValueError(f"{folder} has {FOLDS_FILE} but no folders fold_N: materialise alignment_model again")
        return [Encoder(str(fold)) for fold in folds]

    @override
    def load(self) -> Measure:
        """Load each model, its embeddings of the captions, and the table that says which model scores which key."""
        scorers = [_Scorer(encoder, self.captions, self.mirrored) for encoder in self._encoders()]
        fold_of: dict[str, int] = {}
        if (Path(self.model) / FOLDS_FILE).is_file():
            folds = pd.read_parquet(Path(self.model) / FOLDS_FILE)
            fold_of = dict(zip(folds["key"], folds["fold"], strict=True))

        def measure(batch: Sequence[LazySample]) -> Columns:
            values: dict[int, np.ndarray] = {}
            for index, scorer in enumerate(scorers):
                # A key that no model was trained on is out of fold for all of them: it gets their mean.
                mine = [i for i, sample in enumerate(batch) if fold_of.get(sample.key, index) == index]
                for i, value in zip(mine, scorer.score([batch[i] for i in mine]), strict=True):
                    values[i] = value if i not in values else values[i] + value
            num_scorers = [1 if sample.key in fold_of else len(scorers) for sample in batch]
            means = [values[i] / num_scorers[i] for i in range(len(batch))]
            mirrored = [float(mean[2]) if self.mirrored else None for mean in means]
            return {
                "alignment": [float(mean[0]) for mean in means],
                "alignment_rank": [float(mean[1]) for mean in means],
                "alignment_mirrored": mirrored,
            }

        return measure


class _Scorer:
    """One open_clip model and its embeddings of the corpus's captions."""

    def __init__(self, encoder: Encoder, captions: Sequence[str], mirrored: bool):
        self.encoder, self.mirrored = encoder, mirrored
        self.embedder = load_encoder(encoder)
        distinct = sorted(captions)
        self.caption_TD = self.embedder.texts(distinct)
        self.known = {caption: row for row, caption in enumerate(distinct)}

    def score(self, batch: Sequence[LazySample]) -> list[np.ndarray]:
        """Return [cosine, rank, mirrored cosine] of each sample, as float64 (3,); cosines have float32's precision."""
        if not batch:
            return []
        image_ND = embed(self.encoder, batch)
        mirror_ND = embed(self.encoder, batch, mirrored=True) if self.mirrored else image_ND
        unknown = sorted({sample.caption for sample in batch} - self.known.keys())
        caption_of = dict(zip(unknown, self.embedder.captions(unknown), strict=True))
        scores = []
        for sample, image_D, mirror_D in zip(batch, image_ND, mirror_ND, strict=True):
            # One picture at a time: the rounding of a matrix product depends on its shape, and so on the batch.
            cosine_T = self.caption_TD @ image_D if len(self.caption_TD) else np.zeros(0, np.float32)
            row = self.known.get(sample.caption)
            caption_D = caption_of[sample.caption] if row is None else self.caption_TD[row]
            own = float(caption_D @ image_D) if row is None else float(cosine_T[row])
            others = cosine_T if row is None else np.delete(cosine_T, row)
            below = (others < own).mean() + 0.5 * (others == own).mean() if len(others) else 1.0
            scores.append(np.array([own, below, caption_D @ mirror_D], np.float64))
        return scores
