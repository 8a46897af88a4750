"""The latent family's trainings as functions, from rows and a start to a finished model in its own folder
(identity.py).

They run in a child process (emu_dagster.training.child) and know nothing of what launched them. A model folder is in
diffusers' layout (config.json and safetensors), with meta.json, metrics.jsonl and preview.png.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from emu_data.copies import Copies
from emu_data.files import atomic_dir, link_or_copy, write_json
from emu_models.device import choose_device, half_precision_pays, lend, precision_on
from emu_models.diffusion.schedule import build_scheduler
from emu_models.flow.learner import FlowLearner
from emu_models.flow.network import position_multiple
from emu_models.flow.pipeline import layout_of
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.autoencoder_learner import AutoencoderLearner
from emu_models.latent.building import build_denoiser
from emu_models.latent.checkpoints import (
    add_adapters,
    captions_of,
    denoiser_of,
    forget_paths,
    hide_bars,
    latents_of,
    load_pipeline,
    place,
    save_pipeline,
    set_denoiser,
    set_resolution,
)
from emu_models.latent.denoiser import choose_attention, count_parameters
from emu_models.latent.denoiser_learner import DenoiserLearner, LatentRows
from emu_models.latent.drawing import draw_encoded, encode_for_drawing
from emu_models.latent.jobs import AutoencoderJob, DenoiserJob
from emu_models.latent.pipeline import EmuPipeline
from emu_models.text import TextFeatures, load_text_encoders
from emu_models.training.buckets import bucket_sizes
from emu_models.training.cache import encode_captions, encode_moments, to_images, to_tensor
from emu_models.training.distributed import gather_weights
from emu_models.training.identity import Identity, identify, open_folder, read_result, settings_of, weights_of
from emu_models.training.loop import TrainingResult, read_log, run_training
from emu_models.training.order import MAX_SHUFFLED
from emu_models.training.row_file import RowFile, open_rows
from emu_models.training.rows import PictureRows, Rows, load_rows
from emu_models.training.running import UNHEARD, Running
from emu_models.training.stored import CachedRows

NUM_MEASURED = 256  # pictures that determine an autoencoder's start and its latents' statistics; chosen here


def train_autoencoder(job: AutoencoderJob, running: Running = UNHEARD) -> TrainingResult:
    """Train an autoencoder, unless that was done before, and return the result; the model is in `folder`/result.

    The training continues from its own state (identity.py). Several processes share each batch; each has all pictures
    in memory.
    """
    file = open_rows(job.shards, job.rows, job.cache, running.world)
    identity = identify(job, file.hashes["pictures"])  # captions do not matter
    folder = open_folder(job.states, identity, running.world.leads)
    found = _read_finished(running, folder)
    if found is not None:
        return found
    if running.world.leads:
        write_json(folder / "caches.json", [file.name])
    rows = load_rows(job.shards, pd.read_parquet(job.rows), job.resolution)
    torch.manual_seed(job.loop.seed)
    if job.start_from is not None:
        network = Autoencoder.from_pretrained(job.start_from)
    else:
        network = Autoencoder(**(job.network or {}))
        if network.shortcut_in is not None:
            network.start_from_principal_components(to_tensor(rows.trained.images[:NUM_MEASURED]))
    learner = AutoencoderLearner(network, rows, job.training, running.world)
    result = run_training(learner, job.loop, folder, identity.name, job.name, running)
    averaged = learner.averaged
    assert isinstance(averaged, Autoencoder)
    averaged = averaged.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    averaged.measure_latents(to_tensor(rows.trained.images[:NUM_MEASURED]))
    averaged = averaged.cpu()
    if running.world.leads:
        with atomic_dir(folder / "result") as partial:
            averaged.save_pretrained(partial)
            forget_paths(partial)
            _write_beside(partial, job, identity, result, rows, count_parameters(network))
            _save_pairs(rows.held, averaged, partial / "preview.png")
    running.world.wait()
    return result


def train_denoiser(job: DenoiserJob, running: Running = UNHEARD) -> TrainingResult:
    """Train a denoiser (pretraining or tuning), unless that was done before, and return the result; the complete
    pipeline is in `folder`/result.

    If the training is finished, only its preview is drawn again, if its prompts or guidance have changed.
    """
    file = open_rows(job.shards, job.rows, job.cache, running.world)
    identity = identify(job, file.hashes["pairs"])
    folder = open_folder(job.states, identity, running.world.leads)
    found = _read_finished(running, folder)
    if found is not None:
        if running.world.leads:
            _renew_preview(folder / "result", job)
        running.world.wait()
        return found
    torch.manual_seed(job.loop.seed)
    if job.start_from is not None:
        pipeline = load_pipeline(job.start_from)
        set_resolution(pipeline, job.resolution)
        if job.noise_shift is not None:
            if not isinstance(pipeline, EmuPipeline):
                raise ValueError(
                    f"{job.name}.noise_shift is for models of this project; {job.start_from} has a schedule"
                )
            pipeline.scheduler = build_scheduler(job.noise_shift)
    else:
        pipeline = place(_new_pipeline(job))
    pipeline.set_progress_bar_config(disable=True)
    if job.adapters is not None:
        add_adapters(denoiser_of(pipeline), job.adapters)
    num_parameters = count_parameters(denoiser_of(pipeline))
    rows, trained, held, null = _read_rows(job, file, pipeline, folder, running)
    # encoders of every batch stay on the device
    encoders, device = captions_of(pipeline).models if job.encode == "on_the_fly" else (), choose_device()
    with lend(device, *encoders, dtype=precision_on(device)):
        result, weights = _learn(job, pipeline, trained, held, null, folder, identity, running)
    if running.world.leads:
        averaged = _new_network(pipeline, job)
        averaged.load_state_dict(weights)
        set_denoiser(pipeline, averaged.eval().to(choose_device()))
        with atomic_dir(folder / "result") as partial:
            save_pipeline(pipeline, partial)
            _write_beside(partial, job, identity, result, rows, num_parameters)
            if job.prompts:
                _draw_sheet(pipeline, job).save(partial / "preview.png")
    running.world.wait()
    return result


def _read_rows(
    job: DenoiserJob, file: RowFile, pipeline: Any, folder: Path, running: Running
) -> tuple[PictureRows, LatentRows, LatentRows, TextFeatures]:
    """Encode what is not cached; return all rows, those to train on, those held out, and the null condition."""
    autoencoder, encoders = latents_of(pipeline).eval(), captions_of(pipeline)
    multiple = autoencoder.factor * _position_multiple(pipeline)
    buckets = bucket_sizes(job.resolution, multiple, job.aspect_buckets)
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


def _position_multiple(pipeline: Any) -> int:
    """Return what the sides of the latents must be multiples of."""
    network = denoiser_of(pipeline)
    return position_multiple(network) if layout_of(pipeline) else 2 ** (len(network.config.block_out_channels) - 1)


def _new_network(pipeline: Any, job: DenoiserJob) -> Any:
    """Return another network like the pipeline's denoiser, without its weights."""
    network = denoiser_of(pipeline)
    # one that is shared between processes has a class of torch's, derived from its own
    kind: Any = next(cls for cls in type(network).__mro__ if cls.__module__.startswith("diffusers."))
    averaged = kind.from_config(network.config)
    if job.adapters is not None:
        add_adapters(averaged, job.adapters)
    if layout_of(pipeline) is None:
        choose_attention(averaged)
    return averaged


def _learn(
    job: DenoiserJob,
    pipeline: Any,
    trained: LatentRows,
    held: LatentRows,
    null: TextFeatures,
    folder: Path,
    identity: Identity,
    running: Running,
) -> tuple[TrainingResult, dict[str, Tensor]]:
    """Train the pipeline's denoiser and return its averaged weights, whole, on the CPU. Afterwards nothing of the
    training is in the device's memory but one network, which the caller replaces."""
    # Before the training fills the GPU. Processes that share the weights must call them equally often, so they draw one
    # picture at a time, whatever memory each has left.
    encoded = encode_for_drawing(pipeline, list(job.prompts), 1 if running.world.size > 1 else None)
    learner = (FlowLearner if layout_of(pipeline) else DenoiserLearner)(
        denoiser_of(pipeline).train(),
        latents_of(pipeline),
        pipeline.scheduler,
        trained,
        held,
        null,
        job.training,
        running.world,
    )

    def draw_samples(step: int) -> None:
        set_denoiser(pipeline, learner.averaged)
        sheet = _draw_sheet(pipeline, job, encoded)  # by all processes, since the weights may be sharded
        if running.world.leads:
            running.picture_sink(step, sheet)

    draws = draw_samples if job.prompts else lambda step: None
    result = run_training(learner, job.loop, folder, identity.name, job.name, running, draws)
    return result, gather_weights(learner.averaged, running.world)


def _read_finished(running: Running, folder: Path) -> TrainingResult | None:
    found = read_result(folder)
    running.world.wait()  # all processes look before one of them can finish it
    return found


def _draw_sheet(pipeline: Any, job: DenoiserJob, encoded: list[dict[str, Any]] | None = None) -> Image.Image:
    """Draw a sheet of the fixed prompts, each always with the same seed, so that sheets can be compared. encoded: the
    prompts, if they were encoded before."""
    encoded = encoded or encode_for_drawing(pipeline, list(job.prompts))
    asked = {"guidance_scale": job.guidance_scale, "resolution": job.resolution}
    pictures = draw_encoded(pipeline, encoded, list(range(len(job.prompts))), **asked)
    return join_grid([np.asarray(p) for p in pictures], 8)


def _describe_preview(job: AutoencoderJob | DenoiserJob) -> dict[str, Any] | None:
    if isinstance(job, AutoencoderJob) or not job.prompts:
        return None
    return {"prompts": list(job.prompts), "guidance_scale": job.guidance_scale}


def _renew_preview(result: Path, job: DenoiserJob) -> None:
    """Draw the preview of a finished model again if prompts or guidance have changed; the weights stay."""
    meta = json.loads((result / "meta.json").read_text())
    if meta["preview"] == _describe_preview(job):
        return
    pipeline = load_pipeline(result) if job.prompts else None
    with atomic_dir(result) as partial:
        left_out = shutil.ignore_patterns("preview.png", "meta.json")
        shutil.copytree(result, partial, ignore=left_out, copy_function=link_or_copy, dirs_exist_ok=True)
        (partial / "meta.json").write_text(json.dumps({**meta, "preview": _describe_preview(job)}, indent=2))
        if pipeline is not None:
            pipeline.set_progress_bar_config(disable=True)
            _draw_sheet(pipeline, job).save(partial / "preview.png")


def _new_pipeline(job: DenoiserJob) -> EmuPipeline:
    """Return a pipeline with a new denoiser and the job's autoencoder and text encoders."""
    assert job.autoencoder is not None and job.denoiser is not None
    hide_bars()
    autoencoder, encoders = Autoencoder.from_pretrained(job.autoencoder), load_text_encoders(job.text_encoder)
    channels = autoencoder.latent_mean.numel()
    return EmuPipeline(
        vae=autoencoder,
        unet=build_denoiser(job.denoiser, channels, encoders.token_width, encoders.pooled_width),
        scheduler=build_scheduler(job.noise_shift or 1.0),
        **encoders.components(),
        resolution=job.resolution,
        num_text_tokens=job.num_text_tokens,
    )


def _write_beside(
    folder: Path,
    job: AutoencoderJob | DenoiserJob,
    identity: Identity,
    result: TrainingResult,
    rows: Rows | PictureRows,
    num_parameters: int,
) -> None:
    """Write metrics.jsonl and meta.json. They do not depend on the clock, on the project's location or on how the model
    was trained, so that an interrupted training, or one done elsewhere, leaves the same bytes, and assets made from it
    stay valid."""
    log = read_log(result.folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if isinstance(job, DenoiserJob) and job.stop_found_in is not None:
        shutil.copyfile(job.stop_found_in / "metrics.jsonl", folder / "search.jsonl")
    settings = settings_of(job)
    weights = {name: [path.name, identity.contents[name]] for name, path in weights_of(job).items()}
    meta = {
        "name": job.name,
        "identity": identity.name,
        "resolution": job.resolution,
        "num_rows": len(rows.keys),
        "num_held_out": len(rows.held_out) if isinstance(rows, PictureRows) else int(rows.is_held_out.sum()),
        "rows_per_bucket": rows.rows_per_bucket() if isinstance(rows, PictureRows) else None,
        "num_parameters": num_parameters,
        "device": choose_device().type,
        "half_precision": half_precision_pays(choose_device()),
        "result": {name: value for name, value in asdict(result).items() if name not in ("timings", "folder")},
        "loop": settings["loop"],
        "spec": settings["spec"],
        "weights": weights,
        "preview": _describe_preview(job),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))


@torch.no_grad()
def _save_pairs(rows: Rows, autoencoder: Autoencoder, path: Path) -> None:
    """Save held-out pictures above their reconstructions, at 1:1."""
    images = rows.images[:16]
    x = to_tensor(images)
    y = to_images(autoencoder.decode(autoencoder.encode(x).mean))
    join_grid([*images, *y], len(images)).save(path)


def join_grid(images: list[np.ndarray], num_columns: int) -> Image.Image:
    """Join pictures (H, W, 3) of one size into one, row by row; the rest of the last row is white."""
    blanks = [np.full_like(images[0], 255)] * (-len(images) % num_columns)
    tiles = np.stack([*images, *blanks])
    lines = [np.concatenate(list(line), axis=1) for line in tiles.reshape(-1, num_columns, *images[0].shape)]
    return Image.fromarray(np.concatenate(lines, axis=0))
