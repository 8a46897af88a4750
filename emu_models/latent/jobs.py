"""The trainings of the latent family as jobs (emu_models/training/jobs.py), with all settings of its learners."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from emu_models.flow.jobs import TransformerConfig
from emu_models.training.jobs import CONTENTS, HOW, WEIGHTS, LoopJob, PipelineJob

if TYPE_CHECKING:
    from emu_models.training.running import Running

Middle = Literal["full", "joint"]
Encoding = Literal["cached", "on_the_fly"]


@dataclass(frozen=True)
class PerceptualConfig:
    """The perceptual loss. kind: "none", "encoder" (path: a folder in open_clip's layout) or "lpips" (path:
    torchvision's VGG-16 weights). weight: of the perceptual distance relative to the L1 on values in [-1, 1]. Raises
    ValueError if the path is missing or the weight negative.
    """

    kind: Literal["none", "encoder", "lpips"] = "none"
    path: Annotated[str | None, WEIGHTS] = None
    weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind != "none" and not self.path:
            raise ValueError(f"perceptual.path is missing: kind {self.kind!r} needs the path of its weights")
        if self.weight < 0:
            raise ValueError(f"perceptual.weight is {self.weight}; it must be 0 or more")

    @property
    def is_on(self) -> bool:
        """Whether the distance is part of the loss."""
        return self.kind != "none" and self.weight > 0


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the autoencoder's losses. kl_weight: of the KL in nats per picture relative to the L1 summed over its
    values (CompVis: 1e-6). adversarial_weight: at the end of a linear ramp. adversarial_start: where the ramp begins,
    0..1 of all steps.
    """

    kl_weight: float
    adversarial_weight: float
    adversarial_start: float
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)


@dataclass(frozen=True)
class AutoencoderTrainingConfig:
    """How the autoencoder is trained. num_steps: optimiser steps, of batch_size pictures each, over all processes;
    learning_rate: at its peak; seed: of the random draws. micro_batch_size: pictures that a process computes at a time,
    as for a denoiser."""

    num_steps: int
    batch_size: int
    learning_rate: float
    losses: AutoencoderLossConfig
    seed: int
    micro_batch_size: Annotated[int | None, HOW] = None


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoiser's network. widths: channels per level, the finest first; attention: whether a level attends to
    itself and to the text.

    middle: "full" for a transformer block at the smallest grid, "joint" for one attention over positions and text
    together, with which a small network's step takes a third less time (docs/log.md, 2026-11-23).
    cross_attention_width: channels to which token features are projected before attention; None to leave them.
    head_width: channels per attention head. size_conditioning: the network is also told how large the original picture
    was and what was cropped away. Raises ValueError for values that do not fit together.
    """

    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    layers_per_level: int
    middle: Middle = "full"
    cross_attention_width: int | None = None
    head_width: int = 64
    size_conditioning: bool = False

    def __post_init__(self) -> None:
        for name in ("widths", "attention"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.widths) != len(self.attention):
            raise ValueError(f"denoiser has {len(self.widths)} widths but {len(self.attention)} attention flags")
        if self.widths[-1] % self.head_width:
            raise ValueError(
                f"denoiser's last width {self.widths[-1]} must be a multiple of head_width {self.head_width}, as its "
                "middle block has attention"
            )
        if self.middle not in get_args(Middle):
            raise ValueError(f"denoiser middle is {self.middle!r}; it must be one of {', '.join(get_args(Middle))}")


@dataclass(frozen=True)
class DenoiserTrainingConfig:
    """How the denoiser is trained. noise_offset: 0.02 in the last pretraining, 0.1 in tuning, otherwise 0 (paper).
    caption_dropout: 0..1, the probability that a caption is replaced by the empty one.

    batch_size: rows per optimiser step, over all processes. micro_batch_size: rows that a process computes at a time,
    adding up their gradients, if its share does not fit in memory; None for the whole share at once.
    gradient_checkpointing: blocks keep only their inputs and are recomputed in the backward pass, which takes less
    memory and more time for the same numbers. compile: see training/compiling.py.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    noise_offset: float
    caption_dropout: float
    seed: int
    micro_batch_size: Annotated[int | None, HOW] = None
    gradient_checkpointing: Annotated[bool, HOW] = False
    compile: Annotated[bool, HOW] = False


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters: for the U-Net's layers whose names end in one of target_modules, a product of two matrices of
    rank `rank` is learnt, scaled by alpha / rank; all other weights are frozen."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AutoencoderJob(LoopJob):
    """An autoencoder's training. start_from: a trained autoencoder's folder to continue from; without it, `network`
    (arguments of Autoencoder) is built."""

    network: dict[str, Any] | None = None
    start_from: Annotated[Path | None, WEIGHTS] = None
    training: AutoencoderTrainingConfig

    def run(self, running: "Running") -> dict[str, Any]:
        """Train; see `latent.trainings.train_autoencoder`."""
        from emu_models.latent.trainings import train_autoencoder

        return self.reported_result(train_autoencoder(self, running))


@dataclass(frozen=True, kw_only=True)
class CaptionedJob(PipelineJob):
    """A training of a network that draws from captions. start_from: a folder of a trained pipeline to continue from;
    without it, text_encoder names the encoders of a new one (None: the packaged one).

    prompts: of the preview; without prompts there is none. aspect_buckets: number of picture shapes from tall to wide
    (buckets.py); 1 crops all pictures to squares. encode: pictures and captions once, into a cache that every step
    reads, or whenever a step needs them, in an order that reads a shard's pictures together (order.py). local_copies: a
    folder on each machine's own disk for copies of remote shards, by default in `cache`; local_copies_gb: its size.

    hold_out: whether some rows are kept for validation. stop_found_in: the folder of the training with held-out rows
    whose last step is loop.stop_after; its curves become search.jsonl beside this model's own.
    """

    start_from: Annotated[Path | None, WEIGHTS] = None
    text_encoder: Annotated[str | list[str] | None, CONTENTS] = None
    num_text_tokens: int
    training: DenoiserTrainingConfig
    aspect_buckets: int = 1
    encode: Encoding = "cached"
    local_copies: Annotated[Path | None, HOW] = None
    local_copies_gb: Annotated[float, HOW] = 100.0
    hold_out: bool = True
    stop_found_in: Annotated[Path | None, HOW] = None

    def contents(self) -> dict[str, str]:
        """Return digests of the text encoders that params name, or of the packaged one; none if the training starts
        from a checkpoint, which has its own."""
        from emu_models.training.cache import hash_text_encoders

        return {} if self.start_from is not None else hash_text_encoders(self.text_encoder)


@dataclass(frozen=True, kw_only=True)
class DenoiserJob(CaptionedJob):
    """A denoiser's training. start_from: a folder of a trained pipeline to continue from, ours or another's
    (emu_models.checkpoints); without it, `denoiser` is built for `autoencoder` and `text_encoder`. adapters:
    trained instead of all weights. noise_shift: of the schedule (diffusion/schedule.py); None keeps that of start_from.
    """

    autoencoder: Annotated[Path | None, WEIGHTS] = None
    denoiser: DenoiserConfig | None = None
    transformer: TransformerConfig | None = None
    noise_shift: float | None = None
    adapters: Adapters | None = None

    def run(self, running: "Running") -> dict[str, Any]:
        """Train; see `latent.trainings.train_denoiser`."""
        from emu_models.latent.trainings import train_denoiser

        return self.reported_result(train_denoiser(self, running))
