"""What diffusers' pipelines of rectified flow do with prompts: how each encodes them, and how it is asked to draw.

Every pipeline encodes prompts by its own method; here the results are TextFeatures, whose mask is all true where the
network attends to padding.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline, QwenImagePipeline, SanaPipeline, StableDiffusion3Pipeline
from torch import Tensor
from torch.nn import functional as F

from emu_models.text import TextFeatures

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """A pipeline's way with text. num_tokens: the most that each tokenizer's encoder reads, the pipeline's defaults.

    encode: pipeline, prompts -> features. arguments: features of prompts and of as many empty ones -> the arguments of
    a call that stand for them. asked: guidance scale -> the other arguments of a call.
    """

    num_tokens: tuple[int, ...]
    encode: Callable[[Any, list[str], torch.device], TextFeatures]
    arguments: Callable[[TextFeatures, TextFeatures], Arguments]
    asked: Callable[[float], Arguments]


def layout_of(pipeline: Any) -> Layout | None:
    """Return how a pipeline of rectified flow treats text; None for other pipelines."""
    return LAYOUTS.get(type(pipeline))


def _unmasked(tokens: Tensor, pooled: Tensor) -> TextFeatures:
    return TextFeatures(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), pooled)


def _without_pooled(tokens: Tensor, mask: Tensor) -> TextFeatures:
    mask = mask.bool()
    return TextFeatures(tokens * mask[..., None], mask, tokens.new_zeros(len(tokens), 1))


def _encode_sd3(pipeline: Any, prompts: list[str], device: torch.device) -> TextFeatures:
    tokens, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, device, do_classifier_free_guidance=False)
    return _unmasked(tokens, pooled)


def _encode_flux(pipeline: Any, prompts: list[str], device: torch.device) -> TextFeatures:
    tokens, pooled, _ = pipeline.encode_prompt(prompts, None, device)
    return _unmasked(tokens, pooled)


def _encode_sana(pipeline: Any, prompts: list[str], device: torch.device) -> TextFeatures:
    """Prompts follow an instruction that the pipeline's `__call__` has as its default; the empty prompt does not."""
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    found = {}
    for words in {bool(prompt.strip()) for prompt in prompts}:
        tokens, mask, _, _ = pipeline.encode_prompt(
            prompts, False, device=device, complex_human_instruction=instruction if words else None
        )
        found[words] = _without_pooled(tokens, mask)
    if len(found) == 1:
        return found.popitem()[1]
    is_empty = torch.tensor([not prompt.strip() for prompt in prompts], device=found[True].tokens_BLD.device)
    tokens = torch.where(is_empty[:, None, None], found[False].tokens_BLD, found[True].tokens_BLD)
    return _without_pooled(tokens, torch.where(is_empty[:, None], found[False].mask_BL, found[True].mask_BL))


def _encode_qwen(pipeline: Any, prompts: list[str], device: torch.device) -> TextFeatures:
    """Padded to one length, so that features of different calls can stand in one cache."""
    tokens, mask = pipeline.encode_prompt(prompts, device)
    if mask is None:
        mask = torch.ones(tokens.shape[:2], device=tokens.device)
    missing = QWEN_TOKENS - tokens.shape[1]
    return _without_pooled(F.pad(tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing)))


def trim(text: TextFeatures, *others: TextFeatures) -> list[TextFeatures]:
    """Return features without the positions at the end that are padding in all of them."""
    parts = (text, *others)
    length = max(1, *(int(part.mask_BL.sum(1).max()) for part in parts))
    return [TextFeatures(p.tokens_BLD[:, :length], p.mask_BL[:, :length], p.pooled_BD) for p in parts]


def _masked_arguments(mask_name: str) -> Callable[[TextFeatures, TextFeatures], Arguments]:
    def arguments(text: TextFeatures, null: TextFeatures) -> Arguments:
        given = {}
        for sign, features in zip(("", "negative_"), trim(text, null), strict=True):
            given[f"{sign}prompt_embeds"], given[f"{sign}{mask_name}"] = features.tokens_BLD, features.mask_BL.long()
        return given

    return arguments


def _sd3_arguments(text: TextFeatures, null: TextFeatures) -> Arguments:
    return {
        "prompt_embeds": text.tokens_BLD,
        "pooled_prompt_embeds": text.pooled_BD,
        "negative_prompt_embeds": null.tokens_BLD,
        "negative_pooled_prompt_embeds": null.pooled_BD,
    }


def _flux_arguments(text: TextFeatures, null: TextFeatures) -> Arguments:
    return {"prompt_embeds": text.tokens_BLD, "pooled_prompt_embeds": text.pooled_BD}


QWEN_TOKENS = 1024  # max_sequence_length of QwenImagePipeline.encode_prompt
LAYOUTS: dict[type, Layout] = {
    StableDiffusion3Pipeline: Layout(
        (77, 77, 256), _encode_sd3, _sd3_arguments, lambda scale: {"guidance_scale": scale}
    ),
    # a network that is told its guidance draws without a negative prompt; one that is not ignores the scale
    FluxPipeline: Layout((77, 512), _encode_flux, _flux_arguments, lambda scale: {"guidance_scale": scale}),
    SanaPipeline: Layout(
        (300,),
        _encode_sana,
        _masked_arguments("prompt_attention_mask"),
        # its defaults are the empty prompts, which it refuses beside their features
        lambda scale: {
            "guidance_scale": scale,
            "use_resolution_binning": False,
            "prompt": None,
            "negative_prompt": None,
        },
    ),
    QwenImagePipeline: Layout(
        (QWEN_TOKENS,),
        _encode_qwen,
        _masked_arguments("prompt_embeds_mask"),
        lambda scale: {"true_cfg_scale": scale},
    ),
}
