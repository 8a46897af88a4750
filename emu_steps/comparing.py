"""Compares models of a study with the models that they were tuned from, on the same prompts and seeds.

Rubric panels vote, as in an evaluation where no person did; the faithfulness judge never took part in filtering. A
study has too many models for people to judge, so its figures are labelled as a panel's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.formatting import format_percent, format_signed
from emu_data.ledger import SOUND, read_ledger
from emu_data.shards import read_images, read_manifest
from emu_data.votes.intervals import Interval, bootstrap_mean, exact_rate, is_above, is_below
from emu_data.votes.items import Pair
from emu_data.votes.panels.appeal import AppealPanel
from emu_data.votes.preference import Preference, summarise_preference
from emu_data.votes.vote import Vote, votes_to_frame
from emu_reports.studies import Outcome
from emu_steps.evaluating import choose_prompts, draw_all, known_subjects
from emu_steps.layout import Layout
from emu_steps.params import Comparing, Params

NUM_APPEAL, NUM_FAITHFULNESS = 5, 3  # raters of the panels (paper, sec. 4)
SEEDS_APART = 100_003  # between a prompt's pictures, so that no two prompts share a seed; any large number


@dataclass(frozen=True)
class DrawnBy:
    """A model's pictures of the prompts, uint8 (num_seeds, N, H, W, 3), and the judge's embeddings of them, (num_seeds,
    N, D)."""

    pictures: np.ndarray
    embedded: np.ndarray


class Comparator:
    """The prompts, the judges and the curated pictures with which every model of a study is compared.

    section: how. Raises ValueError if there are no prompts, or fewer than two curated pictures.
    """

    def __init__(self, layout: Layout, params: Params, section: Comparing) -> None:
        from emu_models.evaluation.judge import load_faithfulness_judge
        from emu_models.evaluation.memorisation import nearest_among

        self.layout, self.params, self.section = layout, params, section
        every, _ = choose_prompts(layout, params)
        places = np.linspace(0, len(every) - 1, max(1, round(section.prompt_share * len(every))), dtype=int)
        self.prompts = every.iloc[np.unique(places)].reset_index(drop=True)
        self.judge, _ = load_faithfulness_judge(layout.model("faithfulness_judge"), layout.root)
        self.known = known_subjects(self.prompts, layout.model("faithfulness_judge"))
        ledger = read_ledger(layout.filtered / "ledger")
        captions = ledger.loc[ledger["first_failed_gate"].isin(SOUND), "caption"].dropna()
        self.subjects = {*captions, *self.known[self.known != ""]}
        self.size = params.quality_tuned.resolution
        curated = read_images(layout.curated, read_manifest(layout.curated)["key"].tolist(), self.size)
        self.among = nearest_among(self.judge.embed_images(curated), curated)

    def draw(self, model: Path, name: str) -> DrawnBy:
        """Return what a model draws of the prompts, with each of num_seeds seeds."""
        drawn = []
        for number in range(self.section.num_seeds):
            prompts = self.prompts.assign(seed=self.prompts["seed"] + number * SEEDS_APART)
            images = draw_all(model, prompts, self.params.evaluation_images, self.size, {}, name)
            drawn.append(np.stack([np.asarray(image) for image in images]))
        return DrawnBy(np.stack(drawn), np.stack([self.judge.embed_images(images) for images in drawn]))

    def outcome(self, name: str, before: DrawnBy, after: DrawnBy, shards: Path, keys: Sequence[str]) -> Outcome:
        """Compare a tuned model's pictures with those of the model before, each from `draw`. shards, keys: the pictures
        that it was tuned on."""
        from emu_models.evaluation.faithfulness import FaithfulnessPanel

        pairs = self._pairs(before.pictures[0], after.pictures[0])
        appeal = self._summarise(AppealPanel(NUM_APPEAL, self.section.seed, 0.0).vote(pairs))
        named = [pair for pair in pairs if pair.caption]
        judges = FaithfulnessPanel(self.judge, self.subjects, NUM_FAITHFULNESS, self.section.seed)
        tuned_on = read_images(shards, list(keys), self.size)
        learned = self.judge.embed_images(tuned_on), keys, tuned_on
        return Outcome(
            name=name,
            num_learned=len(keys),
            appeal=appeal,
            faithfulness=self._summarise(judges.vote(named)) if named else None,
            copies_before=self._copies(before, *learned),
            copies_after=self._copies(after, *learned),
            variety_before=self._variety(before),
            variety_after=self._variety(after),
            verdict=describe_verdict(appeal, self.params.registered_model.min_appeal_win),
        )

    def _pairs(self, before: np.ndarray, after: np.ndarray) -> list[Pair]:
        rows = zip(self.prompts["key"], self.known, after, before, strict=True)
        return [Pair(key, a, b, caption) for key, caption, a, b in rows]

    def _summarise(self, votes: list[Vote]) -> Preference:
        table = votes_to_frame(votes)
        return summarise_preference(table, seed=self.section.seed, num_resamples=self.section.num_bootstrap)

    def _copies(self, drawn: DrawnBy, embedded: np.ndarray, keys: Sequence[str], tuned_on: np.ndarray) -> Interval:
        """Return the share of pictures that are nearer to one that was tuned on than curated pictures are to each
        other. embedded: of tuned_on."""
        from emu_models.evaluation.memorisation import find_nearest, is_near_copy

        pictures, theirs = (np.concatenate(list(found)) for found in (drawn.pictures, drawn.embedded))
        is_near = is_near_copy(find_nearest(theirs, embedded, keys, pictures, tuned_on), self.among)
        shares_N = is_near.to_numpy().reshape(len(drawn.pictures), -1).mean(0)
        return exact_rate(float(shares_N.sum()), len(shares_N))

    def _variety(self, drawn: DrawnBy) -> Interval:
        """Return how far a prompt's pictures are from each other: one minus the cosine of the judge's embeddings, the
        mean over pairs of seeds, 0..2."""
        first, second = np.triu_indices(len(drawn.embedded), 1)
        away_N = 1 - (drawn.embedded[first] * drawn.embedded[second]).sum(-1).mean(0)
        return bootstrap_mean(away_N, np.random.default_rng(self.section.seed))


def describe_verdict(appeal: Preference, min_win: float) -> str:
    """Say whether tuning made pictures more appealing to the panel, by the gate that a release has to pass."""
    won = appeal.decided_win
    if is_above(won, 100 * min_win):
        return "more appealing to the panel"
    if is_below(won, 100 * min_win):
        return "less appealing to the panel"
    return f"{appeal.num_prompts} prompts do not decide"


def describe_outcome(outcome: Outcome) -> dict[str, float | str]:
    """Return a row of a table that shows an outcome in short."""
    faithful = outcome.faithfulness
    return {
        "what": outcome.name,
        "tuned on": outcome.num_learned,
        "appeal won": format_percent(outcome.appeal.win.estimate),
        "appeal lost": format_percent(outcome.appeal.lose.estimate),
        "faithfulness won - lost": format_signed(faithful.win_less_lose.estimate) if faithful else "unknown",
        "near-copies before": format_percent(outcome.copies_before.estimate),
        "near-copies after": format_percent(outcome.copies_after.estimate),
        "verdict": outcome.verdict,
    }


def comparison_sheet(rows: Sequence[tuple[str, np.ndarray]], num_columns: int) -> Image.Image:
    """Return rows of pictures under each other, each with its name. rows: name, uint8 (N, H, W, 3)."""
    from emu_reports.sheets import contact_sheet

    shown = np.concatenate([images[:num_columns] for _, images in rows])
    labels = [name if number == 0 else "" for name, images in rows for number in range(len(images[:num_columns]))]
    return contact_sheet(shown, labels, columns=min(num_columns, len(rows[0][1])), tile=96)


def report_rows(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return the outcomes as a table."""
    return pd.DataFrame([describe_outcome(outcome) for outcome in outcomes])
