"""The masked family's trainings as functions, from rows and a start to a finished model in its own folder
(training/identity.py): the tokenizer of pictures, then the transformer that draws its tokens.

They run in a child process (emu_dagster.training.child) and know nothing of what launched them.
"""

from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from diffusers import UVit2DModel
from torch import Tensor

from emu_data.copies import Copies
from emu_data.files import atomic_dir, write_json
from emu_models.checkpoints import forget_paths, hide_bars, load_pipeline, place, save_pipeline
from emu_models.device import choose_device
from emu_models.drawing import encode_for_drawing
from emu_models.finishing import draw_sheet, read_finished, renew_preview, save_pairs, write_beside
from emu_models.latent.denoiser import count_parameters
from emu_models.latent.denoiser_learner import LatentRows
from emu_models.masked.building import build_transformer
from emu_models.masked.jobs import MaskedJob, TokenizerJob
from emu_models.masked.learner import MaskedLearner
from emu_models.masked.pipeline import EmuMaskedPipeline
from emu_models.masked.tokenizer import PictureTokenizer, count_codes
from emu_models.masked.tokenizer_learner import TokenizerLearner
from emu_models.text import TextFeatures, load_text_encoders
from emu_models.training.buckets import bucket_sizes
from emu_models.training.cache import encode_captions, encode_moments, to_tensor
from emu_models.training.distributed import gather_weights
from emu_models.training.identity import identify, open_folder
from emu_models.training.loop import TrainingResult, run_training
from emu_models.training.order import MAX_SHUFFLED
from emu_models.training.row_file import RowFile, open_rows
from emu_models.training.rows import PictureRows, Rows, load_rows
from emu_models.training.running import UNHEARD, Running
from emu_models.training.stored import CachedRows

NUM_MEASURED = 256  # pictures that determine a tokenizer's start, as for an autoencoder; chosen here
COUNTED_AT_ONCE = 16  # pictures whose codes are counted at a time; chosen here


def train_tokenizer(job: TokenizerJob, running: Running = UNHEARD) -> TrainingResult:
    """Train a tokenizer, unless that was done before, and return the result; the model is in `folder`/result.

    The result's metrics have codes_used and code_entropy of all pictures (tokenizer.count_codes) beside the last
    val_loss (L1) and val_psnr (dB) of held-out ones. Several processes share each batch; each has all pictures in
    memory.
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
        network = PictureTokenizer.from_pretrained(job.start_from)
    else:
        network = PictureTokenizer(**(job.network or {}))
        if network.shortcut_in is not None:
            network.start_from_principal_components(to_tensor(rows.trained.images[:NUM_MEASURED]))
    learner = TokenizerLearner(network, rows, job.training, running.world)
    result = run_training(learner, job.loop, folder, identity.name, job.name, running)
    averaged: Any = learner.averaged
    averaged = averaged.to("cpu", memory_format=torch.contiguous_format)
    result = replace(result, metrics={**result.metrics, **_count_codes(averaged, rows)})
    if running.world.leads:
        with atomic_dir(folder / "result") as partial:
            averaged.save_pretrained(partial)
            forget_paths(partial)
            write_beside(partial, job, identity, result, rows, count_parameters(network))
            save_pairs(rows.held, averaged, partial / "preview.png")
    running.world.wait()
    return result


@torch.no_grad()
def _count_codes(tokenizer: PictureTokenizer, rows: Rows) -> dict[str, float]:
    pictures = to_tensor(rows.images[:]).split(COUNTED_AT_ONCE)
    tokens = [tokenizer.tokens_of(tokenizer.encode(some).mean) for some in pictures]
    return count_codes(torch.cat(tokens), tokenizer.num_codes)


def train_masked(job: MaskedJob, running: Running = UNHEARD) -> TrainingResult:
    """Train a transformer (pretraining or tuning), unless that was done before, and return the result; the complete
    pipeline is in `folder`/result.

    If the training is finished, only its preview is drawn again, if its prompts or guidance have changed. Raises
    ValueError if start_from is another family's pipeline.
    """
    world = running.world
    file = open_rows(job.shards, job.rows, job.cache, world)
    identity = identify(job, file.hashes["pairs"])
    folder = open_folder(job.states, identity, world.leads)
    found = read_finished(running, folder)
    if found is not None:
        if world.leads:
            renew_preview(folder / "result", job)
        world.wait()
        return found
    torch.manual_seed(job.loop.seed)
    pipeline = _open_pipeline(job)
    num_parameters = count_parameters(pipeline.transformer)
    rows, trained, held, null = _read_rows(job, file, pipeline, running)
    # Before the training fills the GPU. Processes that share the weights must call them equally often, so they draw one
    # picture at a time, whatever memory each has left.
    encoded = encode_for_drawing(pipeline, list(job.prompts), 1 if world.size > 1 else None)
    network = pipeline.transformer.train()
    learner = MaskedLearner(network, pipeline.vae, None, trained, held, null, job.training, world)

    def draw_samples(step: int) -> None:
        pipeline.transformer = learner.averaged
        sheet = draw_sheet(pipeline, job, encoded)  # by all processes, since the weights may be sharded
        if world.leads:
            running.picture_sink(step, sheet)

    draws = draw_samples if job.prompts else lambda step: None
    result = run_training(learner, job.loop, folder, identity.name, job.name, running, draws)
    weights: dict[str, Tensor] = gather_weights(learner.averaged, world)
    if world.leads:
        averaged: Any = UVit2DModel.from_config(pipeline.transformer.config)
        averaged.load_state_dict(weights)
        pipeline.transformer = averaged.eval().to(choose_device())
        with atomic_dir(folder / "result") as partial:
            save_pipeline(pipeline, partial)
            write_beside(partial, job, identity, result, rows, num_parameters)
            if job.prompts:
                draw_sheet(pipeline, job).save(partial / "preview.png")
    world.wait()
    return result


def _open_pipeline(job: MaskedJob) -> Any:
    """Return the pipeline whose transformer learns: that of start_from, or a new one."""
    hide_bars()
    if job.start_from is not None:
        pipeline = load_pipeline(job.start_from)
        if not isinstance(pipeline, EmuMaskedPipeline):
            raise ValueError(
                f"{job.name}: {job.start_from} holds a {type(pipeline).__name__}; give an EmuMaskedPipeline"
            )
        pipeline.register_to_config(resolution=job.resolution)
    else:
        assert job.tokenizer is not None and job.transformer is not None  # as MaskedJob has checked
        tokenizer: Any = PictureTokenizer.from_pretrained(job.tokenizer)
        encoders = load_text_encoders(job.text_encoder)
        widths = encoders.token_width, encoders.pooled_width
        pipeline = EmuMaskedPipeline(
            vae=tokenizer,
            transformer=build_transformer(job.transformer, tokenizer.num_codes, *widths),
            **encoders.components(),
            resolution=job.resolution,
            num_text_tokens=job.num_text_tokens,
        )
        place(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _read_rows(
    job: MaskedJob, file: RowFile, pipeline: Any, running: Running
) -> tuple[PictureRows, LatentRows, LatentRows, TextFeatures]:
    """Encode what is not cached; return all rows, those to train on, those held out, and the null condition."""
    world, tokenizer = running.world, pipeline.vae.eval()
    multiple = tokenizer.factor * (2 if pipeline.transformer.config.downsample else 1)
    buckets = bucket_sizes(job.resolution, multiple, job.aspect_buckets)
    copies = Copies(job.local_copies or job.cache / "copies", int(job.local_copies_gb * 1e9))
    rows = PictureRows(job.shards, file, buckets, job.training.batch_size, world, copies, job.hold_out)
    text, null = encode_captions(rows, pipeline.text_encoders, job.num_text_tokens, job.cache / "captions", world)
    moments = encode_moments(tokenizer, rows, job.cache / "moments", world)
    if world.leads:
        caches = [found.folder.name for found in (text, moments) if isinstance(found, CachedRows)]
        identity = identify(job, file.hashes["pairs"]).name
        write_json(job.states / identity / "caches.json", sorted([file.name, *caches]))
    in_windows = len(rows.trained) > MAX_SHUFFLED
    trained, held = (LatentRows(rows.keys, moments, text, part, in_windows) for part in (rows.trained, rows.held_out))
    return rows, trained, held, null
