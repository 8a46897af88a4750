"""EmuPipeline: text to pictures, called, saved and loaded like any diffusers pipeline.

A saved folder contains the code of its classes (`save_config`), so that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` can load it if emu is not installed. If it is,
`EmuPipeline.from_pretrained(folder)` runs the installed code and none from the folder.
"""

import inspect
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emu_models.latent.denoiser import choose_attention, denoise
from emu_models.text import TextEncoders, TextFeatures, encode_prompts

Generators = torch.Generator | list[torch.Generator]


@dataclass
class EmuOutput(BaseOutput):
    """The drawn pictures. images: PIL pictures, an array (B, H, W, 3) in [0, 1], or a tensor (B, 3, H, W), according to
    `output_type`."""

    images: list[Image.Image] | np.ndarray | Tensor


class EmuPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Draws pictures from prompts. Components: vae (Autoencoder), unet, scheduler, text_encoder, tokenizer and, if
    there are two encoders, text_encoder_2 and tokenizer_2. resolution: pixels per side."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["text_encoder_2", "tokenizer_2"]

    def __init__(
        self,
        vae: ModelMixin,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        resolution: int = 64,
        num_text_tokens: int = 16,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
        self.register_to_config(resolution=resolution, num_text_tokens=num_text_tokens)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae.factor)
        choose_attention(unet)

    @property
    def text_encoders(self) -> TextEncoders:
        """The one or two text encoders with their tokenizers, as in training."""
        if self.text_encoder_2 is None:
            return TextEncoders((self.tokenizer,), (self.text_encoder,))
        return TextEncoders((self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        seeds: int | list[int] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        *,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | list[str] = "",
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        text: TextFeatures | None = None,
        negative_text: TextFeatures | None = None,
        guidance_rescale: float = 0.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> EmuOutput | tuple:
        """Draw num_images_per_prompt pictures of each prompt; those of a prompt follow each other.

        The noise comes from `generator` (one, or one per picture), from `seeds` (one per picture; a single seed stands
        for itself and its successors), from `latents` (pictures, C, h, w), or is random. With one generator or seed per
        picture, a picture depends only on its prompt and seed, up to rounding. A guidance_scale of 1 or less means no
        guidance, in half the time. output_type: "pil", "np" (pictures, height, width, 3), "pt" (pictures, 3, height,
        width), both in 0..1, or "latent". height and width in pixels default to the training resolution. text and
        negative_text: features (`encode_prompts`) instead of prompts, which then need no text encoder.
        guidance_rescale: 0..1, the share in which a guided prediction gets the standard deviation of the one with text;
        strong guidance burns pictures otherwise, on schedules that end in pure noise (Lin et al., arXiv 2305.08891,
        sec. 3.4). original_size, crops_coords_top_left: (height, width) and (top, left) in pixels that a network with
        size_conditioning is told, as in SDXL; by default those of an uncropped picture. Raises
        ValueError if numbers do not match or a side is not a multiple of the autoencoder's factor.
        """
        config: Any = self.config  # a dict whose entries diffusers makes readable as attributes
        text = self._features_of(text, prompt)
        num_negative = len(_as_list(negative_prompt) if negative_text is None else negative_text)
        if num_negative not in (1, len(text)):
            raise ValueError(f"{num_negative} negative prompts for {len(text)} prompts; give one, or one per prompt")
        index = torch.arange(len(text)).repeat_interleave(num_images_per_prompt)
        height, width = height or config.resolution, width or config.resolution
        if height % self.vae.factor or width % self.vae.factor:
            raise ValueError(f"height {height} and width {width} must be multiples of {self.vae.factor}")
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:
            shape = (len(index), self.vae.config.latent_channels, height // self.vae.factor, width // self.vae.factor)
            latents = randn_tensor(shape, _generators(seeds, generator, len(index)), device, dtype)
        z = latents.to(device, dtype)

        text, guided = text.select(index), guidance_scale > 1
        if guided:
            null = self._features_of(negative_text, negative_prompt)
            text = TextFeatures.cat([text, null.select(index % len(null))])
        text = TextFeatures(
            text.tokens_BLD.to(device, dtype), text.mask_BL.to(device), text.pooled_BD.to(device, dtype)
        )
        sizes = [*(original_size or (height, width)), *crops_coords_top_left, height, width]
        sizes_B6 = torch.tensor(sizes, dtype=dtype, device=device).expand(len(text), -1)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        progress: Any = self.progress_bar(self.scheduler.timesteps)  # type: ignore[call-arg]
        for t in progress:
            given = torch.cat([z, z]) if guided else z
            predicted = denoise(self.unet, given, t.expand(len(text)), text, self.vae.factor, sizes_B6)
            if guided:
                with_text, without = predicted.chunk(2)
                predicted = without + guidance_scale * (with_text - without)
                if guidance_rescale > 0:
                    std, guided_std = (x.std((1, 2, 3), keepdim=True) for x in (with_text, predicted))
                    predicted = predicted * (1 + guidance_rescale * (std / guided_std - 1))
            z = self.scheduler.step(predicted, t, z).prev_sample
        images: Any = z
        if output_type != "latent":
            # one picture at a time: the decoder takes far more memory per picture than the denoiser
            pixels = torch.cat([self.vae.decode(self.vae.denormalise(one)) for one in z.split(1)])
            images = self.image_processor.postprocess(pixels.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return EmuOutput(images=images) if return_dict else (images,)

    def _features_of(self, text: TextFeatures | None, prompt: str | list[str] | None) -> TextFeatures:
        """Return features that are given, or those of prompts. Raises ValueError without either."""
        if text is not None:
            return text
        if prompt is None:
            raise ValueError("there is neither prompt nor text; give one of them")
        config: Any = self.config
        return encode_prompts(_as_list(prompt), self.text_encoders, config.num_text_tokens)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:  # pyrefly: ignore
        """Write model_index.json, in which diffusers finds where the classes' code is, and that code: pipeline.py with
        the modules that it imports, and the autoencoder's in vae/. (diffusers calls this last in `save_pretrained`.)
        """
        super().save_config(save_directory, push_to_hub, **kwargs)
        folder = Path(save_directory)
        _save_code(sys.modules[type(self).__module__], folder, "pipeline")
        vae_module = _save_code(sys.modules[type(self.vae).__module__], folder / "vae")
        index = json.loads((folder / self.config_name).read_text())
        index["_class_name"] = ["pipeline", type(self).__name__]
        index["vae"] = [vae_module, type(self.vae).__name__]
        (folder / self.config_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the config of a folder, with this process's classes instead of the copies in the folder."""
        config = super().load_config(*args, **kwargs)
        found = config[0] if isinstance(config, tuple) else config
        if isinstance(found.get("_class_name"), list):
            found["_class_name"] = cls.__name__
            if cls.__module__.startswith("emu_models"):
                from emu_models.latent.autoencoder import network

                found["vae"] = [network.__name__, found["vae"][1]]
        return config


def _as_list(prompt: str | list[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _generators(seeds: int | list[int] | None, generator: Generators | None, num: int) -> Generators | None:
    if seeds is None:
        if isinstance(generator, list) and len(generator) != num:
            raise ValueError(f"{num} pictures but {len(generator)} generators; give one, or one per picture")
        return generator
    if generator is not None:
        raise ValueError("both seeds and generator are given; give one of them")
    numbers = [seeds + i for i in range(num)] if isinstance(seeds, int) else list(seeds)
    if len(numbers) != num:
        raise ValueError(f"{num} pictures but {len(numbers)} seeds; give one seed per picture")
    return [torch.Generator().manual_seed(number) for number in numbers]  # on the CPU: the same on every device


# Imports of our own modules, in the package ("from emu_models.text import …") and in a saved copy of a module
OWN_IMPORT = re.compile(r"^from (?:emu_models[\w.]*\.|\.emu_)(\w+) import \(?\s*(\w+)", re.MULTILINE)


def _save_code(module: ModuleType, folder: Path, name: str | None = None) -> str:
    """Write the source of one of our modules, and of those that it imports, into `folder`; return the module's name.

    diffusers copies the code of all models into one flat package, hence the prefix emu_. It copies only files that the
    first one imports directly, so a saved module must not depend on others indirectly.
    """
    source = inspect.getsource(module)
    name = name or "emu_" + module.__name__.rsplit(".", 1)[-1].removeprefix("emu_")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(OWN_IMPORT.sub(lambda m: re.sub(r"from \S+", f"from .emu_{m[1]}", m[0]), source))
    for _, imported in OWN_IMPORT.findall(source):
        _save_code(sys.modules[getattr(module, imported).__module__], folder)
    return name
