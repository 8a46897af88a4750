"""How well the caption fits the picture: open_clip's cosine, and its rank among the corpus's other captions.

The paper gates on a CLIP score (section 3.3, threshold not given). Here the weights are any that open_clip
loads, or the small models that emu_models/alignment.py trains on the corpus itself. Those score out of fold:
a pair is scored by the one model that never saw it (data filtering networks, arXiv 2309.17425, are the
precedent for a model made for the filter). The rank asks "is this caption better than the others we have?",
which needs no calibration across models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from emu_data.files import file_sha256, fingerprint
from emu_data.records import Decoded
from emu_data.signals import Columns, Measure, Signal

FOLDS_FILE = "folds.parquet"  # key, fold: the model in fold_N/ was trained without the pairs of fold N
BATCH = 32  # pictures a forward pass, padded to it, so that values do not depend on their neighbours' number
MAX_CAPTIONS = 4096  # that a picture's own caption is ranked against; more change the rank by less than 0.01


@dataclass(frozen=True)
class AlignmentSignal(Signal):
    """`alignment`, the cosine (-1..1), and `alignment_rank`, the share (0..1) of the corpus's other captions
    that fit this picture less well than its own does (equal counts half).

    Args:
        model: a folder with fold_0/, fold_1/, … and folds.parquet; or one open_clip folder
            (open_clip_config.json and open_clip_model.safetensors); or an open_clip name with its tag,
            NAME@TAG, where the network allows it.
        captions: distinct captions of the corpus (see `distinct_captions`).
    """

    model: str
    captions: tuple[str, ...]

    name: ClassVar = "alignment"
    columns: ClassVar = {"alignment": "Float64", "alignment_rank": "Float64"}

    def settings(self) -> Any:
        folder = Path(self.model)
        if folder.is_dir():
            files = sorted(folder.rglob("open_clip_*")) + sorted(folder.glob(FOLDS_FILE))
            model: Any = {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
        else:
            model = self.model
        return {"model": model, "captions": fingerprint(sorted(self.captions))}

    def load(self) -> Measure:
        folder = Path(self.model)
        if (folder / FOLDS_FILE).is_file():
            folds = pd.read_parquet(folder / FOLDS_FILE)
            scorers = [_Scorer(str(path), self.captions) for path in sorted(folder.glob("fold_*"))]
            fold_of = dict(zip(folds["key"], folds["fold"], strict=True))
        else:
            scorers, fold_of = [_Scorer(self.model, self.captions)], {}
        if not scorers:
            raise ValueError(f"{folder} has {FOLDS_FILE} but no fold_N folders: train the alignment model again")

        def measure(batch: Sequence[Decoded]) -> Columns:
            values: dict[int, np.ndarray] = {}
            for index, scorer in enumerate(scorers):
                # A key that no model was trained on is out of fold for all: it gets their mean.
                mine = [i for i, record in enumerate(batch) if fold_of.get(record.key, index) == index]
                for i, value in zip(mine, scorer.score([batch[i] for i in mine]), strict=True):
                    values[i] = value if i not in values else values[i] + value
            num_scorers = [1 if record.key in fold_of else len(scorers) for record in batch]
            means = [values[i] / num_scorers[i] for i in range(len(batch))]
            return {
                "alignment": [float(mean[0]) for mean in means],
                "alignment_rank": [float(mean[1]) for mean in means],
            }

        return measure


class _Scorer:
    """One open_clip model and its embeddings of the corpus's captions."""

    def __init__(self, model: str, captions: Sequence[str]):
        import open_clip
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if Path(model).is_dir():
            name = f"local-dir:{model}"
            made: Any = open_clip.create_model_from_pretrained(name)
        else:
            name, _, tag = model.partition("@")
            made = open_clip.create_model_from_pretrained(name, pretrained=tag)
        network, self.preprocess = made
        self.network = network.eval().to(self.device)
        self.tokenizer = open_clip.get_tokenizer(name)
        distinct = sorted(captions)
        self.caption_TD = self._embed_texts(distinct)
        self.known = {caption: row for row, caption in enumerate(distinct)}

    def score(self, batch: Sequence[Decoded]) -> list[np.ndarray]:
        """Return [cosine, rank] for each record."""
        import torch

        scores = []
        for start in range(0, len(batch), BATCH):
            records = batch[start : start + BATCH]
            pixels = [self.preprocess(record.image) for record in records]
            pixels += [torch.zeros_like(pixels[0])] * (BATCH - len(records))
            with torch.inference_mode():
                features = self.network.encode_image(torch.stack(pixels).to(self.device), normalize=True)
            image_ND = features.float().cpu().numpy()[: len(records)]
            cosine_NT = image_ND @ self.caption_TD.T
            for record, image_D, cosine_T in zip(records, image_ND, cosine_NT, strict=True):
                row = self.known.get(record.caption)
                own = image_D @ self._embed_texts([record.caption])[0] if row is None else cosine_T[row]
                others = cosine_T if row is None else np.delete(cosine_T, row)
                below = (others < own).mean() + 0.5 * (others == own).mean() if len(others) else 1.0
                scores.append(np.array([own, below], np.float64))
        return scores

    def _embed_texts(self, texts: list[str]) -> np.ndarray:
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), 256):
                tokens = self.tokenizer(texts[start : start + 256]).to(self.device)
                parts.append(self.network.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def distinct_captions(captions: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct captions of a corpus, sorted; of more than MAX_CAPTIONS those with the smallest
    hashes.
    """
    distinct = sorted(set(captions))
    if len(distinct) > MAX_CAPTIONS:
        distinct = sorted(sorted(distinct, key=fingerprint)[:MAX_CAPTIONS])
    return tuple(distinct)
