"""How models are judged: faithfulness_judge, evaluation_images, the rounds of side-by-side votes, the reports, and the
bounds of registered_model."""

import re
from collections import Counter
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from emu_steps.params.filters import AlignmentTraining
from emu_steps.params.kinds import (
    Count,
    Few,
    Number,
    Section,
    Seed,
    Share,
    Text,
    Voters,
    Whole,
    refuse,
)

REGISTERED = "models:/"  # the beginning of a registered version's address
REGISTERED_VERSION = re.compile(r"models:/([^/@]+)(?:@(.+)|/(\d+))")  # groups: name, and alias or version
TUNED = "data/models/quality_tuned"
# Highest number of denoising steps, as in emu_models.diffusion.schedule (not imported, since it needs torch).
NUM_TIMESTEPS = 1000
# Resamples of a bootstrap. Its 2.5th and 97.5th percentiles are used, which need at least 100 resamples.
Resamples = Annotated[Whole, Field(ge=100, le=1_000_000)]


class FaithfulnessJudge(AlignmentTraining):
    """The judge of faithfulness. weights: open_clip weights (as in filter_ledger.signals.alignment_weights) to use
    instead of training on the pictures that passed the gates. held_share: share of these pictures that is held out of
    training to measure the judge's error. The other entries: as in alignment_model.
    """

    weights: Text | None = None
    held_share: Annotated[Number, Field(gt=0, lt=1)]


class EvaluationImages(Section):
    """The pictures to compare. contestants: name -> where its pictures come from (emu_steps.contestants), paths
    relative to the project; by default "pretrained", the model that quality_tuned.start_from names, and "tuned",
    quality_tuned. fixed_prompts: drawn in every evaluation and during trainings, so that pictures can be compared.
    prompts_file: a file of your own prompts, relative to the project, in a form that
    emu_models.evaluation.prompts.read_prompt_file reads; null to use captions of the corpus. num_prompts: the number of
    all prompts, at most; null for all of prompts_file. Prompts beyond the fixed ones are chosen at random by `seed`,
    which is also the first picture's seed. num_inference_steps: denoising steps. guidance_scale: of classifier-free
    guidance; none at 1 or less. guidance_rescale: share in which a guided step keeps the contrast of an unguided one;
    0.7 for strong guidance (Lin et al., arXiv 2305.08891, sec. 3.4)."""

    contestants: Annotated[dict[str, Text], Field(min_length=2)]
    fixed_prompts: list[Text]
    prompts_file: Text | None = None
    num_prompts: Annotated[Count, Field(le=10**6)] | None
    num_inference_steps: Annotated[Whole, Field(gt=0, le=NUM_TIMESTEPS)]
    guidance_scale: Annotated[Number, Field(ge=0, le=100)]
    guidance_rescale: Share = 0.0
    seed: Seed

    @field_validator("contestants")
    @classmethod
    def _check_names_and_addresses(cls, contestants: dict[str, str]) -> dict[str, str]:
        for name, address in contestants.items():
            if name == "real" or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(
                    f"{name!r} cannot be the name of a contestant: use lower-case letters, digits, _ and -, and not "
                    "`real`, which names the corpus's own pictures"
                )
            if address.startswith(REGISTERED) and not REGISTERED_VERSION.fullmatch(address):
                raise ValueError(f"{name}: {address} is neither models:/NAME/VERSION nor models:/NAME@ALIAS")
        return contestants

    @field_validator("fixed_prompts", mode="before")
    @classmethod
    def _is_no_file(cls, given: Any) -> Any:
        if isinstance(given, str):
            raise ValueError(f"must be a list of prompts; set prompts_file if {given} is a file of prompts")
        return given

    @model_validator(mode="after")
    def _fixed_prompts_fit(self) -> Self:
        wrong: dict[Any, str] = {}
        if twice := [prompt for prompt, num in Counter(self.fixed_prompts).items() if num > 1]:
            wrong["fixed_prompts",] = (
                f"{twice[0]!r} is listed twice; remove one, or put the prompts into a file (prompts_file), where "
                "repeated ones count once"
            )
        if self.num_prompts is None and self.prompts_file is None:
            wrong["num_prompts",] = "must be a number, since null means all of prompts_file, and there is none"
        elif self.num_prompts is not None and self.num_prompts < len(self.fixed_prompts):
            wrong["num_prompts",] = f"must be at least {len(self.fixed_prompts)}, the number of fixed_prompts"
        refuse(self, wrong)
        return self


class Wanted(Section):
    """Pictures that are known to be of the kind that curation should find. name: what a page calls them. column: of the
    raw corpus's parquets; contains: text that is in it for these pictures and for no other.
    """

    name: Text
    column: Text
    contains: Text


class AutomaticReport(Section):
    """The report that needs no votes. seed: of the bootstrap of the naming rates' intervals. wanted: which pictures are
    known to be of the wanted kind (emu_steps.wanted); null if nothing says it.
    """

    seed: Seed
    wanted: Wanted | None = None


class AppealVotes(Section):
    """Who decides on appeal. voters: as for pictures (curation.CurationVotes). Of the rubric panel: num_raters;
    repeat_share, the share of the pairs that is shown again with sides swapped; seed, which decides which model is on
    the left, and the repeats.
    """

    voters: Voters = "people, then panel"
    num_raters: Few
    repeat_share: Share
    seed: Seed


class FaithfulnessVotes(Section):
    """Who decides on faithfulness. voters: as for pictures (curation.CurationVotes). Of the rubric panel: num_raters,
    and seed, which decides which model is on the left. It has no repeats, because its raters always give the same
    answer.
    """

    voters: Voters = "people, then panel"
    num_raters: Few
    seed: Seed


class PreferenceReport(Section):
    """A report on side-by-side votes. num_bootstrap: resamples over prompts per interval. seed: of the resamples."""

    num_bootstrap: Resamples
    seed: Seed


class RegisteredModel(Section):
    """What the reports on a champion must show (emu_steps.verdicts). Bounds that every model would meet are refused.

    name: in MLflow's registry, without / : or @. min_appeal_win: share of the decided prompts that the candidate must
    win. faithfulness_margin: points of wins minus losses that it may lose; 20 is one prompt in five. max_judge_error:
    share of known pairs on which the judge may be wrong; guessing among the four answers is wrong on 0.75, and a judge
    must be clearly better, so at most 0.5. max_near_copies: share of the candidate's pictures.
    """

    name: Annotated[str, Field(pattern=r"^[^/:@\s]+$", max_length=200)]
    min_appeal_win: Annotated[Number, Field(ge=0.5, lt=1)]
    faithfulness_margin: Annotated[Number, Field(gt=0, le=20)] = 5.0
    max_judge_error: Annotated[Number, Field(gt=0, le=0.5)] = 0.5
    max_near_copies: Annotated[Number, Field(gt=0, lt=1)]


class EvaluationSections(Section):
    """How models are compared. comparison: two of evaluation_images.contestants, the candidate first, to which all
    votes and reports refer."""

    faithfulness_judge: FaithfulnessJudge
    evaluation_images: EvaluationImages
    comparison: tuple[Text, Text] = ("tuned", "pretrained")
    automatic_report: AutomaticReport
    appeal_votes: AppealVotes
    appeal_report: PreferenceReport
    faithfulness_votes: FaithfulnessVotes
    faithfulness_report: PreferenceReport
    registered_model: RegisteredModel
