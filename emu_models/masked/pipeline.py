"""EmuMaskedPipeline: text to pictures by a transformer that fills in masked tokens, called, saved and loaded like any
diffusers pipeline."""

import math
from typing import Any, Literal

import torch
from diffusers import UVit2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emu_models.masked.network import halton_order, lowest, mask_token, predict_logits, share_masked
from emu_models.text import TextFeatures
from emu_models.text_pipeline import EmuOutput, Generators, TextPipeline, make_generators

Order = Literal["halton", "confidence"]
CHOICE_TEMPERATURE = 4.5  # of the noise in the confidences, at the first step; MaskGIT's code


class EmuMaskedPipeline(TextPipeline):
    """Draws pictures from prompts. Components: vae (PictureTokenizer, under the name that the part between pixels and
    latents has in every pipeline), transformer, text_encoder, tokenizer and, if there are two encoders, text_encoder_2
    and tokenizer_2, which are of text. resolution: pixels per side."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    OWN_PARTS = {"vae": "emu_models.masked.tokenizer"}

    def __init__(
        self,
        vae: ModelMixin,
        transformer: UVit2DModel,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        resolution: int = 64,
        num_text_tokens: int = 16,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer)
        self.register_text(text_encoder, tokenizer, text_encoder_2, tokenizer_2, resolution, num_text_tokens)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae.factor)

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
        text: TextFeatures | None = None,
        negative_text: TextFeatures | None = None,
        order: Order = "halton",
        temperature: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> EmuOutput | tuple:
        """Draw num_images_per_prompt pictures of each prompt; arguments that EmuPipeline has mean the same here.

        All tokens are masked at first. Each step draws tokens from the guided probabilities, and keeps so many of them
        that share_masked of the steps says how many are left. order: which are kept: the next positions of a sequence
        that covers the picture evenly ("halton"; Besnier et al., arXiv 2503.17076), or those of the highest
        probability, with noise that fades ("confidence"; MaskGIT, arXiv 2202.04200, sec. 3.3). temperature: by which
        logits are divided; below 1, likely tokens are drawn more often. output_type "latent": tokens (pictures, h, w).

        Raises ValueError if numbers do not match, a side does not fit the network, or order is another word.
        """
        config: Any = self.config  # a dict whose entries diffusers makes readable as attributes
        guided, given = guidance_scale > 1, (prompt, negative_prompt, text, negative_text, num_images_per_prompt)
        text = self.prepare_text(*given, guided, self.transformer.dtype)
        num = len(text) // (2 if guided else 1)
        height, width = height or config.resolution, width or config.resolution
        multiple = self.vae.factor * (2 if self.transformer.config.downsample else 1)
        if height % multiple or width % multiple:
            raise ValueError(f"height {height} and width {width} must be multiples of {multiple}")
        if order not in ("halton", "confidence"):
            raise ValueError(f"order is {order!r}; it must be 'halton' or 'confidence'")
        shape = num, height // self.vae.factor, width // self.vae.factor
        tokens = self._draw_tokens(
            shape, text, num_inference_steps, guidance_scale, make_generators(seeds, generator, num), order, temperature
        )
        images: Any = tokens
        if output_type != "latent":
            # one picture at a time: the decoder takes far more memory per picture than the transformer
            pixels = torch.cat([self.vae.decode(self.vae.latents_of(one)) for one in tokens.split(1)])
            images = self.image_processor.postprocess(pixels.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return EmuOutput(images=images) if return_dict else (images,)

    def _draw_tokens(
        self,
        shape: tuple[int, int, int],
        text: TextFeatures,
        num_steps: int,
        guidance_scale: float,
        generators: Generators | None,
        order: Order,
        temperature: float,
    ) -> Tensor:
        """Return tokens of `shape`, int64 (B, h, w). text: with as many rows, or twice as many for guidance."""
        num, height, width = shape
        device, mask = self._execution_device, mask_token(self.transformer)
        tokens = torch.full((num, height * width), mask, device=device)
        place_N = halton_order(height, width).flatten().to(device)
        progress: Any = self.progress_bar(range(num_steps))  # type: ignore[call-arg]
        for step in progress:
            is_masked = tokens == mask
            num_left = int(height * width * share_masked(torch.tensor((step + 1) / num_steps, dtype=torch.float64)))
            num_kept_B = is_masked.sum(1) - num_left
            given = tokens.view(shape).repeat(len(text) // num, 1, 1)
            logits = predict_logits(self.transformer, given, text, self.vae.factor).float().flatten(2).mT
            if len(text) > num:
                with_text, without = logits.chunk(2)
                logits = without + guidance_scale * (with_text - without)
            # normal numbers, since diffusers draws no others with a generator per picture; then in 0..1
            normal = randn_tensor((num, 2, height * width), generators, device, torch.float32)
            uniform, other = (0.5 * torch.erfc(normal / -math.sqrt(2))).unbind(1)
            drawn, log_share = _draw(logits / temperature, uniform)
            if order == "halton":
                scores = place_N.expand(num, -1).double()
            else:
                noise = -(-other.double().clamp(1e-9, 1 - 1e-9).log()).log()  # Gumbel's
                scores = -(log_share + CHOICE_TEMPERATURE * (1 - (step + 1) / num_steps) * noise)
            kept = lowest(scores.masked_fill(~is_masked, math.inf), num_kept_B)
            tokens = torch.where(kept, drawn, tokens)
        return tokens.view(shape)


def _draw(logits_BNK: Tensor, uniform_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes drawn from the logits by numbers in 0..1, int64 (B, N), and their log probabilities."""
    log_shares = logits_BNK.double().log_softmax(-1)
    sums = log_shares.exp().cumsum(-1)
    drawn = torch.searchsorted(sums, uniform_BN.double()[..., None]).clamp(max=sums.shape[-1] - 1)
    return drawn[..., 0], log_shares.gather(-1, drawn)[..., 0]
