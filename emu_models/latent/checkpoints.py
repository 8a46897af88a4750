"""Text-to-image checkpoints in diffusers' layout, ours and others', as what tuning needs of them.

Tuned are EmuPipeline and the U-Net layouts of Stable Diffusion 1.x, 2.x and XL, told by model_index.json. Tuning asks
a checkpoint for five things: moments of latents (`latents_of`), text features (`captions_of`), the network's prediction
(`emu_models.latent.denoiser.denoise`), the scheduler's alphas_cumprod and prediction_type, and pictures
(`emu_models.latent.pipeline.draw`). Full weights are tuned, or low-rank adapters (Hu et al., arXiv 2106.09685) by peft.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from emu_models.device import choose_device
from emu_models.latent.autoencoder.network import Autoencoder, Moments
from emu_models.latent.denoiser import choose_attention
from emu_models.latent.jobs import Adapters
from emu_models.latent.pipeline import EmuPipeline
from emu_models.text import TextEncoders, TextFeatures

LAYOUTS = {
    "EmuPipeline": EmuPipeline,
    "StableDiffusionPipeline": StableDiffusionPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLPipeline,
}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class ScaledAutoencoder(nn.Module):
    """A checkpoint's AutoencoderKL with the methods of our Autoencoder that tuning calls.

    `normalise` undoes what the checkpoint's pipeline does before it decodes: z / scaling_factor in Stable Diffusion, in
    SDXL with a mean and deviation a channel where the config has them.
    """

    def __init__(self, vae: AutoencoderKL, has_channel_statistics: bool) -> None:
        super().__init__()
        config: Any = vae.config  # a dict that diffusers lets be read by attribute
        self.vae: Any = vae
        shift, scale = torch.zeros(1), torch.ones(1)
        if has_channel_statistics and config.latents_mean is not None and config.latents_std is not None:
            shift, scale = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        self.register_buffer("latent_mean", shift)
        self.register_buffer("latent_std", scale / config.scaling_factor)
        self.latent_mean: Tensor
        self.latent_std: Tensor

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def factor(self) -> int:
        """Pixels a side of a latent position."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, x_BCHW: Tensor) -> Moments:
        found = self.vae.encode(x_BCHW).latent_dist
        return Moments(found.mean, found.logvar)

    def normalise(self, z_BChw: Tensor) -> Tensor:
        mean, std = (x.to(z_BChw)[:, None, None] for x in (self.latent_mean, self.latent_std))
        return (z_BChw - mean) / std


@dataclass(frozen=True)
class PipelineCaptions:
    """A checkpoint's own way from prompts to text features, with the methods of TextEncoders that tuning calls.

    The empty prompt is what its pipeline takes for guidance where no negative prompt is given: zeros in SDXL (unless
    its config says otherwise), the encoded empty string in the others. All tokens are looked at, as in those pipelines.
    """

    pipeline: Any

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return tuple(
            m for n in ("text_encoder", "text_encoder_2") if (m := getattr(self.pipeline, n, None)) is not None
        )

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        names = ("tokenizer", "tokenizer_2")
        return tuple(found for name in names if (found := getattr(self.pipeline, name, None)) is not None)

    @property
    def settings(self) -> str:
        return repr((type(self.pipeline).__name__, self.pipeline.config.get("force_zeros_for_empty_prompt")))

    def encode(self, prompts: list[str], num_tokens: int) -> TextFeatures:
        """num_tokens is the checkpoint's own affair."""
        is_empty = torch.tensor([not prompt.strip() for prompt in prompts])
        if isinstance(self.pipeline, StableDiffusionXLPipeline):
            tokens, null, pooled, null_pooled = self.pipeline.encode_prompt(prompts)  # type: ignore[arg-type]
            assert isinstance(pooled, torch.Tensor) and isinstance(null_pooled, torch.Tensor)
            pooled = torch.where(is_empty[:, None].to(pooled.device), null_pooled, pooled)
        else:
            tokens, null = self.pipeline.encode_prompt(prompts, self.pipeline.device, 1, True)
            pooled = tokens.new_zeros(len(prompts), 1)
        assert isinstance(null, torch.Tensor)
        tokens = torch.where(is_empty[:, None, None].to(tokens.device), null, tokens)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return TextFeatures(tokens.detach(), mask, pooled.detach())


Latents = Autoencoder | ScaledAutoencoder
Captions = TextEncoders | PipelineCaptions


def hide_bars() -> None:
    """Silences diffusers' and transformers' bars for loading and saving, which would break up those of a training."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_pipeline(folder: Path) -> Any:
    """The pipeline saved in `folder`, in fp32 on the device there is; no code of the folder is run.

    ValueError where there is none, or one that cannot be tuned.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} holds no pipeline (no model_index.json); materialise the asset that writes it")
    named = json.loads(index.read_text())["_class_name"]
    layout = LAYOUTS.get(named[1] if isinstance(named, list) else named)
    if layout is None:
        raise ValueError(f"{folder} holds a {named}; what can be tuned and drawn with is {', '.join(LAYOUTS)}")
    hide_bars()
    pipeline: Any = layout.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    _refuse_what_does_not_fit(pipeline, Path(folder))
    choose_attention(pipeline.unet)
    return pipeline.to(choose_device())


def _refuse_what_does_not_fit(pipeline: Any, folder: Path) -> None:
    unet, scheduler = pipeline.unet.config, pipeline.scheduler
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ValueError(f"{folder}: a {type(scheduler).__name__} has no alphas_cumprod; give a diffusion checkpoint")
    predicts = scheduler.config.prediction_type
    if predicts not in PREDICTION_TYPES:
        raise ValueError(f"{folder}: prediction_type {predicts!r} is not one of {', '.join(PREDICTION_TYPES)}")
    if unet.in_channels != pipeline.vae.config.latent_channels or unet.get("time_cond_proj_dim") is not None:
        raise ValueError(f"{folder}: the U-Net wants more than noisy latents and text (inpainting, distilled guidance)")
    if pipeline.vae.config.get("shift_factor"):
        raise ValueError(f"{folder}: the autoencoder has a shift_factor, which its pipeline would not undo")


def latents_of(pipeline: Any) -> Latents:
    if isinstance(pipeline, EmuPipeline):
        return pipeline.vae
    return ScaledAutoencoder(pipeline.vae, isinstance(pipeline, StableDiffusionXLPipeline))


def captions_of(pipeline: Any) -> Captions:
    return pipeline.text_encoders if isinstance(pipeline, EmuPipeline) else PipelineCaptions(pipeline)


def set_resolution(pipeline: Any, resolution: int) -> None:
    """Makes `resolution` the side of the pictures that the pipeline draws when none is asked for."""
    if isinstance(pipeline, EmuPipeline):
        pipeline.register_to_config(resolution=resolution)
    else:
        side = resolution // pipeline.vae_scale_factor
        pipeline.unet.register_to_config(sample_size=side)
        pipeline.default_sample_size = side


def add_adapters(unet: UNet2DConditionModel, adapters: Adapters) -> None:
    """Freezes the network and puts adapters, which start as the identity, beside its layers. ValueError where no layer
    has such a name.
    """
    from peft import LoraConfig  # a quarter of a second, for this alone

    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=adapters.rank,
            lora_alpha=adapters.alpha,  # type: ignore[arg-type]
            target_modules=list(adapters.target_modules),
            init_lora_weights="gaussian",
        )
    )


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Saves in the pipeline's own layout. Adapters are merged into the weights, and are saved by themselves as well,
    as pytorch_lora_weights.safetensors for `load_lora_weights` on the checkpoint that was tuned.
    """
    any_pipeline: Any = pipeline
    unet = any_pipeline.unet
    if configs := getattr(unet, "peft_config", None):
        from peft.utils import get_peft_model_state_dict

        any_pipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(unet),
            # (peft holds the names as a set, which has another order in each process)
            unet_lora_adapter_metadata=configs["default"].to_dict()
            | {"target_modules": sorted(configs["default"].target_modules)},
        )
        _sort_metadata(folder / "pytorch_lora_weights.safetensors")
        unet.fuse_lora()
        unet.unload_lora()
    for part in pipeline.components.values():
        if isinstance(part, PreTrainedTokenizerFast):
            # the lengths of its last call, if there was one and no cache; else the same pipeline has other bytes
            part.backend_tokenizer.no_truncation()
            part.backend_tokenizer.no_padding()
    hide_bars()
    pipeline.save_pretrained(folder)
    forget_paths(folder)


def _sort_metadata(file: Path) -> None:
    """Brings the entries of a safetensors file's metadata, which the library writes in any order, into one."""
    with file.open("rb+") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the header is padded with spaces"
        opened.seek(8)
        opened.write(text.ljust(length))


def forget_paths(folder: Path) -> None:
    """Takes out of a saved folder's configs where its parts were loaded from, which diffusers and transformers write
    there (`_name_or_path` and the like) and nobody reads: else the same model has other bytes in every clone.
    """
    for path in sorted([*folder.rglob("*config.json"), *folder.rglob("model_index.json")]):
        text = path.read_text(encoding="utf-8")
        config = json.loads(text)
        if (kept := _without_paths(config)) != config:
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_paths(part)
        for name, part in value.items()
        if not (
            isinstance(part, str)
            and (name.endswith("name_or_path") or len(PurePath(part).parts) > 2 and os.path.isabs(part))
        )
    }
