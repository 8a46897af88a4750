"""The types of params.yaml: one section per asset, with the name of the asset, its DVC stage and its MLflow data set.

There is a file per group of sections, whose last class lists them. Each number has a range that fits its meaning, each
name that refers to something is checked (in its section, or in `references`), and the sections' docstrings give the
units.
"""

from typing import Any, Self

from pydantic import model_validator

from emu_steps.params.corpus import CorpusSections, Damage, RawCorpus
from emu_steps.params.curation import CurationSections, CurationVotes, Selection
from emu_steps.params.evaluation import (
    REGISTERED,
    REGISTERED_VERSION,
    TUNED,
    AppealVotes,
    AutomaticReport,
    EvaluationImages,
    EvaluationSections,
    FaithfulnessJudge,
    FaithfulnessVotes,
    PreferenceReport,
    RegisteredModel,
    Wanted,
)
from emu_steps.params.filters import (
    AlignmentModel,
    AlignmentTraining,
    CorpusReport,
    EngineSection,
    FilteredCorpus,
    FilterLedger,
    FilterSections,
    Policy,
    Signals,
)
from emu_steps.params.kinds import Section, Text, refuse
from emu_steps.params.reading import check_params, read_params
from emu_steps.params.references import broken_references
from emu_steps.params.studies import (
    CascadeFamily,
    Comparing,
    Family,
    FamilyStudy,
    FamilyTraining,
    MaskedFamily,
    StudySections,
    Tokenizer,
    TransformerFamily,
    TuningStudy,
)
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
    TrainingSections,
    Variant,
    tunes_ours,
)

__all__ = [
    "PRETRAINED",
    "REGISTERED",
    "REGISTERED_VERSION",
    "AlignmentModel",
    "AlignmentTraining",
    "AppealVotes",
    "AutoencoderSection",
    "AutoencoderStudy",
    "AutoencoderTraining",
    "AutomaticReport",
    "CascadeFamily",
    "Comparing",
    "CorpusReport",
    "CurationVotes",
    "Damage",
    "Denoiser",
    "DenoiserAsset",
    "DenoiserTraining",
    "EngineSection",
    "EvaluationImages",
    "FaithfulnessJudge",
    "FaithfulnessVotes",
    "Family",
    "FamilyStudy",
    "FamilyTraining",
    "FilterLedger",
    "FilteredCorpus",
    "FirstPretraining",
    "Launch",
    "Lora",
    "Losses",
    "MaskedFamily",
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
    "Tokenizer",
    "Training",
    "TrainingLaunch",
    "TransformerFamily",
    "TuningStudy",
    "Variant",
    "Wanted",
    "check_params",
    "read_params",
    "tunes_ours",
]


# Pydantic orders fields from the last base to the first.
class Params(StudySections, EvaluationSections, TrainingSections, CurationSections, FilterSections, CorpusSections):
    """All of params.yaml. profile: the name of this set, for pages and the registry. toy: whether its results are at
    toy scale, which pages then say."""

    profile: Text
    toy: bool

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
