"""EmuPipeline: text to pictures, saved and loaded like any diffusers pipeline."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emu_models.autoencoder.network import Autoencoder
from emu_models.denoiser import choose_attention, denoise
from emu_models.text import TextEncoders, TextFeatures, encode_prompts
from emu_models.training.cache import to_images


@dataclass
class EmuOutput(BaseOutput):
    images: list[Image.Image]


class EmuPipeline(DiffusionPipeline):
    """Components: vae (Autoencoder), unet, scheduler, text_encoder, tokenizer and, where there are two encoders,
    text_encoder_2, tokenizer_2. `resolution` in pixels a side."""

    _optional_components = ["text_encoder_2", "tokenizer_2"]

    def __init__(
        self,
        vae: Autoencoder,
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
        choose_attention(unet)

    @property
    def text_encoders(self) -> TextEncoders:
        if self.text_encoder_2 is None:
            return TextEncoders((self.tokenizer,), (self.text_encoder,))
        return TextEncoders((self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2))

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[str],
        seeds: list[int],
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        resolution: int | None = None,
    ) -> EmuOutput:
        """One picture a prompt and seed; the same (prompt, seed) gives the same picture whatever else is in the batch,
        up to rounding. guidance_scale 1 is no guidance. ValueError on unequal lengths or a side that does not fit.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed a prompt")
        config: Any = self.config  # a dict that diffusers lets be read by attribute
        resolution = resolution or config.resolution
        if resolution % self.vae.factor:
            raise ValueError(f"resolution {resolution} must be a multiple of {self.vae.factor}")
        side, channels = resolution // self.vae.factor, self.vae.config.latent_channels
        z = torch.cat(
            [torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        ).to(self.device)
        text = encode_prompts(prompts, self.text_encoders, config.num_text_tokens)
        null = encode_prompts([""], self.text_encoders, config.num_text_tokens)
        both = TextFeatures.cat([text, null.select(torch.zeros(len(prompts), dtype=torch.long))])
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        progress: Any = self.progress_bar(self.scheduler.timesteps)  # type: ignore[call-arg]
        for t in progress:
            t_B = t.expand(len(both)).to(self.device)
            with_text, without = denoise(self.unet, torch.cat([z, z]), t_B, both).chunk(2)
            velocity = without + guidance_scale * (with_text - without)
            z = self.scheduler.step(velocity, t, z).prev_sample
        pixels = self.vae.decode(self.vae.denormalise(z))
        return EmuOutput(images=[Image.fromarray(image) for image in to_images(pixels)])
