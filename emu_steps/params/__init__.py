"""params.yaml, checked: one section per asset, named as the asset, its DVC stage and its MLflow data set.

A file per group of sections. Each number has a range that is right for what it means, each name that refers to
something is looked up (in its section, or in `references`), and the units stand in the sections' docstrings.
"""

from typing import Any, Self

from pydantic import model_validator

from emu_steps.params.corpus import Damage, RawCorpus
from emu_steps.params.curation import CurationVotes, Selection
from emu_steps.params.evaluation import (
    REGISTERED,
    REGISTERED_VERSION,
    TUNED,
    AppealVotes,
    AutomaticReport,
    EvaluationImages,
    FaithfulnessJudge,
    FaithfulnessVotes,
    PreferenceReport,
    RegisteredModel,
)
from emu_steps.params.filters import AlignmentModel, EngineSection, FilteredCorpus, FilterLedger, Policy, Signals
from emu_steps.params.kinds import Section, Text, refuse
from emu_steps.params.reading import check_params, read_params
from emu_steps.params.references import broken_references
from emu_steps.params.training import (
    PRETRAINED,
    AutoencoderSection,
    AutoencoderStudy,
    AutoencoderTraining,
    Denoiser,
    DenoiserAsset,
    DenoiserTraining,
    FirstPretraining,
    Launch,
    Lora,
    Losses,
    Perceptual,
    Pretraining,
    QualityTuning,
    Training,
    TrainingLaunch,
    Variant,
    tunes_ours,
)

__all__ = [
    "PRETRAINED",
    "REGISTERED",
    "REGISTERED_VERSION",
    "AlignmentModel",
    "AppealVotes",
    "AutoencoderSection",
    "AutoencoderStudy",
    "AutoencoderTraining",
    "AutomaticReport",
    "CurationVotes",
    "Damage",
    "Denoiser",
    "DenoiserAsset",
    "DenoiserTraining",
    "EngineSection",
    "EvaluationImages",
    "FaithfulnessJudge",
    "FaithfulnessVotes",
    "FilterLedger",
    "FilteredCorpus",
    "FirstPretraining",
    "Launch",
    "Lora",
    "Losses",
    "Params",
    "Perceptual",
    "Policy",
    "PreferenceReport",
    "Pretraining",
    "QualityTuning",
    "RawCorpus",
    "RegisteredModel",
    "Section",
    "Selection",
    "Signals",
    "Training",
    "TrainingLaunch",
    "Variant",
    "check_params",
    "read_params",
    "tunes_ours",
]


class Params(Section):
    """All of params.yaml. profile: what the set is called, on pages and in the registry. toy: whether its results are
    of a toy scale, which pages then say. comparison: two of evaluation_images.contestants, the candidate first; all
    votes and reports are about them."""

    profile: Text
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
    comparison: tuple[Text, Text] = ("tuned", "pretrained")
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

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        refuse(self, broken_references(self))
        return self
