"""EmuPipeline: text to pictures by a latent U-Net, called, saved and loaded like any diffusers pipeline."""

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emu_models.latent.denoiser import choose_attention, denoise
from emu_models.text import TextFeatures
from emu_models.text_pipeline import EmuOutput, Generators, TextPipeline, make_generators


class EmuPipeline(TextPipeline, StableDiffusionLoraLoaderMixin):
    """Draws pictures from prompts. Components: vae (Autoencoder), unet, scheduler, text_encoder, tokenizer and, if
    there are two encoders, text_encoder_2 and tokenizer_2. resolution: pixels per side."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    OWN_PARTS = {"vae": "emu_models.latent.autoencoder.network"}

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
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.register_text(text_encoder, tokenizer, text_encoder_2, tokenizer_2, resolution, num_text_tokens)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae.factor)
        choose_attention(unet)

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
        guided, given = guidance_scale > 1, (prompt, negative_prompt, text, negative_text, num_images_per_prompt)
        text = self.prepare_text(*given, guided, self.unet.dtype)
        num = len(text) // (2 if guided else 1)
        height, width = height or config.resolution, width or config.resolution
        if height % self.vae.factor or width % self.vae.factor:
            raise ValueError(f"height {height} and width {width} must be multiples of {self.vae.factor}")
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:
            shape = (num, self.vae.config.latent_channels, height // self.vae.factor, width // self.vae.factor)
            latents = randn_tensor(shape, make_generators(seeds, generator, num), device, dtype)
        z = latents.to(device, dtype)

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
