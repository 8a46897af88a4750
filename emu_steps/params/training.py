"""How networks learn: autoencoder_study, autoencoder, pretrained_low, pretrained_mid, pretrained_full, quality_tuned,
and how their trainings are started (launch)."""

import shlex
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from emu_steps.params.kinds import (
    Batch,
    Channels,
    Count,
    Few,
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

DenoiserAsset = Literal[
    "pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned", "family_study", "tuning_study"
]
AutoencoderAsset = Literal["autoencoder_study", "autoencoder"]
PRETRAINED = PurePosixPath("data/models/pretrained_full")

Widths = Annotated[list[Annotated[Channels, Field(multiple_of=16)]], Field(min_length=1, max_length=8)]
TextEncoders = Annotated[list[Text], Field(min_length=1, max_length=2)]  # a pipeline has at most two


class Perceptual(Section):
    """The perceptual loss. kind: with `lpips`, `path` is a file of torchvision's VGG-16 weights; with `encoder`, it is
    an open_clip folder, and null uses the alignment model, which was trained on the corpus. weight: relative to the L1
    loss on values in [-1, 1].
    """

    kind: Literal["none", "encoder", "lpips"] = "none"
    path: Text | None = None
    weight: Weight = 0.0


class Losses(Section):
    """The autoencoder's losses; weights are relative to the L1 loss on values in [-1, 1]. kl_weight: of the KL
    divergence in nats per pixel value. adversarial_weight: of the adversarial gradient, relative to the
    reconstruction's. adversarial_start: share of num_steps after which the adversarial loss is used.
    """

    kl_weight: Weight
    adversarial_weight: Weight
    adversarial_start: Share
    perceptual: Perceptual = Perceptual()


class Variant(Section):
    """One autoencoder of the study. latent_channels: channels of z. fourier_bands: for each k below it, the sine and
    cosine of 2^k pi x are added to each colour channel before the encoder; 0 is none, and above 8 a band is finer than
    one step of 8-bit colour.
    """

    latent_channels: Annotated[Channels, Field(le=1024)]
    fourier_bands: Annotated[Whole, Field(ge=0, le=8)]


class Training(Section):
    """How a network is trained. resolution: px per side of the training pictures. num_steps: optimiser steps.
    batch_size: rows per step, over all processes. learning_rate: AdamW's peak, reached linearly after warmup_steps
    steps and followed by a cosine decay. ema_decay: share of the averaged weights that is kept at each step.
    validate_every: steps between two validations on held-out rows. max_rise: stop once the held-out loss is above its
    best by this share of the best; 0 never stops. seed: of initial weights, order and noise.
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
    """How an autoencoder is trained. max_images: number of pictures for training and validation, kept in memory (3 x
    resolution^2 bytes each). They are a sample of the usable pictures that does not depend on the order of the shards.
    The default, 4 GB at 256 px, is chosen here.
    """

    max_images: Count = 20_000


class AutoencoderStudy(AutoencoderTraining):
    """Several autoencoders, briefly trained and compared. variants: name -> what differs between them.

    inception: path of inception-2015-12-05.pt, for FID; null uses the features of the alignment model, whose distance
    is not FID. fold: px per side that become channels before the first convolution (space to depth). widths: channels
    per level, finest first, multiples of 16; between two levels height and width are halved, so a latent position is
    fold x 2^(levels - 1) px wide. encoder_blocks, decoder_blocks: residual blocks per level. linear_shortcut: a linear
    code in parallel to the convolutions, initialised with principal components.
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
    """The autoencoder, which continues the study's training of one variant. variant: a name in
    autoencoder_study.variants.
    """

    variant: str
    losses: Losses


class Denoiser(Section):
    """The U-Net. widths: channels per level, finest first, multiples of 16, the last of 64. attention: per width,
    whether that level attends to itself and to the text. layers_per_level: residual blocks per level. middle: `full` is
    a transformer block at the smallest grid; `joint` is a single attention over positions and text together, which is
    cheaper. cross_attention_width: channels that token features are projected to; null does not project them.
    size_conditioning: the network is told how large the original picture was and what was cropped away, as in SDXL.
    """

    widths: Widths
    attention: list[bool]
    layers_per_level: Layers
    middle: Literal["full", "joint"]
    cross_attention_width: Channels | None = None
    size_conditioning: bool = False

    @model_validator(mode="after")
    def _one_flag_per_width(self) -> Self:
        wrong: dict[Any, str] = {}
        if len(self.attention) != len(self.widths):
            wrong["attention",] = f"has {len(self.attention)} entries for {len(self.widths)} widths; give one per width"
        if self.widths[-1] % 64:  # emu_models.latent.denoiser: the width of a head
            wrong["widths", len(self.widths) - 1] = "the last width must be a multiple of 64: its level has attention"
        refuse(self, wrong)
        return self


class DenoiserTraining(Training):
    """How a denoiser is trained. noise_offset: standard deviation of the noise that all positions of a channel share;
    that of the noise itself is 1 (paper: 0.02 in the last pretraining, 0.1 in tuning). caption_dropout: share of rows
    whose caption is left out, for classifier-free guidance. aspect_buckets: number of picture shapes of about the same
    area, from 1 : 2 to 2 : 1; with 1 all pictures are cropped to squares. encode: `cached` encodes each picture and
    caption once before the first step and keeps them on disk; `on_the_fly` encodes them whenever a step needs them,
    reads the shards in a shuffled order, and keeps nothing. `emu plan` says which is cheaper. noise_shift: factor of
    the ratio of noise to signal at every timestep, larger for larger pictures (emu_models.diffusion.schedule); null
    keeps the schedule of the model that is trained further.
    """

    noise_offset: Share
    caption_dropout: Share
    aspect_buckets: Annotated[Whole, Field(gt=0, le=100)] = 1
    encode: Literal["cached", "on_the_fly"] = "cached"
    noise_shift: Annotated[Number, Field(gt=0, le=100)] | None = None


class Pretraining(DenoiserTraining):
    """A pretraining. gates: names of the gates that its rows must have passed (emu_data.ledger.GATES). min_side: px of
    the shorter side that they need beyond that; null for any.
    """

    gates: list[str]
    min_side: Pixels | None = None

    @model_validator(mode="after")
    def _gates_exist(self) -> Self:
        from emu_data.ledger import GLOBAL_GATES, ROW_GATES

        refuse(self, unknown_names(("gates",), self.gates, (*ROW_GATES, *GLOBAL_GATES)))
        return self


class FirstPretraining(Pretraining):
    """The first pretraining, which sets the network. text_encoder: a folder or a hub name, or a list of two; null uses
    the packaged MiniLM. num_text_tokens: longer captions are cut to this number of tokens, including the begin and end
    tokens; an encoder never gets more tokens than it supports (CLIP: 77).
    """

    denoiser: Denoiser
    text_encoder: Text | TextEncoders | None = None
    num_text_tokens: Annotated[Whole, Field(ge=3, le=4096)]


class Lora(Section):
    """Low-rank adapters of the denoiser's layers whose names end in one of target_modules; see peft's LoraConfig. rank:
    of the two matrices. alpha: their product is scaled by alpha / rank.
    """

    rank: Annotated[Whole, Field(gt=0, le=4096)]
    alpha: Annotated[Number, Field(gt=0, le=10_000)]
    # those of diffusers' text-to-image example
    target_modules: Annotated[list[Text], Field(min_length=1)] = ["to_q", "to_k", "to_v", "to_out.0"]


class QualityTuning(DenoiserTraining):
    """Quality-tuning. start_from: the folder of the checkpoint to tune, relative to the project: that of
    pretrained_full, or of a Stable Diffusion, FLUX.1, SANA or Qwen-Image checkpoint in diffusers' layout. DVC records
    its bytes as an input, so it must be a folder and not a name on a hub: `hf download NAME --local-dir FOLDER`
    downloads one.

    captions: which of the curated set's captions it learns; see emu_steps.captioning.pick_captions. lora: null tunes
    all weights. max_rise: stops early on the held-out loss; this rule is chosen here, the paper gives none. whole_set:
    once that is known, train again from the start for as many steps, without holding anything out, and publish that
    model. num_steps: at most 15 000, the paper's limit (sec. 3.4).
    """

    num_steps: Annotated[Whole, Field(gt=0, le=15_000)]
    start_from: Text
    captions: Literal["short", "long", "mixed", "corpus"] = "short"
    whole_set: bool = False
    lora: Lora | None = None

    @model_validator(mode="after")
    def _stops_somewhere(self) -> Self:
        if self.whole_set and not self.max_rise:
            refuse(self, {("whole_set",): "needs max_rise above 0: held-out rows find where to stop"})
        return self


def tunes_ours(start_from: str) -> bool:
    """Whether quality_tuned.start_from is the model of pretrained_full and not an external checkpoint."""
    return PurePosixPath(start_from) == PRETRAINED


class TrainingLaunch(Section):
    """How one training is run; it changes results at most by rounding. micro_batch_size: rows that a process computes
    at a time, if its share of a batch does not fit in memory; the other settings are a denoiser's only, since an
    autoencoder has nothing to which they apply. gradient_checkpointing: recompute activations in the
    backward pass; `emu plan` says if that is needed. compile: compile the network's repeated blocks (torch.compile); if
    the machine has no usable compiler, the training says so and runs without. sample_every: steps between two sheets
    of the fixed prompts in MLflow; 0 draws one only at the end. local_copies: a folder on the machine's own disk for
    copies of shards that are at a remote address; null uses data/cache. local_copies_gb: how large it may become, in
    10^9 bytes.
    """

    micro_batch_size: Batch | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    sample_every: StepsOrNone = 0
    local_copies: Text | None = None
    local_copies_gb: Annotated[Number, Field(gt=0, le=1_000_000)] = 100.0


class Launch(Section):
    """How trainings are started. It changes results at most by rounding, so it does not belong to an asset. See
    resources/gpu.py.

    command: the command line before "-m MODULE", for example `torchrun --nproc-per-node 8`; empty starts one process.
    strategy: how processes hold a denoiser's state: each holds all of it (ddp), it is sharded over all (fsdp), or it is
    sharded within a node and replicated across nodes (hsdp). trainings: asset of an autoencoder's or a denoiser's
    training -> its settings.

    checkpoint_minutes: between two saved states, and so about what a lost machine can cost. keep_states: how many of
    the newest states are kept. keep_every: states after multiples of so many steps are kept for good; 0 keeps none.
    grace_seconds: how long a training may take to save after SIGTERM or SIGINT before it is ended; a scheduler must
    wait longer before it kills. retries: how often an asset starts its training again, from the last state, after it
    lost a process or was stopped by a signal that was sent to the training alone.
    """

    command: str = ""
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    checkpoint_minutes: Annotated[Number, Field(gt=0, le=10_000)] = 15.0
    keep_states: Few = 2
    keep_every: StepsOrNone = 0
    grace_seconds: Annotated[Number, Field(ge=1, le=3600)] = 60.0
    retries: Annotated[Whole, Field(ge=0, le=1000)] = 0
    trainings: dict[AutoencoderAsset | DenoiserAsset, TrainingLaunch] = {}

    @field_validator("command")
    @classmethod
    def _is_a_command_line(cls, command: str) -> str:
        shlex.split(command)  # ValueError: "No closing quotation"
        return command

    @model_validator(mode="after")
    def _offers_what_there_is(self) -> Self:
        of_denoisers: dict[tuple[str | int, ...], str] = {
            ("trainings", asset, name): "is for denoisers only; an autoencoder's training has only micro_batch_size"
            for asset in get_args(AutoencoderAsset)
            for name, value in self.of(asset)
            if name != "micro_batch_size" and value != TrainingLaunch.model_fields[name].default
        }
        refuse(self, of_denoisers)
        return self

    def of(self, asset: str) -> TrainingLaunch:
        """Return the settings for the training of an asset, or the defaults if none are given."""
        named: dict[str, TrainingLaunch] = {**self.trainings}
        return named.get(asset, TrainingLaunch())


class TrainingSections(Section):
    """The trainings in the order of their chain. launch: how they run, which does not affect results."""

    launch: Launch = Launch()
    autoencoder_study: AutoencoderStudy
    autoencoder: AutoencoderSection
    pretrained_low: FirstPretraining
    pretrained_mid: Pretraining
    pretrained_full: Pretraining
    quality_tuned: QualityTuning
