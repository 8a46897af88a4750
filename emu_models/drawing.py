"""Draws pictures with any pipeline that can be tuned (checkpoints.py), in the memory that the device has.

All prompts are encoded first, so that large text encoders are on a GPU only meanwhile. A GPU then draws as many
pictures at a time as fit, in bf16 with fp32 weights, and decodes them one by one.
"""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from emu_models.checkpoints import captions_of, parts_that_draw
from emu_models.device import autocast_on_gpu, choose_device, lend, precision_on
from emu_models.flow.layouts import layout_of
from emu_models.latent.pipeline import EmuPipeline
from emu_models.memory import Batches
from emu_models.text import TextFeatures
from emu_models.text_pipeline import TextPipeline

# The arguments that take what `encode_prompt` returns, in its order.
ENCODED = {
    False: ("prompt_embeds", "negative_prompt_embeds"),
    True: ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
}


def draw(
    pipeline: Any,
    prompts: list[str],
    seeds: list[int],
    num_inference_steps: int = 25,
    guidance_scale: float = 3.0,
    resolution: int | None = None,
    guidance_rescale: float = 0.0,
) -> list[Image.Image]:
    """Draw a picture per prompt and seed. The same (prompt, seed) gives the same picture whatever else is in the batch,
    up to rounding. resolution: px; None for the pipeline's. guidance_rescale: see EmuPipeline; pipelines of rectified
    flow do without. Raises ValueError if there are not as many seeds as prompts.
    """
    encoded = encode_for_drawing(pipeline, prompts)
    asked = num_inference_steps, guidance_scale, resolution, guidance_rescale
    return list(draw_encoded(pipeline, encoded, seeds, *asked))


@torch.no_grad()
def encode_for_drawing(pipeline: Any, prompts: list[str], at_once: int | None = None) -> list[dict[str, Any]]:
    """Return what `draw_encoded` draws: for every `at_once` prompts (None: all of them) the pipeline's arguments that
    stand for them, on the CPU. Encoded ahead, prompts can be drawn while a training fills the GPU."""
    device, size = choose_device(), at_once or max(1, len(prompts))
    with lend(device, *captions_of(pipeline).models, dtype=precision_on(device)):
        return [_encode(pipeline, prompts[i : i + size], device) for i in range(0, len(prompts), size)]


@torch.no_grad()
def draw_encoded(
    pipeline: Any,
    encoded: list[dict[str, Any]],
    seeds: list[int],
    num_inference_steps: int = 25,
    guidance_scale: float = 3.0,
    resolution: int | None = None,
    guidance_rescale: float = 0.0,
) -> Iterator[Image.Image]:
    """Yield the picture of each encoded prompt, drawn together as they were encoded if they fit into memory."""
    sizes = [len(next(iter(texts.values()))) for texts in encoded]
    if sum(sizes) != len(seeds):
        raise ValueError(f"{sum(sizes)} prompts but {len(seeds)} seeds; give one seed per prompt")
    device = choose_device()
    batches = Batches("drawing", max(sizes, default=1), device)
    layout = layout_of(pipeline)
    if layout is not None:
        asked = layout.asked(guidance_scale)
    elif isinstance(pipeline, TextPipeline) and not isinstance(pipeline, EmuPipeline):
        asked = {"guidance_scale": guidance_scale}
    else:
        asked = {"guidance_scale": guidance_scale, "guidance_rescale": guidance_rescale}
    with lend(device, *parts_that_draw(pipeline)):
        for texts, size, start in zip(encoded, sizes, itertools.accumulate(sizes, initial=0), strict=False):
            own = seeds[start : start + size]

            def draw_some(some: range, texts: dict[str, Any] = texts, own: list[int] = own) -> list[Image.Image]:
                return _call(
                    pipeline,
                    device,
                    **{name: _select(value, some, device) for name, value in texts.items()},
                    num_inference_steps=num_inference_steps,
                    **asked,
                    height=resolution,
                    width=resolution,
                    # on the CPU: the same on every device
                    generator=[torch.Generator().manual_seed(own[i]) for i in some],
                )

            for images in batches.run(draw_some, size):
                yield from images


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Any]:
    """Return, on the CPU, the pipeline's arguments that stand for prompts and the null condition."""
    with autocast_on_gpu(device):
        if isinstance(pipeline, TextPipeline):
            length = pipeline.config.num_text_tokens  # type: ignore[attr-defined]
            text, null = (pipeline.text_encoders.encode(some, length) for some in (prompts, [""]))
            return {"text": text.to(torch.device("cpu")), "negative_text": null.to(torch.device("cpu"))}
        if layout := layout_of(pipeline):
            text, null = (captions_of(pipeline).encode(some, 0) for some in (prompts, [""]))
            given = layout.arguments(text, null.select(torch.zeros(len(prompts), dtype=torch.long)))
            return {
                name: (value.float() if value.is_floating_point() else value).cpu() for name, value in given.items()
            }
        encoded = pipeline.encode_prompt(
            prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        names = ENCODED[isinstance(pipeline, StableDiffusionXLPipeline)]
        return {name: value.float().cpu() for name, value in zip(names, encoded, strict=True)}


def _select(value: Tensor | TextFeatures, some: range, device: torch.device) -> Tensor | TextFeatures:
    """Return the rows of some prompts, as the pipelines expect them: ours takes them from the CPU, and a single null
    condition for all."""
    if isinstance(value, TextFeatures):
        return value if len(value) == 1 else value.select(torch.arange(some.start, some.stop))
    return value[some.start : some.stop].to(device)


def _call(pipeline: Any, device: torch.device, **arguments: Any) -> list[Image.Image]:
    """Run a pipeline. If one picture alone takes too much memory, its autoencoder decodes in tiles from here on."""
    if isinstance(pipeline, TextPipeline):
        with autocast_on_gpu(device):
            return pipeline(**arguments).images
    vae = pipeline.vae
    vae.enable_slicing()  # decodes one picture at a time
    try:
        with autocast_on_gpu(device):
            return pipeline(**arguments).images
    except torch.OutOfMemoryError:
        if vae.use_tiling or len(arguments["generator"]) > 1:
            raise
        logging.getLogger(__name__).warning("drawing: out of memory; pictures are decoded in tiles from here on")
        vae.enable_tiling()
        return _call(pipeline, device, **arguments)
    finally:
        vae.disable_slicing()
