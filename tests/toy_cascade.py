"""Toy cascades: pictures of 32 px from small ones of 8 px."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from emu_models.latent.jobs import DenoiserConfig, DenoiserTrainingConfig
from emu_models.pixel.jobs import CascadeJob
from emu_models.training.jobs import LoopConfig
from tests.toy_training import LOOP, places

NETWORK = DenoiserConfig((16, 32), (False, False), 1, "joint", head_width=16)


def base_job(corpus: tuple[Path, Path], folder: Path, loop: LoopConfig = LOOP, **changes: Any) -> CascadeJob:
    """Return the training of a base in `folder`; the toy corpus has squares with their colours."""
    job = CascadeJob(
        **places("base", corpus, folder),
        stage="base",
        ratio=4,
        loop=loop,
        denoiser=NETWORK,
        num_text_tokens=8,
        training=DenoiserTrainingConfig(loop.num_steps, 8, loop.learning_rate, 0.0, 0.1, 0),
        prompts=("red square", "blue square"),
        guidance_scale=2.0,
    )
    return replace(job, **changes)


def upscaler_job(
    corpus: tuple[Path, Path], folder: Path, base: Path, loop: LoopConfig = LOOP, **changes: Any
) -> CascadeJob:
    """Return the training of an upscaler for a trained base."""
    own: dict[str, Any] = {"name": "upscaler", "stage": "upscaler", "base": base, "ratio": None, **changes}
    return replace(base_job(corpus, folder, loop), **own)
