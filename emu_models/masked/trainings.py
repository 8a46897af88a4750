"""The masked family's trainings as functions, from rows and a start to a finished model in its own folder
(training/identity.py): the tokenizer of pictures, then the transformer that draws its tokens.

They run in a child process (emu_dagster.training.child) and know nothing of what launched them.
"""

from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from emu_data.files import atomic_dir, write_json
from emu_models.checkpoints import forget_paths, hide_bars, load_pipeline, place
from emu_models.finishing import read_finished, save_pairs, write_beside
from emu_models.latent.denoiser import count_parameters
from emu_models.latent.trainings import Learning, train_network
from emu_models.masked.building import build_transformer
from emu_models.masked.jobs import MaskedJob, TokenizerJob
from emu_models.masked.learner import MaskedLearner
from emu_models.masked.pipeline import EmuMaskedPipeline
from emu_models.masked.tokenizer import PictureTokenizer, count_codes
from emu_models.masked.tokenizer_learner import TokenizerLearner
from emu_models.text import load_text_encoders
from emu_models.training.cache import to_tensor
from emu_models.training.identity import identify, open_folder
from emu_models.training.loop import TrainingResult, run_training
from emu_models.training.row_file import open_rows
from emu_models.training.rows import Rows, load_rows
from emu_models.training.running import UNHEARD, Running

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
    pipeline is in `folder`/result (latent.trainings.train_network). Raises ValueError if start_from is another family's
    pipeline.
    """
    return train_network(job, lambda: _begin(job), running)


def _begin(job: MaskedJob) -> Learning:
    """Return what a training starts from."""
    pipeline = _open_pipeline(job)
    multiple = 2 if pipeline.transformer.config.downsample else 1
    return Learning(pipeline, "transformer", pipeline.vae, multiple, None, MaskedLearner)


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

    return pipeline
