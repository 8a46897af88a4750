"""The masked family's trainings as functions, from rows and a start to a finished model in its own folder
(training/identity.py): the tokenizer of pictures, then the transformer that draws its tokens.

They run in a child process (emu_dagster.training.child) and know nothing of what launched them.
"""

from typing import Any

import torch

from emu_models.checkpoints import hide_bars, load_pipeline, place
from emu_models.latent.trainings import Learning, train_network, train_on_pictures
from emu_models.masked.building import build_transformer
from emu_models.masked.jobs import MaskedJob, TokenizerJob
from emu_models.masked.learner import MaskedLearner
from emu_models.masked.pipeline import EmuMaskedPipeline
from emu_models.masked.tokenizer import PictureTokenizer, count_codes
from emu_models.masked.tokenizer_learner import TokenizerLearner
from emu_models.text import load_text_encoders
from emu_models.training.cache import to_tensor
from emu_models.training.loop import TrainingResult
from emu_models.training.rows import Rows
from emu_models.training.running import UNHEARD, Running

COUNTED_AT_ONCE = 16  # pictures whose codes are counted at a time; chosen here


def train_tokenizer(job: TokenizerJob, running: Running = UNHEARD) -> TrainingResult:
    """Train a tokenizer (latent.trainings.train_on_pictures). The result's metrics have codes_used and code_entropy of
    all pictures (tokenizer.count_codes) beside the last val_loss (L1) and val_psnr (dB) of held-out ones.
    """
    return train_on_pictures(job, PictureTokenizer, TokenizerLearner, _count_codes, running)


@torch.no_grad()
def _count_codes(tokenizer: PictureTokenizer, rows: Rows) -> dict[str, float]:
    pictures = to_tensor(rows.images[:]).split(COUNTED_AT_ONCE)
    tokens = [tokenizer.tokens_of(tokenizer.encode(some.to(tokenizer.device)).mean).cpu() for some in pictures]
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
