"""How networks learn: autoencoder_study, autoencoder, pretrained_low, pretrained_mid, pretrained_full, quality_tuned,
and how their trainings are started (launch)."""

import shlex
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from emu_steps.params.kinds import (
    Batch,
    Channels,
    Count,
    Layers,
    LearningRate,
    Number,
    Pixels,
    Section,
    Seed,
    Share,
    Steps,
    StepsOrNone,
    Text,
    Weight,
    Whole,
    refuse,
    unknown_names,
)

DenoiserAsset = Literal["pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned"]
PRETRAINED = PurePosixPath("data/models/pretrained_full")

Widths = Annotated[list[Annotated[Channels, Field(multiple_of=16)]], Field(min_length=1, max_length=8)]
TextEncoders = Annotated[list[Text], Field(min_length=1, max_length=2)]  # as many as a pipeline has


class Perceptual(Section):
    """kind `lpips`: `path` is a file of torchvision's VGG-16 weights. `encoder`: an open_clip folder; null takes the
    alignment model's own, which was trained on the corpus. weight: against the L1 on values in [-1, 1]."""

    kind: Literal["none", "encoder", "lpips"] = "none"
    path: Text | None = None
    weight: Weight = 0.0


class Losses(Section):
    """Weights against the L1 on values in [-1, 1]. kl_weight: of the KL in nats per pixel value. adversarial_weight: of
    the adversary's gradient, relative to the reconstruction's. adversarial_start: share of num_steps after which the
    adversary joins in."""

    kl_weight: Weight
    adversarial_weight: Weight
    adversarial_start: Share
    perceptual: Perceptual = Perceptual()


class Variant(Section):
    """latent_channels: of z. fourier_bands: sines and cosines of 2^k pi x, k below it, that join each colour channel in
    front of the encoder; 0 is none, and beyond 8 a band is finer than a step of 8-bit colour."""

    latent_channels: Annotated[Channels, Field(le=1024)]
    fourier_bands: Annotated[Whole, Field(ge=0, le=8)]


class Training(Section):
    """resolution: px per side of the pictures learned from. num_steps: optimiser steps. batch_size: rows of a step,
    over all processes. learning_rate: AdamW's peak, reached after warmup_steps (steps; linearly), then a cosine down.
    ema_decay: share of the averaged weights that stays at a step. validate_every: steps between two validations on
    held-out rows. max_rise: stop once the held-out loss lies that share above its best; 0 never stops. seed: of first
    weights, order and noise.
    """

    resolution: Annotated[Pixels, Field(ge=8)]
    num_steps: Steps
    batch_size: Batch
    learning_rate: LearningRate
    warmup_steps: StepsOrNone
    ema_decay: Annotated[Number, Field(ge=0, lt=1)]
    validate_every: Steps
    max_rise: Annotated[Number, Field(ge=0, le=100)]
    seed: Seed


class AutoencoderTraining(Training):
    """max_images: pictures that it learns from and is judged on, held in memory (3 x resolution^2 bytes each): a sample
    of the usable ones, the same whatever the order of the shards. The default, 4 GB at 256 px, is chosen here."""

    max_images: Count = 20_000


class AutoencoderStudy(AutoencoderTraining):
    """Several autoencoders, briefly trained and compared. variants: name -> what differs between them.

    inception: path of inception-2015-12-05.pt, for a FID; null takes the judge's features, which are none. fold: px per
    side that become channels before the first convolution (space to depth). widths: channels per level, finest first,
    multiples of 16; between two levels height and width are halved, so a latent position is
    fold x 2^(levels - 1) px wide. encoder_blocks, decoder_blocks: residual blocks per level. linear_shortcut: a linear
    code beside the convolutions, which starts as principal components.
    """

    inception: Text | None = None
    variants: Annotated[dict[Text, Variant], Field(min_length=1)]
    fold: Annotated[Whole, Field(gt=0, le=64)]
    widths: Widths
    encoder_blocks: Layers
    decoder_blocks: Layers
    linear_shortcut: bool
    losses: Losses

    @property
    def factor(self) -> int:
        """Pixels per side of a latent position."""
        return self.fold * 2 ** (len(self.widths) - 1)


class AutoencoderSection(AutoencoderTraining):
    """Trains the study's `variant` on from where the study left it."""

    variant: str
    losses: Losses


class Denoiser(Section):
    """The U-Net. widths: channels per level, finest first, multiples of 16, the last of 64. attention: whether that
    level attends to itself and to the text, one entry per width. layers_per_level: residual blocks. middle: full is a
    transformer block at the smallest grid, joint one attention over positions and text together, which is cheaper.
    cross_attention_width: channels that token features are projected to; null leaves them as they are."""

    widths: Widths
    attention: list[bool]
    layers_per_level: Layers
    middle: Literal["full", "joint"]
    cross_attention_width: Channels | None = None

    @model_validator(mode="after")
    def _one_flag_per_width(self) -> Self:
        wrong: dict[Any, str] = {}
        if len(self.attention) != len(self.widths):
            wrong["attention",] = f"has {len(self.attention)} entries for {len(self.widths)} widths; give one per width"
        if self.widths[-1] % 64:  # emu_models.latent.denoiser: the width of a head
            wrong["widths", len(self.widths) - 1] = "the last width must be a multiple of 64: its level attends"
        refuse(self, wrong)
        return self


class DenoiserTraining(Training):
    """noise_offset: standard deviation of the noise that all positions of a channel share, against 1 of the noise
    itself (paper: 0.02 in the last pretraining, 0.1 in tuning). caption_dropout: share of rows whose caption is left
    out, for guidance. aspect_buckets: shapes of about the same area, from 1 : 2 to 2 : 1; 1 crops all to squares."""

    noise_offset: Share
    caption_dropout: Share
    aspect_buckets: Annotated[Whole, Field(gt=0, le=100)] = 1


class Pretraining(DenoiserTraining):
    """gates: those that its rows have passed, by name (emu_data.ledger.GATES)."""

    gates: list[str]

    @model_validator(mode="after")
    def _gates_exist(self) -> Self:
        from emu_data.ledger import GLOBAL_GATES, ROW_GATES

        refuse(self, unknown_names(("gates",), self.gates, (*ROW_GATES, *GLOBAL_GATES)))
        return self


class FirstPretraining(Pretraining):
    """text_encoder: a folder or a hub name, or a list of two; null takes the packaged MiniLM. num_text_tokens: word
    pieces of a caption, its begin and its end among them, at which longer ones are cut; no encoder takes more than it
    was made for (CLIP 77)."""

    denoiser: Denoiser
    text_encoder: Text | TextEncoders | None = None
    num_text_tokens: Annotated[Whole, Field(ge=3, le=4096)]


class Lora(Section):
    """Low-rank adapters of the U-Net's layers whose names end in one of target_modules; see peft's LoraConfig.
    rank: of the two matrices. alpha: what they add is scaled by alpha / rank."""

    rank: Annotated[Whole, Field(gt=0, le=4096)]
    alpha: Annotated[Number, Field(gt=0, le=10_000)]
    # those of diffusers' text-to-image example
    target_modules: Annotated[list[Text], Field(min_length=1)] = ["to_q", "to_k", "to_v", "to_out.0"]


class QualityTuning(DenoiserTraining):
    """start_from: the folder of the checkpoint that is tuned, from the project's root: pretrained_full's, or that of
    any Stable Diffusion 1.x, 2.x or XL checkpoint in diffusers' layout. Its bytes are an input that DVC records, so it
    is a folder and not a name on a hub: `hf download NAME --local-dir FOLDER` makes one of a name.

    lora: null tunes all weights. max_rise stops early on the held-out loss: a rule of ours, the paper gives none.
    num_steps: at most 15 000, the paper's limit (sec. 3.4).
    """

    num_steps: Annotated[Whole, Field(gt=0, le=15_000)]
    start_from: Text
    lora: Lora | None = None


def tunes_ours(start_from: str) -> bool:
    """Whether quality_tuned.start_from is what pretrained_full made, and no checkpoint that was brought along."""
    return PurePosixPath(start_from) == PRETRAINED


class TrainingLaunch(Section):
    """micro_batch_size: rows that a process takes at a time, where its share of a batch does not fit in memory.
    gradient_checkpointing: activations are computed again in the backward pass; `emu plan` says where that is needed.
    sample_every: steps between two sheets of the fixed prompts in MLflow; 0 draws one at the end only.
    """

    micro_batch_size: Batch | None = None
    gradient_checkpointing: bool = False
    sample_every: StepsOrNone = 0


class Launch(Section):
    """How trainings are started; changes no result beyond rounding, so no asset's section. See resources/gpu.py.

    command: one line that "-m MODULE" is put behind, for example `torchrun --nproc-per-node 8`; empty is one process.
    strategy: how processes hold a denoiser's state: each all of it (ddp), shared by all (fsdp), or shared within a node
    and copied across nodes (hsdp). trainings: of a denoiser's training, by its asset.
    """

    command: str = ""
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    trainings: dict[DenoiserAsset, TrainingLaunch] = {}

    @field_validator("command")
    @classmethod
    def _is_a_command_line(cls, command: str) -> str:
        shlex.split(command)  # ValueError: "No closing quotation"
        return command

    def of(self, asset: str) -> TrainingLaunch:
        """How the training of an asset is done."""
        named: dict[str, TrainingLaunch] = {**self.trainings}
        return named.get(asset, TrainingLaunch())
