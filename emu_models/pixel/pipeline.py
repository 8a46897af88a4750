"""EmuCascadePipeline: text to pictures in pixels, a small one first and then the whole (Imagen, arXiv 2205.11487)."""

import math
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emu_models.latent.denoiser import choose_attention
from emu_models.pixel.denoising import denoise_pixels, pixel_multiple
from emu_models.pixel.scaling import condition_on, enlarge, keep_colours
from emu_models.text import TextFeatures
from emu_models.text_pipeline import EmuOutput, Generators, TextPipeline, make_generators

SUPER_GUIDANCE = 2.0  # the upscaler's guidance by default, at most: the small picture says most already; chosen here


class EmuCascadePipeline(TextPipeline):
    """Draws pictures from prompts, without an autoencoder. Components: unet and scheduler (the base, for small
    pictures), super_unet and super_scheduler (the upscaler; without them small pictures are enlarged smoothly),
    text_encoder, tokenizer and, if there are two encoders, text_encoder_2 and tokenizer_2.

    resolution: pixels per side. ratio: of them per pixel of the small picture. augmentation: 0..1, the level of noise
    that small pictures get before the upscaler sees them. num_super_steps: steps of the upscaler. colour_cell: pixels
    of the small picture, per side, whose mean colour the upscaled one keeps (scaling.keep_colours).
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->super_unet"
    _optional_components = [*TextPipeline._optional_components, "super_unet", "super_scheduler"]

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        super_unet: UNet2DConditionModel | None = None,
        super_scheduler: DDIMScheduler | None = None,
        resolution: int = 64,
        num_text_tokens: int = 16,
        ratio: int = 4,
        augmentation: float = 0.1,
        num_super_steps: int = 8,
        colour_cell: int = 4,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, super_unet=super_unet, super_scheduler=super_scheduler)
        self.register_text(text_encoder, tokenizer, text_encoder_2, tokenizer_2, resolution, num_text_tokens)
        self.register_to_config(
            ratio=ratio, augmentation=augmentation, num_super_steps=num_super_steps, colour_cell=colour_cell
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=ratio)
        for network in (unet, super_unet):
            if network is not None:
                choose_attention(network)

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of, in px."""
        config: Any = self.config
        small = math.lcm(pixel_multiple(self.unet), config.colour_cell)
        return math.lcm(config.ratio * small, 1 if self.super_unet is None else pixel_multiple(self.super_unet))

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
        small: Tensor | None = None,
        text: TextFeatures | None = None,
        negative_text: TextFeatures | None = None,
        num_super_steps: int | None = None,
        super_guidance_scale: float | None = None,
        augmentation: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> EmuOutput | tuple:
        """Draw num_images_per_prompt pictures of each prompt; those of a prompt follow each other.

        The noise of both stages comes from `generator` (one, or one per picture) or from `seeds` (one per picture; a
        single seed stands for itself and its successors), or is random. With one generator or seed per picture, a
        picture depends only on its prompt and seed, up to rounding. num_inference_steps: of the base. A guidance_scale
        of 1 or less means no guidance, in half the time. super_guidance_scale: of the upscaler, by default the same, at
        most SUPER_GUIDANCE. num_super_steps, augmentation: by default the pipeline's (see the class).

        height and width in px default to the training resolution. small: small pictures (B, 3, height / ratio, width /
        ratio) in [-1, 1] to upscale, instead of those of the base. text and negative_text: features (`encode_prompts`)
        instead of prompts, which then need no text encoder. output_type: "pil", "np" (pictures, height, width, 3),
        "pt" (pictures, 3, height, width), both in 0..1, or "latent", in [-1, 1]. Raises ValueError if numbers do not
        match, a side is not a multiple of `multiple`, or the level of noise is not in 0..1.
        """
        config: Any = self.config  # a dict whose entries diffusers makes readable as attributes
        guided, asked = guidance_scale > 1, (prompt, negative_prompt, text, negative_text, num_images_per_prompt)
        text = self.prepare_text(*asked, guided, self.unet.dtype)
        num, ratio = len(text) // (2 if guided else 1), config.ratio
        height, width = height or config.resolution, width or config.resolution
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"height {height} and width {width} must be multiples of {self.multiple}")
        level = config.augmentation if augmentation is None else augmentation
        if not 0 <= level <= 1:
            raise ValueError(f"augmentation is {level}; it is a level of noise between 0 and 1")
        device, dtype = self._execution_device, self.unet.dtype
        generators = make_generators(seeds, generator, num)

        def noise(*sides: int) -> Tensor:
            return randn_tensor((num, 3, *sides), generators, device, dtype)

        sides = height // ratio, width // ratio
        if small is None:
            z = noise(*sides)
            small = self._denoise("unet", self.scheduler, z, text, num_inference_steps, guidance_scale, ratio)
        elif small.shape != (num, 3, *sides):
            raise ValueError(f"the small pictures are {tuple(small.shape)} and must be {(num, 3, *sides)}")
        small = small.to(device, dtype).clamp(-1, 1)
        if self.super_unet is None:
            x = enlarge(small, ratio)
        else:
            beside, told_B1 = condition_on(small, noise(*sides), small.new_full((num,), level), ratio)
            scale = min(guidance_scale, SUPER_GUIDANCE) if super_guidance_scale is None else super_guidance_scale
            steps = num_super_steps or config.num_super_steps
            z = noise(height, width)
            x = self._denoise("super_unet", self.super_scheduler, z, text, steps, scale, 1, beside, told_B1)
        images: Any = keep_colours(x, small, config.colour_cell)
        if output_type != "latent":
            images = self.image_processor.postprocess(images.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return EmuOutput(images=images) if return_dict else (images,)

    def _denoise(
        self,
        name: str,
        scheduler: Any,
        z: Tensor,
        text: TextFeatures,
        num_steps: int,
        guidance_scale: float,
        factor: int,
        beside: Tensor | None = None,
        told_B1: Tensor | None = None,
    ) -> Tensor:
        """Return what a network makes of noise z (B, 3, h, w). text: (B) rows, or (2 B) if guided. beside (B, 3, h, w),
        told_B1 (B, 1): what it is given besides."""
        network = getattr(self, name)
        num = len(z)
        guided = guidance_scale > 1 and len(text) > num
        if not guided:
            text = text.select(torch.arange(num, device=text.tokens_BLD.device))
        twice = (lambda x: torch.cat([x, x])) if guided else (lambda x: x)
        told = None if told_B1 is None else twice(told_B1)
        scheduler.set_timesteps(num_steps, device=z.device)
        progress: Any = self.progress_bar(scheduler.timesteps)  # type: ignore[call-arg]
        for t in progress:
            given = twice(z if beside is None else torch.cat([z, beside], dim=1))
            predicted = denoise_pixels(network, given, t.expand(len(text)), text, factor, told)
            if guided:
                with_text, without = predicted.chunk(2)
                predicted = without + guidance_scale * (with_text - without)
            # the noise is computed from the thresholded picture, so that both together still make z
            z = scheduler.step(predicted, t, z, use_clipped_model_output=True).prev_sample
        return z
