"""One interface for what tuning needs from text-to-image checkpoints in diffusers' layout, ours and others'.

EmuPipeline, the U-Net layouts of Stable Diffusion 1.x, 2.x and XL, and the transformers of rectified flow that
emu_models.flow knows can be tuned; model_index.json says which one it is. Tuning needs five things from a checkpoint:
its denoiser (`denoiser_of`), moments of latents (`latents_of`), text features (`captions_of`), its schedule, and
pictures (drawing.py). It tunes all weights, or low-rank adapters (Hu et al., arXiv 2106.09685) by peft.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from emu_models.device import choose_device
from emu_models.flow.layouts import LAYOUTS as FLOW_LAYOUTS
from emu_models.flow.layouts import layout_of
from emu_models.flow.pipeline import EmuFlowPipeline
from emu_models.folders import inspect_checkpoint, no_signal_left
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.autoencoder.scaled import ScaledAutoencoder
from emu_models.latent.denoiser import choose_attention
from emu_models.latent.jobs import Adapters
from emu_models.latent.pipeline import EmuPipeline
from emu_models.masked.pipeline import EmuMaskedPipeline
from emu_models.pixel.pipeline import EmuCascadePipeline
from emu_models.pixel.space import PixelSpace
from emu_models.text import TextEncoders, TextFeatures
from emu_models.text_pipeline import TextPipeline

CLASSES = {
    found.__name__: found
    for found in (
        EmuPipeline,
        EmuFlowPipeline,
        EmuMaskedPipeline,
        EmuCascadePipeline,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        *FLOW_LAYOUTS,
    )
}


@dataclass(frozen=True)
class PipelineCaptions:
    """A checkpoint's own text encoding, with the methods of TextEncoders that tuning calls.

    The empty prompt gives what its pipeline uses for guidance without a negative prompt: zeros in SDXL (unless its
    config says otherwise), the encoded empty string in the others. Networks of Stable Diffusion attend to all tokens.
    """

    pipeline: Any

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The pipeline's text encoders, in order."""
        return tuple(m for i in ("", "_2", "_3") if (m := getattr(self.pipeline, f"text_encoder{i}", None)) is not None)

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The pipeline's tokenizers, in the order of `models`."""
        names = ("tokenizer", "tokenizer_2", "tokenizer_3")
        return tuple(found for name in names if (found := getattr(self.pipeline, name, None)) is not None)

    @property
    def limits(self) -> tuple[int, ...]:
        """How many tokens of a prompt are read, of each of `tokenizers`."""
        layout, own = layout_of(self.pipeline), [tokenizer.model_max_length for tokenizer in self.tokenizers]
        return tuple(own if layout is None else map(min, layout.num_tokens, own))

    @property
    def settings(self) -> str:
        """What the features depend on besides weights and prompts; it is part of the cache's key."""
        return repr((type(self.pipeline).__name__, self.pipeline.config.get("force_zeros_for_empty_prompt")))

    def encode(self, prompts: list[str], num_tokens: int) -> TextFeatures:
        """Return the text features of B prompts. num_tokens is ignored: the checkpoint decides it."""
        device: Any = self.models[0].device
        if layout := layout_of(self.pipeline):
            found = layout.encode(self.pipeline, prompts, device)
            return TextFeatures(found.tokens_BLD.detach(), found.mask_BL, found.pooled_BD.detach())
        is_empty = torch.tensor([not prompt.strip() for prompt in prompts])
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


AnyAutoencoder = Autoencoder | ScaledAutoencoder | PixelSpace
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
    index = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
    absent = {name: None for name, entry in index.items() if entry == [None, None]}  # SD3 without T5, for instance
    pipeline: Any = CLASSES[found.layout].from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, variant=found.variant, **absent
    )
    if hasattr(pipeline, "unet"):
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


def denoiser_of(pipeline: Any) -> Any:
    """Return the network that a training changes: a U-Net or a transformer."""
    return getattr(pipeline, _denoiser_name(pipeline))


def is_flow(pipeline: Any) -> bool:
    """Whether the pipeline draws with a rectified-flow transformer, and not with a U-Net."""
    return layout_of(pipeline) is not None or isinstance(pipeline, EmuFlowPipeline)


def _denoiser_name(pipeline: Any) -> str:
    return "unet" if hasattr(pipeline, "unet") else "transformer"


def latents_of(pipeline: Any) -> AnyAutoencoder:
    """Return the autoencoder of any pipeline, with the methods that tuning calls.

    Its statistics invert what the pipeline does before it decodes: z / scaling_factor in Stable Diffusion and SANA, in
    SDXL also with a mean and deviation per channel if the config has them, in SD3 and FLUX + shift_factor, in
    Qwen-Image only the mean and deviation.
    """
    if isinstance(pipeline, EmuFlowPipeline) and pipeline.vae is None:
        return PixelSpace()
    if isinstance(pipeline, (EmuPipeline, EmuFlowPipeline, EmuMaskedPipeline)):
        return pipeline.vae
    config: Any = pipeline.vae.config  # a dict whose entries diffusers makes readable as attributes
    mean, std, scale = [0.0], [1.0], config.get("scaling_factor", 1.0)
    has_statistics = isinstance(pipeline, StableDiffusionXLPipeline) or isinstance(pipeline.vae, AutoencoderKLQwenImage)
    if has_statistics and config.latents_mean is not None and config.latents_std is not None:
        mean, std = config.latents_mean, config.latents_std
    elif layout_of(pipeline) and config.get("shift_factor"):
        mean = [config.shift_factor]
    return ScaledAutoencoder(pipeline.vae, mean, [value / scale for value in std])


def captions_of(pipeline: Any) -> AnyTextEncoder:
    """Return the text encoders of any pipeline, with the methods that tuning calls."""
    return pipeline.text_encoders if isinstance(pipeline, TextPipeline) else PipelineCaptions(pipeline)


def set_resolution(pipeline: Any, resolution: int) -> None:
    """Make `resolution` (px) the default side of the pictures that the pipeline draws. Transformers keep theirs, which
    is part of their embedding of positions."""
    if isinstance(pipeline, TextPipeline):
        pipeline.register_to_config(resolution=resolution)
    elif layout_of(pipeline) is None:
        side = resolution // pipeline.vae_scale_factor
        pipeline.unet.register_to_config(sample_size=side)
        pipeline.default_sample_size = side


def add_adapters(network: Any, adapters: Adapters) -> None:
    """Freeze the network and add adapters, which start as the identity, to its layers. Raises ValueError if no layer
    has one of the names, or the network is of a class that takes none.
    """
    if not hasattr(network, "add_adapter"):
        raise ValueError(f"{type(network).__name__} takes no adapters; set lora to null, which tunes all weights")
    from peft import LoraConfig  # importing it takes a quarter of a second, and only this function needs it

    network.requires_grad_(False)
    network.add_adapter(
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
    network, name = denoiser_of(pipeline), _denoiser_name(pipeline)
    if configs := getattr(network, "peft_config", None):
        from peft.utils import get_peft_model_state_dict

        any_pipeline.save_lora_weights(
            folder,
            **{
                f"{name}_lora_layers": get_peft_model_state_dict(network),
                # peft holds the names as a set, whose order differs between processes
                f"{name}_lora_adapter_metadata": configs["default"].to_dict()
                | {"target_modules": sorted(configs["default"].target_modules)},
            },
        )
        _sort_metadata(folder / "pytorch_lora_weights.safetensors")
        network.fuse_lora()
        network.unload_lora()
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
