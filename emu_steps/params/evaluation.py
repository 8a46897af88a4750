"""How models are judged: faithfulness_judge, evaluation_images, the rounds of side-by-side votes, the reports, and what
registered_model must show."""

import re
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from emu_steps.params.filters import EncoderPixels
from emu_steps.params.kinds import (
    Batch,
    Count,
    Few,
    LearningRate,
    Number,
    Section,
    Seed,
    Share,
    Steps,
    Text,
    Whole,
    refuse,
)

REGISTERED = "models:/"  # how the address of a registered version begins
REGISTERED_VERSION = re.compile(r"models:/([^/@]+)(?:@(.+)|/(\d+))")  # name, and alias or version
TUNED = "data/models/quality_tuned"
NUM_TIMESTEPS = 1000  # of emu_models.diffusion.schedule (not imported: it brings torch), the most denoising steps
# Resamples of a bootstrap, whose 2.5th and 97.5th percentiles are read: fewer than 100 have none to read.
Resamples = Annotated[Whole, Field(ge=100, le=1_000_000)]


class FaithfulnessJudge(Section):
    """Who votes on faithfulness. weights: a folder or name of open_clip weights to take instead of training on what
    passed the gates; held_share: of these pictures, kept from training, on which its error is measured. image_size,
    num_steps, batch_size, learning_rate, seed: as in AlignmentModel."""

    weights: Text | None = None
    held_share: Annotated[Number, Field(gt=0, lt=1)]
    image_size: EncoderPixels
    num_steps: Steps
    batch_size: Batch
    learning_rate: LearningRate
    seed: Seed


class EvaluationImages(Section):
    """contestants: name -> where its pictures come from, see emu_steps.contestants; a path is from the project's root.
    Left out, they are what quality_tuned.start_from names, "pretrained", and quality_tuned, "tuned". fixed_prompts:
    drawn at every evaluation and during trainings, so that pictures compare. num_prompts: in all; those beyond the
    fixed ones are captions of the corpus, drawn by `seed`, which is also the first picture's seed.
    num_inference_steps: denoising steps. guidance_scale: of classifier-free guidance; 1 or less is none."""

    contestants: Annotated[dict[str, Text], Field(min_length=2)]
    fixed_prompts: list[Text]
    num_prompts: Annotated[Count, Field(le=10**6)]
    num_inference_steps: Annotated[Whole, Field(gt=0, le=NUM_TIMESTEPS)]
    guidance_scale: Annotated[Number, Field(ge=0, le=100)]
    seed: Seed

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

    @model_validator(mode="after")
    def _fixed_prompts_fit(self) -> Self:
        wrong: dict[Any, str] = {}
        if twice := sorted({prompt for prompt in self.fixed_prompts if self.fixed_prompts.count(prompt) > 1}):
            wrong["fixed_prompts",] = f"{twice[0]!r} stands there twice"
        if self.num_prompts < len(self.fixed_prompts):
            wrong["num_prompts",] = f"must be at least {len(self.fixed_prompts)}, the number of fixed_prompts"
        refuse(self, wrong)
        return self


class AutomaticReport(Section):
    """seed: of the resamples of the naming rates' intervals."""

    seed: Seed


class AppealVotes(Section):
    """The rubric panel. num_raters: how many sit on it. repeat_share: of the pairs, shown again with sides swapped.
    seed: of which model stands left, and of the repeats."""

    num_raters: Few
    repeat_share: Share
    seed: Seed


class FaithfulnessVotes(Section):
    """The rubric panel. num_raters: how many sit on it. seed: of which model stands left. It has no repeats: its raters
    cannot waver."""

    num_raters: Few
    seed: Seed


class PreferenceReport(Section):
    """num_bootstrap: resamples, by prompt, of an interval. seed: of these."""

    num_bootstrap: Resamples
    seed: Seed


class RegisteredModel(Section):
    """What the reports of a champion must show (emu_steps.verdicts). A bound that nothing can miss is refused.

    name: in MLflow's registry, without / : or @. min_appeal_win: share of the decided prompts. faithfulness_margin:
    points of win less lose that it may lose; 20 is a prompt in five. max_judge_error: share of known pairs; a guess
    among the four answers is wrong in 0.75, so half is the most that a judge may err who is to find harm.
    max_near_copies: share of the tuned pictures.
    """

    name: Annotated[str, Field(pattern=r"^[^/:@\s]+$", max_length=200)]
    min_appeal_win: Annotated[Number, Field(ge=0.5, lt=1)]
    faithfulness_margin: Annotated[Number, Field(gt=0, le=20)] = 5.0
    max_judge_error: Annotated[Number, Field(gt=0, le=0.5)] = 0.5
    max_near_copies: Annotated[Number, Field(gt=0, lt=1)]
