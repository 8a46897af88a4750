"""The trainings of the latent family as jobs (emu_models/training/jobs.py), with every knob that its learners have."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from emu_models.training.jobs import ENCODERS, HOW, WEIGHTS, LoopJob

if TYPE_CHECKING:
    from emu_models.training.loop import TrainingResult
    from emu_models.training.running import Running

Middle = Literal["full", "joint"]


@dataclass(frozen=True)
class PerceptualConfig:
    """kind: "none", "encoder" (path: a folder in open_clip's layout) or "lpips" (path: torchvision's VGG-16 weights).

    weight: of the perceptual distance against the L1 on values in [-1, 1]. ValueError where a path is missing.
    """

    kind: Literal["none", "encoder", "lpips"] = "none"
    path: Annotated[str | None, WEIGHTS] = None
    weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind != "none" and not self.path:
            raise ValueError(f"perceptual.path is missing; kind {self.kind!r} reads its weights from there")
        if self.weight < 0:
            raise ValueError(f"perceptual.weight is {self.weight}; it must be 0 or more")

    @property
    def is_on(self) -> bool:
        return self.kind != "none" and self.weight > 0


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """kl_weight: of the KL in nats a picture against the L1 summed over its values (CompVis: 1e-6).

    adversarial_weight is the top of the ramp that runs from adversarial_start to the last step; both shares in 0..1.
    """

    kl_weight: float
    adversarial_weight: float
    adversarial_start: float
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)


@dataclass(frozen=True)
class AutoencoderTrainingConfig:
    """num_steps: optimiser steps, of batch_size pictures each; learning_rate: of the peak; seed: of the draws."""

    num_steps: int
    batch_size: int
    learning_rate: float
    losses: AutoencoderLossConfig
    seed: int


@dataclass(frozen=True)
class DenoiserConfig:
    """widths: channels a level, finest first; attention: whether that level attends to itself and to the text.

    middle: "full" for a transformer block at the smallest grid, "joint" for one attention over positions and text
    together, which costs a small network a third less a step (docs/log.md, 2026-11-23).
    cross_attention_width: what token features are projected to before any attention; None leaves them as they are.
    """

    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    layers_per_level: int
    middle: Middle = "full"
    cross_attention_width: int | None = None
    head_width: int = 64

    def __post_init__(self) -> None:
        for name in ("widths", "attention"):  # lists where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.widths) != len(self.attention):
            raise ValueError(f"denoiser has {len(self.widths)} widths but {len(self.attention)} attention flags")
        if self.widths[-1] % self.head_width:
            raise ValueError(
                f"denoiser's last width {self.widths[-1]} must be a multiple of {self.head_width}: its middle attends"
            )
        if self.middle not in get_args(Middle):
            raise ValueError(f"denoiser middle is {self.middle!r}; it must be one of {', '.join(get_args(Middle))}")


@dataclass(frozen=True)
class DenoiserTrainingConfig:
    """noise_offset: 0.02 in the last pretraining stage, 0.1 in tuning, else 0 (paper). caption_dropout in 0..1.

    batch_size: rows of an optimiser step, over all processes. micro_batch_size: rows that a process takes at a time
    and whose gradients it adds up, where its share does not fit in memory; None takes the share at once.
    gradient_checkpointing: blocks keep only their inputs and are computed again in the backward pass: less memory, more
    time, the same numbers.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    noise_offset: float
    caption_dropout: float
    seed: int
    micro_batch_size: Annotated[int | None, HOW] = None
    gradient_checkpointing: Annotated[bool, HOW] = False


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters: the U-Net's layers whose names end in one of target_modules learn a product of two matrices of
    `rank`, scaled by alpha / rank, and nothing else learns."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AutoencoderJob(LoopJob):
    """start_from: a trained autoencoder's folder to go on from, else `network` (arguments of Autoencoder) is built."""

    network: dict[str, Any] | None = None
    start_from: Annotated[Path | None, WEIGHTS] = None
    training: AutoencoderTrainingConfig

    def run(self, running: "Running") -> dict[str, Any]:
        from emu_models.latent.trainings import train_autoencoder

        return _report(self, train_autoencoder(self, running))


@dataclass(frozen=True, kw_only=True)
class DenoiserJob(LoopJob):
    """start_from: a folder of a trained pipeline to go on from, ours or another's (emu_models.latent.checkpoints); else
    `denoiser` is built over `autoencoder` and `text_encoder`. adapters: what is trained in place of all weights.

    prompts: of the preview, none for no preview. aspect_buckets: picture shapes from tall to wide (buckets.py); 1 crops
    all to squares.
    """

    autoencoder: Annotated[Path | None, WEIGHTS] = None
    start_from: Annotated[Path | None, WEIGHTS] = None
    denoiser: DenoiserConfig | None = None
    text_encoder: Annotated[str | list[str] | None, ENCODERS] = None
    num_text_tokens: int
    training: DenoiserTrainingConfig
    prompts: Annotated[tuple[str, ...], HOW]
    guidance_scale: Annotated[float, HOW]
    aspect_buckets: int = 1
    adapters: Adapters | None = None

    def run(self, running: "Running") -> dict[str, Any]:
        from emu_models.latent.trainings import train_denoiser

        return _report(self, train_denoiser(self, running))

    def text_encoders(self) -> list[str]:
        from emu_models.text import list_text_encoders

        return list_text_encoders(self.text_encoder) if self.start_from is None else []


def _report(job: LoopJob, result: "TrainingResult") -> dict[str, Any]:
    """`timings` are there where it trained now."""
    numbers = {name: value for name, value in asdict(result).items() if name not in ("folder", "timings")}
    return job.reported(result.folder, **numbers, **({"timings": result.timings} if result.timings else {}))
