"""One interface for what tuning needs from text-to-image checkpoints in diffusers' layout, ours and others'.

EmuPipeline and the U-Net layouts of Stable Diffusion 1.x, 2.x and XL can be tuned; model_index.json says which one it
is. Tuning needs five things from a checkpoint: moments of latents (`latents_of`), text features (`captions_of`), the
network's prediction (`emu_models.latent.denoiser.denoise`), the scheduler's alphas_cumprod and prediction_type, and
pictures (`emu_models.latent.pipeline.draw`). It tunes all weights, or low-rank adapters (Hu et al., arXiv 2106.09685)
by peft.
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
from emu_models.latent.folders import inspect_checkpoint, no_signal_left
from emu_models.latent.jobs import Adapters
from emu_models.latent.pipeline import EmuPipeline
from emu_models.text import TextEncoders, TextFeatures

CLASSES = {found.__name__: found for found in (EmuPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline)}


class ScaledAutoencoder(nn.Module):
    """A checkpoint's AutoencoderKL with the methods of our Autoencoder that tuning calls.

    `normalise` is the inverse of what the checkpoint's pipeline does before it decodes: z / scaling_factor in Stable
    Diffusion, in SDXL also with a mean and deviation per channel if the config has them.
    """

    def __init__(self, vae: AutoencoderKL, has_channel_statistics: bool) -> None:
        super().__init__()
        config: Any = vae.config  # a dict whose entries diffusers makes readable as attributes
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
        """The device of the weights."""
        return self.vae.device

    @property
    def factor(self) -> int:
        """Pixels per side of a latent position."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, x_BCHW: Tensor) -> Moments:
        """Return the moments (B, C, h, w) of the latents of pictures (B, 3, H, W) in [-1, 1]."""
        found = self.vae.encode(x_BCHW).latent_dist
        return Moments(found.mean, found.logvar)

    def decode(self, z_BChw: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W), about in [-1, 1], from latents (B, C, h, w) that are not normalised."""
        return self.vae.decode(z_BChw).sample

    def normalise(self, z_BChw: Tensor) -> Tensor:
        """Return the input of the checkpoint's denoiser, (z - latent_mean) / latent_std, for latents (B, C, h, w) from
        `encode`."""
        mean, std = (x.to(z_BChw)[:, None, None] for x in (self.latent_mean, self.latent_std))
        return (z_BChw - mean) / std


@dataclass(frozen=True)
class PipelineCaptions:
    """A checkpoint's own text encoding, with the methods of TextEncoders that tuning calls.

    The empty prompt gives what its pipeline uses for guidance without a negative prompt: zeros in SDXL (unless its
    config says otherwise), the encoded empty string in the others. The network attends to all tokens, as in those
    pipelines.
    """

    pipeline: Any

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The pipeline's text encoders, in order."""
        return tuple(
            m for n in ("text_encoder", "text_encoder_2") if (m := getattr(self.pipeline, n, None)) is not None
        )

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The pipeline's tokenizers, in the order of `models`."""
        names = ("tokenizer", "tokenizer_2")
        return tuple(found for name in names if (found := getattr(self.pipeline, name, None)) is not None)

    @property
    def settings(self) -> str:
        """What the features depend on besides weights and prompts; it is part of the cache's key."""
        return repr((type(self.pipeline).__name__, self.pipeline.config.get("force_zeros_for_empty_prompt")))

    def encode(self, prompts: list[str], num_tokens: int) -> TextFeatures:
        """Return the text features of B prompts. num_tokens is ignored: the checkpoint decides it."""
        is_empty = torch.tensor([not prompt.strip() for prompt in prompts])
        device: Any = self.models[0].device
        if isinstance(self.pipeline, StableDiffusionXLPipeline):
            tokens, null, pooled, null_pooled = self.pipeline.encode_prompt(prompts, device=device)  # type: ignore[arg-type]
            assert isinstance(pooled, torch.Tensor) and isinstance(null_pooled, torch.Tensor)
            pooled = torch.where(is_empty[:, None].to(pooled.device), null_pooled, pooled)
        else:
            tokens, null = self.pipeline.encode_prompt(prompts, device, 1, True)
            pooled = tokens.new_zeros(len(prompts), 1)
        assert isinstance(null, torch.Tensor)
        tokens = torch.where(is_empty[:, None, None].to(tokens.device), null, tokens)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return TextFeatures(tokens.detach(), mask, pooled.detach())


AnyAutoencoder = Autoencoder | ScaledAutoencoder
AnyTextEncoder = TextEncoders | PipelineCaptions


def hide_bars() -> None:
    """Turn off diffusers' and transformers' bars for loading and saving, which would interrupt those of a training."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_pipeline(folder: Path) -> Any:
    """Load the pipeline saved in `folder`, in fp32, and `place` it; code in the folder is not run.

    Raises ValueError if there is none, or one that cannot be tuned (folders.inspect_checkpoint). If some part has only
    a variant ("fp16"), that variant is read for every part that has it. Nothing is unpickled.
    """
    found = inspect_checkpoint(Path(folder))
    hide_bars()
    pipeline: Any = CLASSES[found.layout].from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, variant=found.variant
    )
    _refuse_schedule(pipeline.scheduler, Path(folder))
    choose_attention(pipeline.unet)
    return place(pipeline)


def place(pipeline: Any) -> Any:
    """Put the parts that draw on the device, and return the pipeline. Text encoders, which may have more parameters
    than the U-Net, are lent to the device while they encode (drawing.py, training/cache.py)."""
    for part in parts_that_draw(pipeline):
        part.to(choose_device())
    return pipeline


def parts_that_draw(pipeline: Any) -> list[nn.Module]:
    """Return the networks of a pipeline that are not its text encoders."""
    encoders = set(map(id, captions_of(pipeline).models))
    return [m for m in pipeline.components.values() if isinstance(m, nn.Module) and id(m) not in encoders]


def _refuse_schedule(scheduler: Any, folder: Path) -> None:
    """Check what the scheduler's settings do not show. Raises ValueError if it cannot be used."""
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ValueError(
            f"{folder}: its scheduler {type(scheduler).__name__} has no alphas_cumprod; give a diffusion checkpoint"
        )
    if scheduler.config.prediction_type == "epsilon" and not scheduler.alphas_cumprod[-1]:
        raise ValueError(no_signal_left(folder))


def latents_of(pipeline: Any) -> AnyAutoencoder:
    """Return the autoencoder of any pipeline, with the methods that tuning calls."""
    if isinstance(pipeline, EmuPipeline):
        return pipeline.vae
    return ScaledAutoencoder(pipeline.vae, isinstance(pipeline, StableDiffusionXLPipeline))


def captions_of(pipeline: Any) -> AnyTextEncoder:
    """Return the text encoders of any pipeline, with the methods that tuning calls."""
    return pipeline.text_encoders if isinstance(pipeline, EmuPipeline) else PipelineCaptions(pipeline)


def set_resolution(pipeline: Any, resolution: int) -> None:
    """Make `resolution` (px) the default side of the pictures that the pipeline draws."""
    if isinstance(pipeline, EmuPipeline):
        pipeline.register_to_config(resolution=resolution)
    else:
        side = resolution // pipeline.vae_scale_factor
        pipeline.unet.register_to_config(sample_size=side)
        pipeline.default_sample_size = side


def add_adapters(unet: UNet2DConditionModel, adapters: Adapters) -> None:
    """Freeze the network and add adapters, which start as the identity, to its layers. Raises ValueError if no layer
    has one of the names.
    """
    from peft import LoraConfig  # importing it takes a quarter of a second, and only this function needs it

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
    """Save a pipeline in its own layout. Adapters are merged into the weights and also saved separately, as
    pytorch_lora_weights.safetensors, for `load_lora_weights` on the checkpoint that was tuned.
    """
    any_pipeline: Any = pipeline
    unet = any_pipeline.unet
    if configs := getattr(unet, "peft_config", None):
        from peft.utils import get_peft_model_state_dict

        any_pipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(unet),
            # peft holds the names as a set, whose order differs between processes
            unet_lora_adapter_metadata=configs["default"].to_dict()
            | {"target_modules": sorted(configs["default"].target_modules)},
        )
        _sort_metadata(folder / "pytorch_lora_weights.safetensors")
        unet.fuse_lora()
        unet.unload_lora()
    for part in pipeline.components.values():
        if isinstance(part, PreTrainedTokenizerFast):
            # a tokenizer keeps the lengths of its last call, and the same pipeline would have different bytes
            part.backend_tokenizer.no_truncation()
            part.backend_tokenizer.no_padding()
    hide_bars()
    pipeline.save_pretrained(folder)
    forget_paths(folder)


def _sort_metadata(file: Path) -> None:
    """Sort the entries of a safetensors file's metadata, which the library writes in any order."""
    with file.open("rb+") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the header is padded with spaces"
        opened.seek(8)
        opened.write(text.ljust(length))


def forget_paths(folder: Path) -> None:
    """Remove from a saved folder's configs the paths from which its parts were loaded. diffusers and transformers write
    them (`_name_or_path` and the like) but nothing reads them, and they would give the same model different bytes in
    every clone.
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
