"""How well the caption fits the picture: open_clip's cosine, and its rank among the corpus's other captions.

The paper gates on a CLIP score (section 3.3, threshold not given). Here the weights are any that open_clip
loads, or the small models that emu_models/alignment.py trains on the corpus itself. Those score out of fold:
a pair is scored by the one model that never saw it (data filtering networks, arXiv 2309.17425, are the
precedent for a model made for the filter). The rank asks "is this caption better than the others we have?",
which needs no calibration across models.

The mirrored picture is scored too: things look the same in a mirror, letters do not, so that a caption that is
written in the picture rather than shown by it loses score there (T-MARS, arXiv 2307.03132, removes text for the
same reason).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from emu_data.files import fingerprint
from emu_data.signals import Columns, Measure, Record, Signal
from emu_data.signals.embedding import FOLDS_FILE, Encoder, digest, embed, load_encoder

MAX_CAPTIONS = 4096  # that a picture's own caption is ranked against; more change the rank by less than 0.01


@dataclass(frozen=True)
class AlignmentSignal(Signal):
    """`alignment`, the cosine (-1..1), and `alignment_rank`, the share (0..1) of the corpus's other captions
    that fit this picture less well than its own does (equal counts half); `alignment_mirrored`, the cosine to
    the mirrored picture, null unless asked for.

    Args:
        model: a folder with fold_0/, fold_1/, … and folds.parquet; or what embedding.Encoder takes.
        captions: distinct captions of the corpus, at most MAX_CAPTIONS.
        mirrored: whether to embed the mirrored picture as well, a second forward pass.
    """

    model: str
    captions: tuple[str, ...]
    mirrored: bool = False

    name: ClassVar = "alignment"
    revision: ClassVar = 2
    columns: ClassVar = {"alignment": "Float64", "alignment_rank": "Float64", "alignment_mirrored": "Float64"}
    milliseconds: ClassVar = 0.03

    def settings(self) -> Any:
        folder = Path(self.model)
        folds = [digest(folder / FOLDS_FILE)] if (folder / FOLDS_FILE).is_file() else []
        model = [encoder.settings() for encoder in self._encoders()] + folds
        return {"model": model, "captions": fingerprint(sorted(self.captions)), "mirrored": self.mirrored}

    @property
    def needs_embedding(self) -> bool:
        return True

    def describe(self) -> str:
        folds = (Path(self.model) / FOLDS_FILE).is_file()
        return f"open_clip, {'trained on the corpus, out of fold' if folds else self.model}"

    def _encoders(self) -> list[Encoder]:
        folder = Path(self.model)
        if not (folder / FOLDS_FILE).is_file():
            return [Encoder(self.model)]
        folds = sorted(folder.glob("fold_*"))
        if not folds:
            raise ValueError(f"{folder} has {FOLDS_FILE} but no fold_N folders: train the alignment model again")
        return [Encoder(str(fold)) for fold in folds]

    def load(self) -> Measure:
        scorers = [_Scorer(encoder, self.captions, self.mirrored) for encoder in self._encoders()]
        fold_of: dict[str, int] = {}
        if (Path(self.model) / FOLDS_FILE).is_file():
            folds = pd.read_parquet(Path(self.model) / FOLDS_FILE)
            fold_of = dict(zip(folds["key"], folds["fold"], strict=True))

        def measure(batch: Sequence[Record]) -> Columns:
            values: dict[int, np.ndarray] = {}
            for index, scorer in enumerate(scorers):
                # A key that no model was trained on is out of fold for all: it gets their mean.
                mine = [i for i, record in enumerate(batch) if fold_of.get(record.key, index) == index]
                for i, value in zip(mine, scorer.score([batch[i] for i in mine]), strict=True):
                    values[i] = value if i not in values else values[i] + value
            num_scorers = [1 if record.key in fold_of else len(scorers) for record in batch]
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

    def score(self, batch: Sequence[Record]) -> list[np.ndarray]:
        """Return [cosine, rank, mirrored cosine] for each record; float64, rounded to what float32 holds."""
        if not batch:
            return []
        image_ND = embed(self.encoder, batch)
        mirror_ND = embed(self.encoder, batch, mirrored=True) if self.mirrored else image_ND
        scores = []
        for record, image_D, mirror_D in zip(batch, image_ND, mirror_ND, strict=True):
            # One picture at a time: a product of matrices rounds by their shape, and the shape is the batch's.
            cosine_T = self.caption_TD @ image_D if len(self.caption_TD) else np.zeros(0, np.float32)
            row = self.known.get(record.caption)
            caption_D = self.embedder.texts([record.caption])[0] if row is None else self.caption_TD[row]
            own = float(caption_D @ image_D) if row is None else float(cosine_T[row])
            others = cosine_T if row is None else np.delete(cosine_T, row)
            below = (others < own).mean() + 0.5 * (others == own).mean() if len(others) else 1.0
            scores.append(np.array([own, below, caption_D @ mirror_D], np.float64))
        return scores
