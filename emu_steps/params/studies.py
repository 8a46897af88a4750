"""Studies beside the graph's own model: family_study and generality_report (does tuning work for other kinds of
networks?), tuning_study (how few pictures, for how long, chosen how?)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emu_steps.params.evaluation import Resamples
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
from emu_steps.params.training import Denoiser, Widths

Captions = Literal["short", "long", "mixed", "corpus"]


class FamilyTraining(Section):
    """How a network of a family is trained: num_steps, batch_size, learning_rate, warmup_steps, ema_decay,
    validate_every, max_rise, seed, noise_offset and caption_dropout mean what they mean in pretrained_low."""

    num_steps: Steps
    batch_size: Batch
    learning_rate: LearningRate
    warmup_steps: StepsOrNone
    ema_decay: Annotated[Number, Field(ge=0, lt=1)]
    validate_every: Steps
    max_rise: Annotated[Number, Field(ge=0, le=100)] = 0.0
    seed: Seed
    noise_offset: Share = 0.0
    caption_dropout: Share = 0.1


class Family(Section):
    """A family of networks, trained from scratch and then tuned. resolution: px per side. pretraining: on the rows that
    passed `gates`; tuning: on the curated set."""

    resolution: Annotated[Pixels, Field(ge=8)]
    pretraining: FamilyTraining
    tuning: FamilyTraining


class Transformer(Section):
    """A rectified-flow transformer (emu_models.flow.jobs). patch: positions per side that are one token. width:
    channels, of `heads` heads together. layers: blocks. bottleneck: channels to which a patch of pixels is projected;
    null works on the latents of the asset autoencoder.
    """

    patch: Annotated[Whole, Field(gt=0, le=256)]
    width: Channels
    heads: Few
    layers: Layers
    bottleneck: Channels | None = None

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % (4 * self.heads):
            refuse(self, {("width",): f"must be a multiple of 4 x heads, {4 * self.heads}"})
        return self


class TransformerFamily(Family):
    """Rectified flow by a transformer (kind: transformer). noise_shift: factor of the ratio of noise to signal at every
    time, larger for larger pictures."""

    kind: Literal["transformer"]
    transformer: Transformer
    noise_shift: Annotated[Number, Field(gt=0, le=100)] = 1.0


class UpscalerTraining(FamilyTraining):
    """As FamilyTraining. crop: side in px of the random parts of pictures that it learns; null for whole pictures."""

    crop: Pixels | None = None


class CascadeFamily(Family):
    """A cascade of U-Nets in pixels (kind: cascade). ratio: pixels of a picture per pixel of the small one and side.
    denoiser: the base, which draws small pictures and whose trainings are `pretraining` and `tuning`.
    upscaler: the network that draws the whole picture beside a small one; its trainings are upscaler_pretraining and
    upscaler_tuning. max_augmentation: up to which level noise is added to the small pictures that the upscaler learns
    with; augmentation: the level at which it draws. patch: side in px of the squares that the upscaler sees as one
    position; larger ones are cheaper.
    """

    kind: Literal["cascade"]
    ratio: Annotated[Whole, Field(ge=2, le=64)]
    denoiser: Denoiser
    upscaler: Denoiser
    upscaler_pretraining: UpscalerTraining
    upscaler_tuning: UpscalerTraining
    max_augmentation: Share = 0.5
    augmentation: Share = 0.1
    patch: Annotated[Whole, Field(gt=0, le=64)] = 1

    @model_validator(mode="after")
    def _draws_as_it_learned(self) -> Self:
        if self.augmentation > self.max_augmentation:
            refuse(self, {("augmentation",): f"must be at most max_augmentation, {self.max_augmentation}"})
        return self


class Tokenizer(Section):
    """A tokenizer of pictures by finite scalar quantisation (kind: masked). levels: of each channel of a code; their
    product is the number of codes. fold, widths, encoder_blocks, decoder_blocks, max_images: as in autoencoder_study.
    adversarial_weight, adversarial_start: as in its losses. num_steps, batch_size, learning_rate, warmup_steps,
    ema_decay, validate_every, max_rise, seed: of its training, on the raw pictures.
    """

    levels: Annotated[list[Annotated[Whole, Field(ge=2, le=64)]], Field(min_length=1, max_length=16)]
    fold: Annotated[Whole, Field(gt=0, le=64)]
    widths: Widths
    encoder_blocks: Layers
    decoder_blocks: Layers
    max_images: Count = 20_000
    adversarial_weight: Weight = 0.1
    adversarial_start: Share = 0.8
    num_steps: Steps
    batch_size: Batch
    learning_rate: LearningRate
    warmup_steps: StepsOrNone
    ema_decay: Annotated[Number, Field(ge=0, lt=1)]
    validate_every: Steps
    max_rise: Annotated[Number, Field(ge=0, le=100)] = 0.0
    seed: Seed


class TokenTransformer(Section):
    """The network that fills in masked tokens (emu_models.masked.jobs). width: channels of `layers` blocks with `heads`
    heads and inner_width channels in their feed-forward layers. outer_width: channels of the convolutional blocks
    around them, `blocks` on either side, with outer_heads heads. code_width: channels of a code's embedding. halved:
    the transformer sees half the sides.
    """

    width: Channels
    layers: Layers
    heads: Few
    inner_width: Channels
    outer_width: Channels
    outer_heads: Few
    code_width: Channels
    blocks: Layers = 1
    halved: bool = False


class MaskedFamily(Family):
    """A masked token transformer like Muse (kind: masked). tokenizer: trained first. transformer: the network."""

    kind: Literal["masked"]
    tokenizer: Tokenizer
    transformer: TokenTransformer


AnyFamily = Annotated[TransformerFamily | CascadeFamily | MaskedFamily, Field(discriminator="kind")]


class FamilyStudy(Section):
    """Networks of other families, each pretrained and then tuned on the same curated set. families: name -> its
    networks and trainings; none by default. gates: names of the gates that rows of the pretraining must have passed.
    """

    gates: list[str]
    families: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")], AnyFamily] = {}

    @model_validator(mode="after")
    def _gates_exist(self) -> Self:
        from emu_data.ledger import GLOBAL_GATES, ROW_GATES

        refuse(self, unknown_names(("gates",), self.gates, (*ROW_GATES, *GLOBAL_GATES)))
        return self


class Comparing(Section):
    """How models of a study are compared. prompt_share: share of the evaluation's prompts, evenly spread. num_seeds:
    pictures of each prompt; the first is compared, and all of them say how varied they are. num_bootstrap: resamples.
    """

    prompt_share: Annotated[Number, Field(gt=0, le=1)]
    num_seeds: Annotated[Whole, Field(ge=2, le=100)]
    num_bootstrap: Resamples
    seed: Seed


class TuningStudy(Comparing):
    """Tunings like quality_tuned that differ in one thing each, compared with the model before tuning. Lists are empty
    by default, which leaves that part of the study out.

    shares: of the curated set, 0 to 1, as nested random subsets, a tuning per share, seed and budget. budgets: `steps`
    gives every subset as many steps as quality_tuned.num_steps, `epochs` as many passes over its pictures as the whole
    set gets. seeds: of subsets and trainings. lengths: shares of num_steps after which a tuning on the whole set stops.
    chosen_by: name -> a column of the ledger by whose largest values as many pictures as the curated set has are
    chosen, or null for random ones. captions: which captions of the curated set are learned.
    """

    shares: list[Share] = []
    budgets: Annotated[list[Literal["steps", "epochs"]], Field(min_length=1)] = ["steps", "epochs"]
    seeds: Annotated[list[Annotated[Whole, Field(ge=0, le=1000)]], Field(min_length=1)] = [0]
    lengths: list[Annotated[Number, Field(gt=0, le=100)]] = []
    chosen_by: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")], Text | None] = {}
    captions: list[Captions] = []

    @property
    def has_arms(self) -> bool:
        """Whether anything is tuned."""
        return bool(any(self.shares) or self.lengths or self.chosen_by or self.captions)


class StudySections(Section):
    """The studies."""

    family_study: FamilyStudy
    generality_report: Comparing
    tuning_study: TuningStudy
