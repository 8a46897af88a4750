"""EmuFlowPipeline: text to pictures by a rectified-flow transformer, on latents or on pixels."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import SD3LoraLoaderMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emu_models.flow.network import position_multiple, predict_velocity
from emu_models.text import TextFeatures
from emu_models.text_pipeline import EmuOutput, Generators, TextPipeline, make_generators


class EmuFlowPipeline(TextPipeline, SD3LoraLoaderMixin):
    """Draws pictures from prompts. Components: vae (Autoencoder, or None for a transformer that draws pixels),
    transformer, scheduler, text_encoder, tokenizer and, if there are two encoders, text_encoder_2 and tokenizer_2.
    resolution: pixels per side."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    OWN_PARTS = {"vae": "emu_models.latent.autoencoder.network"}
    _optional_components = [*TextPipeline._optional_components, "vae"]

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vae: ModelMixin | None = None,
        text_encoder_2: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        resolution: int = 64,
        num_text_tokens: int = 16,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        self.register_text(text_encoder, tokenizer, text_encoder_2, tokenizer_2, resolution, num_text_tokens)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.factor)

    @property
    def factor(self) -> int:
        """Pixels per side of a position that the transformer is given."""
        return 1 if self.vae is None else self.vae.factor

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
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> EmuOutput | tuple:
        """Draw num_images_per_prompt pictures of each prompt; the arguments mean what they mean in EmuPipeline.

        Raises ValueError if numbers do not match or a side is not a multiple of the pixels of a patch.
        """
        config: Any = self.config  # a dict whose entries diffusers makes readable as attributes
        guided, asked = guidance_scale > 1, (prompt, negative_prompt, text, negative_text, num_images_per_prompt)
        text = self.prepare_text(*asked, guided, self.transformer.dtype)
        num = len(text) // (2 if guided else 1)
        height, width = height or config.resolution, width or config.resolution
        multiple = self.factor * position_multiple(self.transformer)
        if height % multiple or width % multiple:
            raise ValueError(f"height {height} and width {width} must be multiples of {multiple}")
        device, dtype = self._execution_device, self.transformer.dtype
        if latents is None:
            shape = (num, self.transformer.config.in_channels, height // self.factor, width // self.factor)
            latents = randn_tensor(shape, make_generators(seeds, generator, num), device, dtype)
        z = latents.to(device, dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        progress: Any = self.progress_bar(self.scheduler.timesteps)  # type: ignore[call-arg]
        for t in progress:
            given = torch.cat([z, z]) if guided else z
            level_B = (t / self.scheduler.config.num_train_timesteps).to(dtype).expand(len(text))
            velocity = predict_velocity(self.transformer, given, level_B, text)
            if guided:
                with_text, without = velocity.chunk(2)
                velocity = without + guidance_scale * (with_text - without)
            z = self.scheduler.step(velocity, t, z).prev_sample
        images: Any = z
        if output_type != "latent":
            if self.vae is not None:
                # one picture at a time: the decoder takes far more memory per picture than the transformer
                z = torch.cat([self.vae.decode(self.vae.denormalise(one)) for one in z.split(1)])
            images = self.image_processor.postprocess(z.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return EmuOutput(images=images) if return_dict else (images,)
