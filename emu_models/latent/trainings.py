"""The latent family's trainings as functions, from rows and a start to a finished model in its own folder
(identity.py).

They run in a child process (emu_dagster.training.child) and know nothing of what launched them. A model folder is in
diffusers' layout (config.json and safetensors), with meta.json, metrics.jsonl and preview.png.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from emu_data.copies import Copies
from emu_data.files import atomic_dir, write_json
from emu_models.checkpoints import (
    AnyAutoencoder,
    add_adapters,
    captions_of,
    denoiser_of,
    forget_paths,
    hide_bars,
    is_flow,
    latents_of,
    load_pipeline,
    place,
    save_pipeline,
    set_resolution,
)
from emu_models.device import choose_device, lend, precision_on
from emu_models.diffusion.schedule import build_scheduler
from emu_models.drawing import encode_for_drawing
from emu_models.finishing import draw_sheet, read_finished, renew_preview, save_pairs, write_beside
from emu_models.flow.building import build_flow_scheduler, build_transformer
from emu_models.flow.learner import FlowLearner
from emu_models.flow.network import position_multiple
from emu_models.flow.pipeline import EmuFlowPipeline
from emu_models.folders import inspect_tunable
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.autoencoder_learner import AutoencoderLearner
from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import choose_attention, count_parameters, grid_multiple
from emu_models.latent.denoiser_learner import DenoiserLearner, LatentRows
from emu_models.latent.jobs import Adapters, AutoencoderJob, CaptionedJob, DenoiserJob
from emu_models.latent.pipeline import EmuPipeline
from emu_models.text import TextFeatures, load_text_encoders
from emu_models.text_pipeline import TextPipeline
from emu_models.training.buckets import bucket_sizes
from emu_models.training.cache import encode_captions, encode_moments, to_tensor
from emu_models.training.distributed import gather_weights
from emu_models.training.identity import Identity, identify, open_folder
from emu_models.training.loop import TrainingResult, run_training
from emu_models.training.order import MAX_SHUFFLED
from emu_models.training.row_file import RowFile, open_rows
from emu_models.training.rows import PictureRows, Rows, load_rows
from emu_models.training.running import UNHEARD, Running
from emu_models.training.stored import CachedRows

Measure = Callable[[Any, Rows], dict[str, float]]
NUM_MEASURED = 256  # pictures that determine an autoencoder's start and its latents' statistics; chosen here


def train_autoencoder(job: AutoencoderJob, running: Running = UNHEARD) -> TrainingResult:
    """Train an autoencoder, and measure the statistics of its latents; see `train_on_pictures`."""

    def measure(averaged: Any, rows: Rows) -> dict[str, float]:
        averaged.measure_latents(to_tensor(rows.trained.images[:NUM_MEASURED]))
        return {}

    return train_on_pictures(job, Autoencoder, AutoencoderLearner, measure, running)


def train_on_pictures(
    job: Any, kind: type[Autoencoder], learner: Callable[..., Any], measure: Measure, running: Running
) -> TrainingResult:
    """Train a network between pictures and latents, unless that was done before, and return the result; the model is in
    `folder`/result.

    The training continues from its own state (identity.py). Several processes share each batch; each has all pictures
    in memory. job: an AutoencoderJob, or one with the same fields. kind: the network's class. learner: takes what
    AutoencoderLearner takes. measure: called with the averaged network, on its device, and all rows; what it returns is
    added to the result's metrics.
    """
    file = open_rows(job.shards, job.rows, job.cache, running.world)
    identity = identify(job, file.hashes["pictures"])  # captions do not matter
    folder = open_folder(job.states, identity, running.world.leads)
    found = read_finished(running, folder)
    if found is not None:
        return found
    if running.world.leads:
        write_json(folder / "caches.json", [file.name])
    rows = load_rows(job.shards, pd.read_parquet(job.rows), job.resolution)
    torch.manual_seed(job.loop.seed)
    if job.start_from is not None:
        network = kind.from_pretrained(job.start_from)
    else:
        network = kind(**(job.network or {}))
        if network.shortcut_in is not None:
            network.start_from_principal_components(to_tensor(rows.trained.images[:NUM_MEASURED]))
    learns = learner(network, rows, job.training, running.world)
    result = run_training(learns, job.loop, folder, identity.name, job.name, running)
    averaged: Any = learns.averaged.to(memory_format=torch.contiguous_format)
    result = replace(result, metrics={**result.metrics, **measure(averaged, rows)})
    averaged = averaged.cpu()
    if running.world.leads:
        with atomic_dir(folder / "result") as partial:
            averaged.save_pretrained(partial)
            forget_paths(partial)
            write_beside(partial, job, identity, result, rows, count_parameters(network))
            save_pairs(rows.held, averaged, partial / "preview.png")
    running.world.wait()
    return result


@dataclass(frozen=True)
class Learning:
    """What a training changes of a pipeline, and how. pipeline: placed on the device. part: the name of its component
    that learns. latents: what turns pictures into what that network draws, and `multiple` what the sides of these must
    be multiples of. scheduler: of its noise. learner: takes what DenoiserLearner takes. adapters: those of the network,
    if only they learn.
    """

    pipeline: Any
    part: str
    latents: AnyAutoencoder
    multiple: int
    scheduler: Any
    learner: Callable[..., DenoiserLearner]
    adapters: Adapters | None = None

    @property
    def network(self) -> Any:
        """The network that learns."""
        return getattr(self.pipeline, self.part)


def train_denoiser(job: DenoiserJob, running: Running = UNHEARD) -> TrainingResult:
    """Train a denoiser (pretraining or tuning), unless that was done before, and return the result; the complete
    pipeline is in `folder`/result (`train_network`)."""
    return train_network(job, lambda: _begin(job), running)


def train_network(job: CaptionedJob, begin: Callable[[], Learning], running: Running = UNHEARD) -> TrainingResult:
    """Train a network of a pipeline, unless that was done before, and return the result; the complete pipeline is in
    `folder`/result. begin: makes what the training starts from; it is called only if there is something to train, after
    torch's generator was seeded.

    If the training is finished, only its preview is drawn again, if its prompts or guidance have changed.
    """
    file = open_rows(job.shards, job.rows, job.cache, running.world)
    identity = identify(job, file.hashes["pairs"])
    folder = open_folder(job.states, identity, running.world.leads)
    found = read_finished(running, folder)
    if found is not None:
        if running.world.leads:
            renew_preview(folder / "result", job)
        running.world.wait()
        return found
    torch.manual_seed(job.loop.seed)
    learning = begin()
    pipeline = learning.pipeline
    pipeline.set_progress_bar_config(disable=True)
    num_parameters = count_parameters(learning.network)
    rows, trained, held, null = _read_rows(job, file, learning, folder, running)
    # encoders of every batch stay on the device
    encoders, device = captions_of(pipeline).models if job.encode == "on_the_fly" else (), choose_device()
    with lend(device, *encoders, dtype=precision_on(device)):
        result, weights = _learn(job, learning, trained, held, null, folder, identity, running)
    if running.world.leads:
        averaged = _new_network(learning)
        averaged.load_state_dict(weights)
        setattr(pipeline, learning.part, averaged.eval().to(choose_device()))
        with atomic_dir(folder / "result") as partial:
            save_pipeline(pipeline, partial)
            write_beside(partial, job, identity, result, rows, num_parameters)
            if job.stop_found_in is not None:
                shutil.copyfile(job.stop_found_in / "metrics.jsonl", partial / "search.jsonl")
            if job.prompts:
                draw_sheet(pipeline, job).save(partial / "preview.png")
    running.world.wait()
    return result


def _begin(job: DenoiserJob) -> Learning:
    """Return what a denoiser's training starts from."""
    if job.start_from is not None:
        inspect_tunable(job.start_from)
        pipeline = load_pipeline(job.start_from)
        set_resolution(pipeline, job.resolution)
        if job.noise_shift is not None:
            if not isinstance(pipeline, TextPipeline):
                raise ValueError(
                    f"{job.name}.noise_shift is for models of this project; {job.start_from} has a schedule"
                )
            pipeline.scheduler = (build_flow_scheduler if is_flow(pipeline) else build_scheduler)(job.noise_shift)
    else:
        pipeline = place(_new_pipeline(job))
    network, part = denoiser_of(pipeline), "transformer" if is_flow(pipeline) else "unet"
    if job.adapters is not None:
        add_adapters(network, job.adapters)
    multiple = position_multiple(network) if is_flow(pipeline) else grid_multiple(network)
    learner = FlowLearner if is_flow(pipeline) else DenoiserLearner
    return Learning(pipeline, part, latents_of(pipeline), multiple, pipeline.scheduler, learner, job.adapters)


def _read_rows(
    job: CaptionedJob, file: RowFile, learning: Learning, folder: Path, running: Running
) -> tuple[PictureRows, LatentRows, LatentRows, TextFeatures]:
    """Encode what is not cached; return all rows, those to train on, those held out, and the null condition."""
    autoencoder, encoders = learning.latents.eval(), captions_of(learning.pipeline)
    buckets = bucket_sizes(job.resolution, autoencoder.factor * learning.multiple, job.aspect_buckets)
    copies = Copies(job.local_copies or job.cache / "copies", int(job.local_copies_gb * 1e9))
    rows = PictureRows(job.shards, file, buckets, job.training.batch_size, running.world, copies, job.hold_out)
    is_live = job.encode == "on_the_fly"
    captions, pictures = (None if is_live else job.cache / kind for kind in ("captions", "moments"))
    text, null = encode_captions(rows, encoders, job.num_text_tokens, captions, running.world)
    moments = encode_moments(autoencoder, rows, pictures, running.world)
    if running.world.leads:
        caches = [found.folder.name for found in (text, moments) if isinstance(found, CachedRows)]
        write_json(folder / "caches.json", sorted([file.name, *caches]))
    in_windows = is_live or len(rows.trained) > MAX_SHUFFLED
    trained, held = (
        LatentRows(rows.keys, moments, text, part, in_windows, rows.sizes_of) for part in (rows.trained, rows.held_out)
    )
    return rows, trained, held, null


def _new_network(learning: Learning) -> Any:
    """Return another network like the one that learns, without its weights."""
    network = learning.network
    # one that is shared between processes has a class of torch's, derived from its own
    kind: Any = next(cls for cls in type(network).__mro__ if cls.__module__.startswith("diffusers."))
    averaged = kind.from_config(network.config)
    if learning.adapters is not None:
        add_adapters(averaged, learning.adapters)
    if isinstance(averaged, UNet2DConditionModel):
        choose_attention(averaged)
    return averaged


def _learn(
    job: CaptionedJob,
    learning: Learning,
    trained: LatentRows,
    held: LatentRows,
    null: TextFeatures,
    folder: Path,
    identity: Identity,
    running: Running,
) -> tuple[TrainingResult, dict[str, Tensor]]:
    """Train the network and return its averaged weights, whole, on the CPU. Afterwards nothing of the training is in
    the device's memory but one network, which the caller replaces."""
    # Before the training fills the GPU. Processes that share the weights must call them equally often, so they draw one
    # picture at a time, whatever memory each has left.
    pipeline = learning.pipeline
    encoded = encode_for_drawing(pipeline, list(job.prompts), 1 if running.world.size > 1 else None)
    learner = learning.learner(
        learning.network.train(),
        learning.latents,
        learning.scheduler,
        trained,
        held,
        null,
        job.training,
        running.world,
    )

    def draw_samples(step: int) -> None:
        setattr(pipeline, learning.part, learner.averaged)
        sheet = draw_sheet(pipeline, job, encoded)  # by all processes, since the weights may be sharded
        if running.world.leads:
            running.picture_sink(step, sheet)

    draws = draw_samples if job.prompts else lambda step: None
    result = run_training(learner, job.loop, folder, identity.name, job.name, running, draws)
    return result, gather_weights(learner.averaged, running.world)


def _new_pipeline(job: DenoiserJob) -> EmuPipeline | EmuFlowPipeline:
    """Return a pipeline with a new network and the job's autoencoder, if it has one, and text encoders."""
    hide_bars()
    encoders = load_text_encoders(job.text_encoder)
    autoencoder = None if job.autoencoder is None else Autoencoder.from_pretrained(job.autoencoder)
    channels = None if autoencoder is None else autoencoder.latent_mean.numel()
    widths = encoders.token_width, encoders.pooled_width
    settings: dict[str, Any] = {
        "resolution": job.resolution,
        "num_text_tokens": job.num_text_tokens,
        **encoders.components(),
    }
    if job.transformer is not None:
        network = build_transformer(job.transformer, channels, *widths)
        schedule = build_flow_scheduler(job.noise_shift or 1.0)
        return EmuFlowPipeline(vae=autoencoder, transformer=network, scheduler=schedule, **settings)
    assert channels is not None and job.denoiser is not None
    network = build_denoiser(job.denoiser, channels, *widths)
    return EmuPipeline(vae=autoencoder, unet=network, scheduler=build_scheduler(job.noise_shift or 1.0), **settings)
