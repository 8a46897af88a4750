"""The trainings of the masked family as jobs (emu_models/training/jobs.py), with all settings of its learners."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from emu_models.latent.jobs import AutoencoderTrainingConfig, CaptionedJob, DenoiserTrainingConfig
from emu_models.training.jobs import WEIGHTS, LoopJob

if TYPE_CHECKING:
    from emu_models.training.running import Running


@dataclass(frozen=True)
class MaskedTransformerConfig:
    """The network: diffusers' UVit2DModel. width: channels of `layers` transformer blocks with `heads` heads each,
    whose feed-forward layers have `inner_width` channels. outer_width: channels of the convolutional blocks before and
    after them, `blocks` each, with `outer_heads` heads. code_width: channels of a code's embedding. halved: whether the
    blocks see a grid of half the sides, for many tokens. Raises ValueError for values that do not fit together.
    """

    width: int
    layers: int
    heads: int
    inner_width: int
    outer_width: int
    outer_heads: int
    code_width: int
    blocks: int = 1
    halved: bool = False

    def __post_init__(self) -> None:
        for width, heads in (("width", "heads"), ("outer_width", "outer_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"transformer {width} {getattr(self, width)} must be a multiple of {heads} {getattr(self, heads)}"
                )


@dataclass(frozen=True, kw_only=True)
class MaskedTrainingConfig(DenoiserTrainingConfig):
    """How the transformer is trained; see DenoiserTrainingConfig. Tokens have no noise to offset."""

    noise_offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TokenizerJob(LoopJob):
    """A training of the pictures' tokenizer. start_from: a trained tokenizer's folder to continue from; without it,
    `network` (arguments of PictureTokenizer) is built. losses.kl_weight must be 0: latents have no noise."""

    network: dict[str, Any] | None = None
    start_from: Annotated[Path | None, WEIGHTS] = None
    training: AutoencoderTrainingConfig

    def run(self, running: "Running") -> dict[str, Any]:
        """Train; see `masked.trainings.train_tokenizer`."""
        from emu_models.masked.trainings import train_tokenizer

        return self.reported_result(train_tokenizer(self, running))


@dataclass(frozen=True, kw_only=True)
class MaskedJob(CaptionedJob):
    """A transformer's training. start_from: a folder of a trained EmuMaskedPipeline to continue from; without it,
    `transformer` is built for `tokenizer`, the folder of a trained tokenizer, and `text_encoder`. Raises ValueError if
    there is nothing to start from.
    """

    tokenizer: Annotated[Path | None, WEIGHTS] = None
    transformer: MaskedTransformerConfig | None = None
    training: MaskedTrainingConfig

    def __post_init__(self) -> None:
        if self.start_from is None and (self.tokenizer is None or self.transformer is None):
            raise ValueError(f"{self.name}: give start_from, or tokenizer and transformer")

    def run(self, running: "Running") -> dict[str, Any]:
        """Train; see `masked.trainings.train_masked`."""
        from emu_models.masked.trainings import train_masked

        return self.reported_result(train_masked(self, running))
