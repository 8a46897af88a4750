"""params.yaml, checked: one section an asset, named as the asset, its DVC stage and its MLflow data set."""

import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from emu_steps.older_params import MOVED, moved_to

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
DenoiserAsset = Literal["pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned"]
PRETRAINED = PurePosixPath("data/models/pretrained_full")
TUNED = "data/models/quality_tuned"
REGISTERED = "models:/"  # how the address of a registered version begins
REGISTERED_VERSION = re.compile(r"models:/([^/@]+)(?:@(.+)|/(\d+))")  # name, and alias or version


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Damage(Section):
    """Shares of the rows of the demo corpus that arrive damaged."""

    text: Share
    caption: Share
    sliver: Share
    shrink: Share
    duplicate: Share
    unsafe: Share
    failed: Share


class RawCorpus(Section):
    """source `packages` makes the demo corpus; `img2dataset`, `folder` and `table` read from `path`, any fsspec address
    (docs/data.md; `emu ingest` writes these entries).

    copy: bring the pictures here instead of referring to them. storage_options: protocol -> fsspec's options, no
    secrets. image_column, caption_column, base: of a table; null finds the usual names, and the table's folder.
    """

    source: Literal["packages", "img2dataset", "folder", "table"]
    path: str | None = None
    copy_files: bool = Field(default=False, alias="copy")
    storage_options: dict[str, dict[str, Any]] = {}
    image_column: str | None = None
    caption_column: str | None = None
    base: str | None = None
    subjects: dict[str, list[dict[str, str]]] = {}
    num_subjects_per_concept: Count | None = None
    styles: list[str] = []
    image_size: Count = 128
    samples_per_shard: Count
    damage: Damage | None = None
    seed: int


class AlignmentModel(Section):
    """num_folds: each picture is scored by the model that did not see it."""

    num_folds: Annotated[int, Field(ge=2)]
    image_size: Count
    num_steps: Count
    batch_size: Count
    learning_rate: float
    seed: int


class FaithfulnessJudge(Section):
    """Who votes on faithfulness. weights: a folder or name of open_clip weights to take instead of training on what
    passed the gates; held_share: of these pictures, kept from training, on which its error is measured."""

    weights: str | None = None
    held_share: Annotated[float, Field(gt=0, lt=1)]
    image_size: Count
    num_steps: Count
    batch_size: Count
    learning_rate: float
    seed: int


class Policy(Section):
    """Thresholds of the gates; the raw values are kept, so a change here needs no model."""

    min_side: Count
    max_aspect: float
    min_words: int
    min_characters: int
    max_unsafe: Share
    max_text_area: Share | None
    min_alignment_rank: Share
    min_letter_share: Share | None = None
    min_distinct_word_share: Share | None = None
    max_occurrences: Count | None = None
    max_largest_text_box: Share | None = None
    max_read_text_area: Share | None = None
    max_words_in_picture: Annotated[int, Field(ge=0)] | None = None
    min_alignment: float | None = None
    min_aesthetics: float | None = None
    min_popularity: float | None = None


class Signals(Section):
    """How pictures are measured; a change of it measures again.

    alignment_weights: a folder or name of open_clip weights to embed and to score with; null takes alignment_model's.
    concepts: name -> descriptions that captions are compared with (the signal `concept`), for filtered_corpus' quotas.
    canvas: px, of the text detector: 96 for drawings of 128 px, 384 for photographs. words_between: areas of text
    between which the words are counted, null counts none. aesthetics_head: a path, see `emu aesthetics-head`;
    unsafe_detector zero_shot and the concepts by the picture need alignment_weights. unsafe_column and
    popularity_column are the input's, null for none.
    """

    alignment_weights: str | None = None
    concepts: dict[str, list[str]]

    canvas: Annotated[int, Field(gt=0, multiple_of=32)] = 96
    words_between: tuple[Share, Share] | None = None
    mirrored_alignment: bool = False
    aesthetics_head: str | None = None
    unsafe_detector: Literal["open_nsfw", "zero_shot", "none"] = "open_nsfw"
    unsafe_column: str = "punsafe"
    popularity_column: str | None = None


class FilterLedger(Section):
    """control_share: of the keys that are measured in full, whatever the gates say."""

    control_share: Share = 0.01
    signals: Signals
    policy: Policy


class EngineSection(Section):
    """Where the pictures are measured: how, not what. No asset's section, so that it makes nothing stale.

    local: children on this machine, one a core by default. ray: actors on the running cluster at ray_address ("auto",
    "HOST:PORT", "ray://HOST:PORT"), as many as fit by default; num_gpus_per_actor 0.5 lets two share a GPU.
    max_memory_gib: what one worker's child may hold; a picture that needs more gets a reason instead of values.
    """

    name: Literal["local", "ray"] = "local"
    num_workers: Count | None = None
    threads_per_worker: Count = 1
    max_memory_gib: Annotated[float, Field(gt=0)] = 8.0
    ray_address: str = "auto"
    num_gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0


class FilteredCorpus(Section):
    """keep_best_by: columns by which the best of a cluster of near-twins is chosen; order_by: the column of which a
    concept's largest values are taken (see emu_data.selection.SelectionPolicy).
    """

    num_images: Count
    max_hash_distance: Annotated[int, Field(ge=0, le=3)]
    max_concept_share: Share
    min_concept_share: Share = 0.0
    keep_best_by: list[str] = ["min_side", "alignment_rank", "num_bytes"]
    order_by: str | None = None
    seed: int


class CurationVotes(Section):
    """The rubric panel that votes where no person did."""

    num_raters: Count
    seed: int


class Selection(Section):
    """num_images: how many are wanted; fewer are taken where the round chose fewer."""

    num_images: Count


class Perceptual(Section):
    """kind `lpips`: `path` is a file of torchvision's VGG-16 weights. `encoder`: an open_clip folder; null takes the
    alignment model's own, which was trained on the corpus. weight: against the L1 on values in [-1, 1]."""

    kind: Literal["none", "encoder", "lpips"] = "none"
    path: str | None = None
    weight: Annotated[float, Field(ge=0)] = 0.0


class Losses(Section):
    kl_weight: float
    adversarial_weight: float
    adversarial_start: Share
    perceptual: Perceptual = Perceptual()


class Variant(Section):
    latent_channels: Count
    fourier_bands: Annotated[int, Field(ge=0)]


class Training(Section):
    resolution: Count
    num_steps: Count
    batch_size: Count
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    validate_every: Count
    max_rise: Annotated[float, Field(ge=0)]
    seed: int


class AutoencoderTraining(Training):
    """max_images: pictures that it learns from and is judged on, held in memory (3 x resolution^2 bytes each): a sample
    of the usable ones, the same whatever the order of the shards. The default, 4 GB at 256 px, is chosen here."""

    max_images: Count = 20_000


class AutoencoderStudy(AutoencoderTraining):
    """inception: inception-2015-12-05.pt, for a FID; null takes the judge's features, which are none."""

    inception: str | None = None
    variants: dict[str, Variant]
    fold: Count
    widths: list[int]
    encoder_blocks: Count
    decoder_blocks: Count
    linear_shortcut: bool
    losses: Losses


class AutoencoderSection(AutoencoderTraining):
    """Trains the study's `variant` on from where the study left it."""

    variant: str
    losses: Losses


class Denoiser(Section):
    widths: list[int]
    attention: list[bool]
    layers_per_level: Count
    middle: Literal["full", "joint"]
    cross_attention_width: Count | None = None


class DenoiserTraining(Training):
    """aspect_buckets: shapes of about the same area, from 1 : 2 to 2 : 1; 1 crops all to squares."""

    noise_offset: float
    caption_dropout: Share
    aspect_buckets: Count = 1


class Pretraining(DenoiserTraining):
    gates: list[str]


class FirstPretraining(Pretraining):
    """text_encoder: a folder or a hub name, or a list of two; null takes the packaged MiniLM."""

    denoiser: Denoiser
    text_encoder: str | list[str] | None = None
    num_text_tokens: Count


class Lora(Section):
    """Low-rank adapters of the U-Net's layers whose names end in one of target_modules; see peft's LoraConfig."""

    rank: Count
    alpha: Annotated[float, Field(gt=0)]
    target_modules: list[str] = ["to_q", "to_k", "to_v", "to_out.0"]  # those of diffusers' text-to-image example


class QualityTuning(DenoiserTraining):
    """start_from: the folder of the checkpoint that is tuned, from the project's root: pretrained_full's, or that of
    any Stable Diffusion 1.x, 2.x or XL checkpoint in diffusers' layout. Its bytes are an input that DVC records, so it
    is a folder and not a name on a hub: `hf download NAME --local-dir FOLDER` makes one of a name.

    lora: null tunes all weights. max_rise stops early on the held-out loss: a rule of ours, the paper gives none.
    num_steps: at most 15 000, the paper's limit (sec. 3.4).
    """

    num_steps: Annotated[int, Field(gt=0, le=15_000)]
    start_from: str
    lora: Lora | None = None


def tunes_ours(start_from: str) -> bool:
    """Whether quality_tuned.start_from is what pretrained_full made, and no checkpoint that was brought along."""
    return PurePosixPath(start_from) == PRETRAINED


class EvaluationImages(Section):
    """contestants: name -> where its pictures come from, see emu_steps.contestants; a path is from the project's root.
    Left out, they are what quality_tuned.start_from names, "pretrained", and quality_tuned, "tuned".
    """

    contestants: Annotated[dict[str, str], Field(min_length=2)]
    fixed_prompts: list[str]
    num_prompts: Count
    num_inference_steps: Count
    guidance_scale: float
    seed: int

    @field_validator("contestants")
    @classmethod
    def _check_names_and_addresses(cls, contestants: dict[str, str]) -> dict[str, str]:
        for name, address in contestants.items():
            if name == "real" or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(
                    f"{name!r} is no name for a contestant: use lower-case letters, digits, _ and -, and not `real`, "
                    "which the corpus's own pictures are called"
                )
            if address.startswith(REGISTERED) and not REGISTERED_VERSION.fullmatch(address):
                raise ValueError(f"{name}: {address} is neither models:/NAME/VERSION nor models:/NAME@ALIAS")
        return contestants


class AutomaticReport(Section):
    num_bootstrap: Count
    seed: int


class AppealVotes(Section):
    """The rubric panel; repeat_share: of the pairs, shown again with sides swapped."""

    num_raters: Count
    repeat_share: Share
    seed: int


class FaithfulnessVotes(Section):
    """The rubric panel. It has no repeats: its raters cannot waver. seed: of which model stands left."""

    num_raters: Count
    seed: int


class PreferenceReport(Section):
    num_bootstrap: Count
    seed: int


class RegisteredModel(Section):
    """What the reports of a champion must show (emu_steps.verdicts). A bound that nothing can miss is
    refused.

    min_appeal_win: share of the decided prompts. faithfulness_margin: points of win less lose that it may lose; 20 is
    a prompt in five. max_judge_error: share of known pairs; a guess among the four answers is wrong in 0.75, so half is
    the most that a judge may err who is to find harm. max_near_copies: share of the tuned pictures.
    """

    name: str
    min_appeal_win: Annotated[float, Field(ge=0.5, lt=1)]
    faithfulness_margin: Annotated[float, Field(gt=0, le=20)] = 5.0
    max_judge_error: Annotated[float, Field(gt=0, le=0.5)] = 0.5
    max_near_copies: Annotated[float, Field(gt=0, lt=1)]


class TrainingLaunch(Section):
    """micro_batch_size: rows that a process takes at a time, where its share of a batch does not fit in memory.
    gradient_checkpointing: activations are computed again in the backward pass; `emu plan` says where that is needed.
    sample_every: steps between two sheets of the fixed prompts in MLflow; 0 draws one at the end only.
    """

    micro_batch_size: Count | None = None
    gradient_checkpointing: bool = False
    sample_every: Annotated[int, Field(ge=0)] = 0


class Launch(Section):
    """How trainings are started; changes no result beyond rounding, so no asset's section. See resources/gpu.py.

    command: one line that "-m MODULE" is put behind, for example `torchrun --nproc-per-node 8`; empty is one process.
    trainings: of a denoiser's training, by its asset.
    """

    command: str = ""
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    trainings: dict[DenoiserAsset, TrainingLaunch] = {}

    def of(self, asset: str) -> TrainingLaunch:
        """How the training of an asset is done."""
        named: dict[str, TrainingLaunch] = {**self.trainings}
        return named.get(asset, TrainingLaunch())


class Params(Section):
    """comparison: two of evaluation_images.contestants, the candidate first; all votes and reports are about them."""

    profile: str
    toy: bool
    engine: EngineSection = EngineSection()
    launch: Launch = Launch()
    raw_corpus: RawCorpus
    alignment_model: AlignmentModel
    filter_ledger: FilterLedger
    filtered_corpus: FilteredCorpus
    faithfulness_judge: FaithfulnessJudge
    generalist_votes: CurationVotes
    generalist_selection: Selection
    specialist_votes: CurationVotes
    curated_set: Selection
    autoencoder_study: AutoencoderStudy
    autoencoder: AutoencoderSection
    pretrained_low: FirstPretraining
    pretrained_mid: Pretraining
    pretrained_full: Pretraining
    quality_tuned: QualityTuning
    evaluation_images: EvaluationImages
    comparison: Annotated[tuple[str, str], Field(validate_default=True)] = ("tuned", "pretrained")
    automatic_report: AutomaticReport
    appeal_votes: AppealVotes
    appeal_report: PreferenceReport
    faithfulness_votes: FaithfulnessVotes
    faithfulness_report: PreferenceReport
    registered_model: RegisteredModel

    @model_validator(mode="before")
    @classmethod
    def _name_the_usual_contestants(cls, given: Any) -> Any:
        match given:
            case {"evaluation_images": dict(section), "quality_tuned": {"start_from": start_from}}:
                usual = {"pretrained": start_from, "tuned": TUNED}
                return {**given, "evaluation_images": {"contestants": usual, **section}}
        return given

    @field_validator("comparison")
    @classmethod
    def _compare_contestants(cls, pair: tuple[str, str], info: ValidationInfo) -> tuple[str, str]:
        if "evaluation_images" in info.data:
            known = info.data["evaluation_images"].contestants
            if unknown := [name for name in pair if name not in known]:
                raise ValueError(f"{', '.join(unknown)} is no contestant; evaluation_images has {', '.join(known)}")
        if pair[0] == pair[1]:
            raise ValueError(f"{pair[0]} is compared with itself; name two contestants")
        return pair

    @field_validator("registered_model")
    @classmethod
    def _refuse_what_moves_by_its_own_verdict(cls, section: RegisteredModel, info: ValidationInfo) -> RegisteredModel:
        contestants = info.data["evaluation_images"].contestants if "evaluation_images" in info.data else {}
        for name, address in contestants.items():
            if address.startswith(f"models:/{section.name}@"):
                raise ValueError(
                    f"evaluation_images.contestants.{name} is {address}, an alias that moves by what this very "
                    f"comparison shows; name a version, such as models:/{section.name}/1"
                )
        return section


def read_params(path: Path) -> Params:
    """Reads and checks params.yaml. ValueError names each wrong entry by its dotted name."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing in {path.parent}; `emu profile emoji` writes one")
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, _modified: int) -> Params:
    try:
        return Params.model_validate(yaml.load(path.read_bytes(), yaml.CSafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {error}") from None
    except ValidationError as error:
        wrong = {".".join(map(str, e["loc"])): e["msg"] for e in error.errors()}
        lines = [f"  {name}: {message}{moved_to(name)}" for name, message in wrong.items()]
        if MOVED.keys() & wrong.keys():
            lines.append(f"{path.name} is of an older version: move these entries, or write it anew with `emu profile`")
        raise ValueError("\n".join([f"{path.name} does not fit:", *lines])) from None
