"""Enlarges curated pictures that are too small to tune on. The Emu paper upsamples pictures below 1024 px by a pixel
diffusion model (sec. 3.3); here any of diffusers' super-resolution pipelines does, from a folder.

Without a pipeline, Lanczos resampling makes the pixels and no detail; what was enlarged, and by what, is recorded.
"""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from emu_models.checkpoints import hide_bars
from emu_models.device import autocast_on_gpu, choose_device

LANCZOS = "Lanczos resampling, which adds no detail"
MULTIPLE = 64  # px; sides that every pipeline takes: its latents are halved up to three times
MAX_ROUNDS = 4  # of a pipeline that enlarges twofold and more; chosen here

Enlarge = Callable[[Image.Image, str, str], Image.Image]


def load_upsampler(folder: Path | None, side: int) -> tuple[Enlarge, str]:
    """Return a function (RGB picture, caption, key) -> the picture with a shorter side of `side` px, and what it
    enlarges by, in words.

    folder: a super-resolution pipeline as diffusers saves it (it takes `image`, perhaps also `prompt`, and returns
    larger pictures); None for Lanczos. A picture's noise depends on its key alone. Raises ValueError if the folder
    holds no such pipeline.
    """
    if folder is None:
        return lambda image, caption, key: _resized(image, side), LANCZOS
    hide_bars()
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"curated_set.upsampler {folder} cannot be loaded; give the folder of a super-resolution pipeline, as "
            f"diffusers saves it ({error})"
        ) from error
    takes = inspect.signature(pipeline.__call__).parameters
    if "image" not in takes:
        raise ValueError(f"curated_set.upsampler {folder} is a {type(pipeline).__name__}, which takes no picture")
    pipeline = pipeline.to(choose_device())
    pipeline.set_progress_bar_config(disable=True)

    def enlarge(image: Image.Image, caption: str, key: str) -> Image.Image:
        seed = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)
        larger = image
        for _ in range(MAX_ROUNDS):
            if min(larger.size) >= side:
                break
            before, given = larger.size, _to_multiples(larger)
            more = {"prompt": caption} if "prompt" in takes else {}
            noise = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
            with autocast_on_gpu(choose_device()):
                larger = pipeline(image=given, generator=noise, **more).images[0].convert("RGB")
            if min(larger.size) <= min(before):
                raise ValueError(f"curated_set.upsampler {folder} makes {larger.size} of {given.size} px: no larger")
        return _resized(larger, side, image.width / image.height)

    return enlarge, f"{type(pipeline).__name__} in {folder.name}"


def _to_multiples(image: Image.Image) -> Image.Image:
    width, height = (max(MULTIPLE, round(length / MULTIPLE) * MULTIPLE) for length in image.size)
    size = width, height
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _resized(image: Image.Image, side: int, aspect: float | None = None) -> Image.Image:
    """Return the picture with a shorter side of `side` px. aspect: width / height; None for the picture's own."""
    aspect = image.width / image.height if aspect is None else aspect
    size = (round(side * max(1.0, aspect)), round(side * max(1.0, 1 / aspect)))
    return image.resize(size, Image.Resampling.LANCZOS)
