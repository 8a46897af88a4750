"""The trainings of the graph as functions: rows and a start in, a model folder out.

They run in a child process of their own (emu_dagster.train_process) and know nothing of what launched them. A model
folder is in diffusers' layout (config.json and safetensors) with meta.json, metrics.jsonl and preview.png beside.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from emu_data.files import atomic_dir, fingerprint
from emu_models.autoencoder.network import Autoencoder
from emu_models.checkpoints import (
    Adapters,
    add_adapters,
    captions_of,
    forget_paths,
    hide_bars,
    latents_of,
    load_pipeline,
    save_pipeline,
    set_resolution,
)
from emu_models.denoiser import DenoiserConfig, build_denoiser, choose_attention, count_parameters
from emu_models.diffusion.schedule import build_scheduler
from emu_models.pipeline import EmuPipeline, draw
from emu_models.text import load_text_encoders
from emu_models.training.autoencoder_learner import AutoencoderLearner, AutoencoderTrainingConfig
from emu_models.training.buckets import bucket_sizes
from emu_models.training.cache import encode_captions, encode_moments, to_images, to_tensor
from emu_models.training.denoiser_learner import DenoiserLearner, DenoiserTrainingConfig, LatentRows
from emu_models.training.device import choose_device, half_precision_pays
from emu_models.training.distributed import ALONE, World, gather_weights
from emu_models.training.loop import (
    LoopConfig,
    MetricsSink,
    TrainingResult,
    read_log,
    run_training,
)
from emu_models.training.rows import PictureRows, Rows, list_rows, load_rows

NUM_MEASURED = 256  # pictures that an autoencoder's start and its latents' statistics are taken from; chosen here


@dataclass(frozen=True)
class Job:
    """What every training needs: where its rows are, where its state and its result go, who listens.

    rows: a parquet with columns key and caption; shards: the folder of WebDataset shards that holds their pictures.
    """

    name: str
    shards: Path
    rows: Path
    resolution: int
    out: Path
    work: Path
    cache: Path
    loop: LoopConfig
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
    """start_from: a folder of a trained pipeline to go on from, ours or another's (emu_models.checkpoints); else
    `denoiser` is built over `autoencoder`. adapters: what is trained in place of all weights.

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


def train_autoencoder(job: Job, spec: AutoencoderJob) -> TrainingResult:
    """Trains an autoencoder and writes it to job.out. Resumes from job.work where the same job was interrupted.

    Of several processes each learns all of the same batches: no faster than one, and no different.
    """
    rows = load_rows(job.shards, pd.read_parquet(job.rows), job.resolution)
    torch.manual_seed(job.loop.seed)
    if spec.start_from is not None:
        network = Autoencoder.from_pretrained(spec.start_from)
    else:
        network = Autoencoder(**(spec.network or {}))
        if network.shortcut_in is not None:
            network.start_from_principal_components(to_tensor(rows.trained.images[:NUM_MEASURED]))
    learner = AutoencoderLearner(network, rows, spec.training)
    identity = fingerprint([job.name, asdict(spec), asdict(job.loop), rows.keys, job.resolution])
    result = run_training(
        learner, job.loop, job.work, identity, job.name, job.sink, job.stop_requested, world=job.world
    )
    averaged = learner.averaged
    assert isinstance(averaged, Autoencoder)
    averaged = averaged.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    averaged.measure_latents(to_tensor(rows.trained.images[:NUM_MEASURED]))
    if job.world.leads:
        with atomic_dir(job.out) as folder:
            averaged.save_pretrained(folder)
            forget_paths(folder)
            _write_beside(folder, job, result, rows, count_parameters(network), asdict(spec))
            _save_pairs(rows.held, averaged, folder / "preview.png")
    job.world.wait()
    return result


def train_denoiser(job: Job, spec: DenoiserJob) -> TrainingResult:
    """Trains a denoiser (pretraining or tuning) and writes the whole pipeline to job.out."""
    torch.manual_seed(job.loop.seed)
    if spec.start_from is not None:
        pipeline = load_pipeline(spec.start_from)
        set_resolution(pipeline, job.resolution)
    else:
        pipeline = _new_pipeline(spec, job.resolution).to(choose_device())
    pipeline.set_progress_bar_config(disable=True)
    network: UNet2DConditionModel = pipeline.unet
    if spec.adapters is not None:
        add_adapters(network, spec.adapters)
    autoencoder, encoders = latents_of(pipeline).eval(), captions_of(pipeline)
    multiple = autoencoder.factor * 2 ** (len(network.config.block_out_channels) - 1)  # type: ignore[attr-defined]
    buckets = bucket_sizes(job.resolution, multiple, spec.aspect_buckets)
    rows = list_rows(job.shards, pd.read_parquet(job.rows), buckets, spec.training.batch_size)
    text, null = encode_captions(rows.captions, encoders, spec.num_text_tokens, job.cache / "captions", job.world)
    moments = encode_moments(autoencoder, rows, job.cache / "moments", job.world)
    trained, held = (
        LatentRows([rows.keys[i] for i in index], moments.subset(index), text.subset(index), rows.bucket_N[index])
        for index in (np.flatnonzero(~rows.is_held_out), np.flatnonzero(rows.is_held_out))
    )
    learner = DenoiserLearner(
        network.train(), autoencoder, pipeline.scheduler, trained, held, null, spec.training, job.world
    )
    identity = fingerprint([job.name, asdict(spec), asdict(job.loop), rows.keys, rows.digests, rows.captions])

    def draw_sheet(unet: torch.nn.Module) -> Image.Image:
        """A sheet of the fixed prompts, each always with the same seed, so that sheets compare."""
        pipeline.unet = unet
        prompts = list(spec.prompts)
        pictures = draw(pipeline, prompts, list(range(len(prompts))), guidance_scale=spec.guidance_scale)
        return join_grid([np.asarray(p) for p in pictures], 8)

    def draw_samples(step: int) -> None:
        sheet = draw_sheet(learner.averaged)  # by all processes: the weights may lie on several
        if job.world.leads:
            job.picture_sink(step, sheet)

    result = run_training(
        learner,
        job.loop,
        job.work,
        identity,
        job.name,
        job.sink,
        job.stop_requested,
        draw_samples if spec.prompts else lambda step: None,
        job.world,
    )
    weights = gather_weights(learner.averaged)
    if job.world.leads:
        averaged: Any = UNet2DConditionModel.from_config(network.config)
        if spec.adapters is not None:
            add_adapters(averaged, spec.adapters)
        averaged.load_state_dict(weights)
        choose_attention(averaged)
        pipeline.unet = averaged.eval().to(choose_device())
        with atomic_dir(job.out) as folder:
            save_pipeline(pipeline, folder)
            _write_beside(folder, job, result, rows, count_parameters(network), asdict(spec))
            if spec.prompts:
                draw_sheet(averaged).save(folder / "preview.png")
    job.world.wait()
    return result


def _new_pipeline(spec: DenoiserJob, resolution: int) -> EmuPipeline:
    """A pipeline around a new denoiser, over the autoencoder and the text encoders there are."""
    assert spec.autoencoder is not None and spec.denoiser is not None
    hide_bars()
    autoencoder, encoders = Autoencoder.from_pretrained(spec.autoencoder), load_text_encoders(spec.text_encoder)
    channels = autoencoder.latent_mean.numel()
    return EmuPipeline(
        vae=autoencoder,
        unet=build_denoiser(spec.denoiser, channels, encoders.token_width, encoders.pooled_width),
        scheduler=build_scheduler(),
        **encoders.components(),
        resolution=resolution,
        num_text_tokens=spec.num_text_tokens,
    )


def _write_beside(
    folder: Path, job: Job, result: TrainingResult, rows: Rows | PictureRows, num_parameters: int, spec: dict[str, Any]
) -> None:
    """metrics.jsonl and meta.json, with nothing in them that depends on the clock or on where the project lies: a
    training that was interrupted, or made elsewhere, leaves the same bytes, and what was made from it stays valid."""
    log = read_log(job.work)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    meta = {
        "name": job.name,
        "resolution": job.resolution,
        "num_rows": len(rows.keys),
        "num_held_out": int(rows.is_held_out.sum()),
        "rows_per_bucket": rows.rows_per_bucket() if isinstance(rows, PictureRows) else None,
        "num_parameters": num_parameters,
        "device": choose_device().type,
        "half_precision": half_precision_pays(choose_device()),
        "result": {name: value for name, value in asdict(result).items() if name != "timings"},
        "loop": asdict(job.loop),
        "spec": _portable(spec, job.out),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))


def _portable(value: Any, folder: Path) -> Any:
    """`value` with the paths in it made relative to `folder`."""
    if isinstance(value, dict):
        return {name: _portable(part, folder) for name, part in value.items()}
    is_path = isinstance(value, Path) or (isinstance(value, str) and os.path.isabs(value))
    return os.path.relpath(value, folder) if is_path else value


@torch.no_grad()
def _save_pairs(rows: Rows, autoencoder: Autoencoder, path: Path) -> None:
    """Held-out pictures above, their reconstructions below, at 1:1."""
    images = rows.images[:16]
    x = to_tensor(images)
    y = to_images(autoencoder.decode(autoencoder.encode(x).mean))
    join_grid([*images, *y], len(images)).save(path)


def join_grid(images: list[np.ndarray], num_columns: int) -> Image.Image:
    """One picture of pictures (H, W, 3) of one size, line by line, blank where the last line ends early."""
    blanks = [np.full_like(images[0], 255)] * (-len(images) % num_columns)
    tiles = np.stack([*images, *blanks])
    lines = [np.concatenate(list(line), axis=1) for line in tiles.reshape(-1, num_columns, *images[0].shape)]
    return Image.fromarray(np.concatenate(lines, axis=0))
