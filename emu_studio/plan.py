"""The plan of a round: everything that is fixed before the first person sees a picture.

A plan never changes once its round is open. Its digest is in every vote, so that a vote says by which question, which
guideline and which rules it was cast; what must change later is an amendment, recorded beside the plan.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from emu_data.votes.vote import APPEAL_DECISIONS, CURATION_DECISIONS, FAITHFULNESS_DECISIONS, SKIPPED, UNSURE

Role = Literal["generalist", "specialist", "rater", "lead"]
ROLES: tuple[Role, ...] = ("generalist", "specialist", "rater", "lead")
Question = Literal["generalist", "specialist", "captions", "appeal", "faithfulness"]
CHOOSING: tuple[Question, ...] = ("generalist", "specialist")
PAIRS: tuple[Question, ...] = ("appeal", "faithfulness")
DECISIONS: dict[str, tuple[str, ...]] = {
    "generalist": (*CURATION_DECISIONS, SKIPPED),
    "specialist": (*CURATION_DECISIONS, SKIPPED, UNSURE),
    "captions": (SKIPPED,),  # a caption is no vote
    "appeal": (*APPEAL_DECISIONS, SKIPPED),
    "faithfulness": (*FAITHFULNESS_DECISIONS, SKIPPED),
}
# The parts of the specialists' guideline, which are what a drop names (Emu paper, sec. 3.3, in our words).
PARTS = ("composition", "light", "colour", "subject", "story")
NAME = r"^[a-z][a-z0-9_-]{0,39}$"  # of a round and of its folder
UNSAFE = "unsafe"  # the reason of a drop, which a lead must see; chosen here


class Stop(BaseModel):
    """When a round may be closed before everything was seen.

    kind: "all": when each item has its votes. "wanted": a heuristic, when `target` pictures were kept. "misses": a
    heuristic, after `misses` pictures in a row that nobody kept. "estimate": an estimator, when the probe's scores say
    that `recall` of the keepers were found (QuantCI, arXiv 2106.09871). "certificate": when the control sample
    certifies that `recall` of the keepers were found, at `confidence` (QBCB, arXiv 2108.12746).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["all", "wanted", "misses", "estimate", "certificate"] = "all"
    misses: int = Field(default=200, ge=1)
    recall: float = Field(default=0.8, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)


class RoundPlan(BaseModel):
    """The plan of one round. Numbers without another source are chosen here.

    name: of the round. folder: of data/votes, in which its votes are recorded; "" where it is called as the round.
    roles: who may take part. raters_per_item: how many people decide on each item.
    target: pictures that are wanted at the end (choosing), None if there is no such number. planned_prompts: prompts
    (comparing) after which the win rate is shown; None: it is shown as an anytime-valid sequence. seed: of orders,
    sides and samples. sheet_size: pictures on a contact sheet. explore_share: of the queue that is drawn without the
    probe. num_control: pictures drawn once, uniformly, before the probe exists. repeat_share: of the pairs that a rater
    sees again with swapped sides. lease_minutes: how long an item is reserved for who was shown it. min_seconds: faster
    decisions are marked as too fast. guideline, consent: texts, a paragraph per blank line. judges_may_choose: whether
    who chose the pictures may judge them; a lead who allows it says so in the plan. is_evaluation: whether the round
    measures models, so that its votes never become preference pairs to train on; pairs do unless the plan says no.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    folder: str = Field(default="", pattern=f"^$|{NAME}")
    question: Question
    roles: tuple[Role, ...]
    raters_per_item: int = Field(default=1, ge=1, le=50)
    target: int | None = Field(default=None, ge=1)
    planned_prompts: int | None = Field(default=None, ge=1)
    seed: int = 0
    sheet_size: int = Field(default=12, ge=6, le=24)
    explore_share: float = Field(default=0.15, ge=0, le=1)
    num_control: int = Field(default=0, ge=0)
    repeat_share: float = Field(default=0.05, ge=0, le=0.5)
    lease_minutes: float = Field(default=15.0, gt=0, le=24 * 60)
    min_seconds: float = Field(default=0.4, ge=0)
    stop: Stop = Stop()
    guideline: str = Field(min_length=1)
    consent: str = Field(min_length=1)
    judges_may_choose: bool = False
    is_evaluation: bool = Field(default_factory=lambda values: values.get("question") in PAIRS)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.roles:
            raise ValueError("roles: name at least one role that may take part")
        if wrong := [one for one in (self.name, self.recorded_as) if one in DEFAULTS and one != self.question]:
            raise ValueError(f"the name {wrong[0]} is for rounds of {wrong[0]}: give another name")
        if self.stop.kind == "wanted" and self.target is None:
            raise ValueError("stop: `wanted` needs a target")
        if self.stop.kind in ("estimate", "certificate") and not self.num_control:
            raise ValueError(f"stop: `{self.stop.kind}` needs num_control pictures that are drawn uniformly")
        if self.stop.kind != "all" and self.question in (*PAIRS, "captions"):
            raise ValueError(f"stop: a round of {self.question} ends when all is done, so its kind is `all`")
        if self.question == "captions" and self.raters_per_item != 1:
            raise ValueError("raters_per_item: one person captions a picture, since its last captions count")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the whole plan, guideline included, 64 hex digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def guideline_version(self) -> str:
        """The first eight digits of the guideline's SHA-256, by which people name it."""
        return hashlib.sha256(self.guideline.encode()).hexdigest()[:8]

    @property
    def recorded_as(self) -> str:
        """The name of its folder in data/votes, and of the round in its votes."""
        return self.folder or self.name

    @property
    def is_pairs(self) -> bool:
        """Whether raters compare two pictures."""
        return self.question in PAIRS


CONSENT = (
    "Your decisions are kept under a pseudonym, with the time that each took. Your name is kept in another place and "
    "can be erased at any time; your decisions then stay without it. You may stop whenever you like."
)
GUIDELINES: dict[str, str] = {
    "generalist": (
        "Keep every picture that might be among the best. Here a good picture that is lost costs more than a poor one "
        "that is kept: when you hesitate, keep it.\n\n"
        "Leave out what is blurred, badly lit, cluttered, cut off, or plainly ordinary."
    ),
    "specialist": (
        "Composition: balanced, with depth; the subject is where the eye rests, not cut off, not hidden.\n\n"
        "Light: it shapes the subject; neither dim nor flat nor burnt out.\n\n"
        "Colour and contrast: vivid and in harmony; no single colour drowns the rest.\n\n"
        "Subject and background: the subject stands clear of an uncluttered background, whole and meant, in detail.\n\n"
        "Story: would you remember it? Could it have been taken much better? Is it among the best of its kind?"
    ),
    "captions": (
        "Describe what is in the picture as you would to somebody who will paint it: the subject first, then what it "
        "does, where it is, the light, the style. No file names, no opinions, nothing that cannot be seen.\n\n"
        "Short: one plain phrase of 3 to 12 words. Long: one to three sentences."
    ),
    "appeal": "Which picture would you rather look at? Judge by eye alone; no text is asked for.",
    "faithfulness": (
        "Which picture shows what the text says? Whether it is beautiful does not count. Both, if both show it; "
        "neither, if neither does."
    ),
}
DEFAULTS: dict[str, dict[str, object]] = {
    "generalist": {"roles": ("generalist",), "sheet_size": 12},
    "specialist": {"roles": ("specialist",), "raters_per_item": 3, "lease_minutes": 30.0},
    "captions": {"roles": ("specialist",), "lease_minutes": 60.0},
    "appeal": {"roles": ("rater",), "raters_per_item": 5},  # Emu paper, sec. 4
    "faithfulness": {"roles": ("rater",), "raters_per_item": 3},  # Emu paper, sec. 4
}


def default_plan(question: str, **changes: object) -> RoundPlan:
    """Return the plan of a round that is called as its question, with some fields changed. Raises ValueError for an
    unknown question or a value out of its range."""
    if question not in DEFAULTS:
        raise ValueError(f"there is no question {question!r}; there are: {', '.join(DEFAULTS)}")
    given = {"name": question, "question": question, "guideline": GUIDELINES[question], "consent": CONSENT}
    return _checked({**given, **DEFAULTS[question], **changes}, "the plan")


def read_plan(file: Path) -> RoundPlan:
    """Read a plan from a YAML file that names at least its question. Raises ValueError, saying what is wrong with which
    field."""
    try:
        return parse_plan(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def parse_plan(text: str) -> RoundPlan:
    """Return the plan that a YAML text says. Raises ValueError, saying what is wrong with which field."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or values.get("question") not in DEFAULTS:
        raise ValueError(f"`question` must be one of {', '.join(DEFAULTS)}")
    if unnamed := [name for name in values if not isinstance(name, str)]:
        raise ValueError(f"{unnamed[0]!r} is no field of a plan")
    return default_plan(**values)


def write_plan(plan: RoundPlan) -> str:
    """Return a plan as YAML for people, long texts as they are; parse_plan reads it."""
    return yaml.dump(plan.model_dump(mode="json"), Dumper=_PlanDumper, sort_keys=False, allow_unicode=True, width=110)


class _PlanDumper(yaml.SafeDumper):
    """Writes a text of several paragraphs as a block."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_PlanDumper.add_representer(str, _write_text)


def change_plan(plan: RoundPlan, changes: Mapping[str, object]) -> RoundPlan:
    """Return a plan with some fields changed. Raises ValueError if they do not fit."""
    return _checked({**plan.model_dump(), **changes}, "the plan")


def _checked(values: dict[str, object], where: str) -> RoundPlan:
    try:
        return RoundPlan.model_validate(values)
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, e['loc'])) or 'plan'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise ValueError(f"{where} does not fit: {'; '.join(told)}") from error
