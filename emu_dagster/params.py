"""params.yaml, checked: one section an asset, named as the asset, its DVC stage and its MLflow data set."""

from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
PRETRAINED = PurePosixPath("data/models/pretrained_full")


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
    """source `packages` makes the demo corpus; `img2dataset` and `folder` read from `path`."""

    source: Literal["packages", "img2dataset", "folder"]
    path: str | None = None
    subjects: dict[str, list[dict[str, str]]] = {}
    num_subjects_per_concept: Count | None = None
    styles: list[str] = []
    image_size: Count = 128
    samples_per_shard: Count
    damage: Damage | None = None
    seed: int


class AlignmentModel(Section):
    """pretrained: a folder or name of open_clip weights to use instead of training; num_folds of the trained ones."""

    pretrained: str | None = None
    num_folds: Annotated[int, Field(ge=2)]
    image_size: Count
    num_steps: Count
    batch_size: Count
    learning_rate: float
    seed: int
    judge_seed: int


class Policy(Section):
    """Thresholds of the gates; the raw values are kept, so a change here needs no model."""

    min_side: Count
    max_aspect: float
    min_words: int
    min_characters: int
    max_unsafe: Share
    max_text_area: Share
    min_alignment_rank: Share


class FilterLedger(Section):
    shards_per_group: Count
    policy: Policy


class FilteredCorpus(Section):
    """concepts: name -> descriptions that captions are compared with (the signal `concept`), for the quotas."""

    num_images: Count
    max_hash_distance: Annotated[int, Field(ge=0, le=3)]
    concepts: dict[str, list[str]]
    max_concept_share: Share
    seed: int


class Selection(Section):
    num_images: Count
    num_raters: Count
    seed: int


class Losses(Section):
    kl_weight: float
    adversarial_weight: float
    adversarial_start: Share


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


class AutoencoderStudy(Training):
    variants: dict[str, Variant]
    fold: Count
    widths: list[int]
    encoder_blocks: Count
    decoder_blocks: Count
    linear_shortcut: bool
    losses: Losses


class AutoencoderSection(Training):
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
    """micro_batch_size: rows that a process takes at a time, where its share of a batch does not fit in memory.

    sample_every: steps between two sheets of the fixed prompts in MLflow; 0 draws one at the end only. aspect_buckets:
    shapes of about the same area, from 1 : 2 to 2 : 1; 1 crops all to squares.
    """

    noise_offset: float
    caption_dropout: Share
    micro_batch_size: Count | None = None
    sample_every: Annotated[int, Field(ge=0)] = 0
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

    @property
    def base_assets(self) -> list[str]:
        """The asset that start_from is the output of; none for a checkpoint that was brought along."""
        return ["pretrained_full"] if PurePosixPath(self.start_from) == PRETRAINED else []


class EvaluationImages(Section):
    fixed_prompts: list[str]
    num_prompts: Count
    num_inference_steps: Count
    guidance_scale: float
    seed: int


class AutomaticReport(Section):
    num_bootstrap: Count
    seed: int


class PanelReport(Section):
    num_raters: Count
    num_bootstrap: Count
    seed: int


class AppealReport(PanelReport):
    """repeat_share: of the pairs, shown again with sides swapped. (The faithfulness raters cannot waver.)"""

    repeat_share: Share


class RegisteredModel(Section):
    """champion_* are what the blocking checks ask of the reports; see docs/decisions."""

    name: str
    min_appeal_win: Share
    max_faithfulness_loss: Share
    max_near_copies: Share


class Launch(Section):
    """How trainings are started; changes no result beyond rounding, so no asset's section. See resources/gpu.py.

    command: one line that "-m MODULE" is put behind, for example `torchrun --nproc-per-node 8`; empty is one process.
    """

    command: str = ""
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"


class Params(Section):
    profile: str
    toy: bool
    launch: Launch = Launch()
    raw_corpus: RawCorpus
    alignment_model: AlignmentModel
    filter_ledger: FilterLedger
    filtered_corpus: FilteredCorpus
    generalist_selection: Selection
    curated_set: Selection
    autoencoder_study: AutoencoderStudy
    autoencoder: AutoencoderSection
    pretrained_low: FirstPretraining
    pretrained_mid: Pretraining
    pretrained_full: Pretraining
    quality_tuned: QualityTuning
    evaluation_images: EvaluationImages
    automatic_report: AutomaticReport
    appeal_report: AppealReport
    faithfulness_report: PanelReport
    registered_model: RegisteredModel

    def section(self, name: str) -> dict[str, Any]:
        """The section of an asset as plain values."""
        return getattr(self, name).model_dump()


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
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ValueError("\n".join([f"{path.name} does not fit:", *lines])) from None
