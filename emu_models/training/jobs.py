"""What a training is asked to do. Which of these fields decide its result is declared in identity.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from emu_models.latent.autoencoder_learner import AutoencoderTrainingConfig
from emu_models.latent.checkpoints import Adapters
from emu_models.latent.denoiser import DenoiserConfig
from emu_models.latent.denoiser_learner import DenoiserTrainingConfig
from emu_models.training.distributed import ALONE, World
from emu_models.training.loop import LoopConfig, MetricsSink


@dataclass(frozen=True)
class Job:
    """What every training needs: where its rows are, where its state and its result go, who listens.

    rows: a parquet with columns key and caption; shards: the folder of WebDataset shards that holds their pictures.
    states: the folder in which each training has one of its own, named by its identity. out: where the result is going
    to be published, to which the paths in its meta.json are relative; nothing is written there. code: what names the
    code that trains, so that a result of other code is not taken for this one's.
    """

    name: str
    shards: Path
    rows: Path
    resolution: int
    out: Path
    states: Path
    cache: Path
    loop: LoopConfig
    code: str = ""
    sink: MetricsSink = lambda step, metrics: None
    picture_sink: Callable[[int, Image.Image], None] = lambda step, sheet: None
    stop_requested: Callable[[], bool] = lambda: False
    world: World = ALONE


@dataclass(frozen=True)
class AutoencoderJob:
    """start_from: a trained autoencoder's folder to go on from, else `network` (arguments of Autoencoder) is built."""

    network: dict[str, Any] | None
    start_from: Path | None
    training: AutoencoderTrainingConfig


@dataclass(frozen=True)
class DenoiserJob:
    """start_from: a folder of a trained pipeline to go on from, ours or another's (emu_models.latent.checkpoints); else
    `denoiser` is built over `autoencoder` and `text_encoder`. adapters: what is trained in place of all weights.

    aspect_buckets: picture shapes from tall to wide (buckets.py); 1 crops all to squares.
    """

    autoencoder: Path | None
    start_from: Path | None
    denoiser: DenoiserConfig | None
    text_encoder: str | list[str] | None
    num_text_tokens: int
    training: DenoiserTrainingConfig
    prompts: tuple[str, ...]
    guidance_scale: float
    aspect_buckets: int = 1
    adapters: Adapters | None = None
