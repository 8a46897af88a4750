"""Toy trainings of the masked family for tests."""

from pathlib import Path
from typing import Any

from emu_models.latent.jobs import AutoencoderLossConfig, AutoencoderTrainingConfig
from emu_models.masked.jobs import MaskedJob, MaskedTrainingConfig, MaskedTransformerConfig, TokenizerJob
from emu_models.training.jobs import LoopConfig
from tests.toy_training import LOOP, places

SMALL = MaskedTransformerConfig(
    width=32, layers=2, heads=2, inner_width=64, outer_width=32, outer_heads=2, code_width=16
)
LEVELS = [5, 4]
LOSSES = AutoencoderLossConfig(0.0, 0.1, 0.5)


def tokenizer_job(corpus: tuple[Path, Path], folder: Path, loop: LoopConfig = LOOP) -> TokenizerJob:
    return TokenizerJob(
        **places("tokenizer", corpus, folder),
        loop=loop,
        network={"levels": LEVELS, "widths": [16, 32]},
        training=AutoencoderTrainingConfig(loop.num_steps, 4, loop.learning_rate, LOSSES, 0),
    )


def masked_job(
    corpus: tuple[Path, Path], folder: Path, tokenizer: Path | None, loop: LoopConfig = LOOP, **others: Any
) -> MaskedJob:
    """Return a job that trains a new transformer. others: fields with another value."""
    given: dict[str, Any] = {
        "tokenizer": tokenizer,
        "transformer": SMALL,
        "num_text_tokens": 8,
        "training": MaskedTrainingConfig(loop.num_steps, 4, loop.learning_rate, caption_dropout=0.2, seed=0),
        "prompts": ("a red square", "a blue square"),
        "guidance_scale": 2.0,
    }
    return MaskedJob(**places("masked", corpus, folder), loop=loop, **{**given, **others})
