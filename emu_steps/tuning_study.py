"""The arms of tuning_study: tunings like quality_tuned that differ in one thing each, and the report that compares them
with the model before tuning (Emu paper, sec. 4.4 and fig. 7: a hundred pictures already help)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.ledger import read_ledger
from emu_data.shards import read_manifest
from emu_steps.captioning import pick_captions
from emu_steps.layout import Layout
from emu_steps.params import Params, TuningStudy
from emu_steps.training_jobs import denoiser_job, write_rows

if TYPE_CHECKING:
    from emu_models.latent.jobs import DenoiserJob

ASSET = "tuning_study"
NUM_SHOWN = 8  # prompts on the sheet; chosen here


@dataclass(frozen=True)
class Arm:
    """One tuning. part: of the study, "share", "length", "chosen_by" or "captions". share: of the curated set. budget:
    "steps" or "epochs". stop_after: the last step, None for num_steps. chosen_by: None for the curated set. seed: added
    to quality_tuned.seed, and of the subset.
    """

    name: str
    part: str
    num_steps: int
    captions: str
    share: float = 1.0
    budget: str = "steps"
    stop_after: int | None = None
    chosen_by: str | None = None
    seed: int = 0


def arms_of(params: Params) -> list[Arm]:
    """Return the arms that params ask for; each name is there once. The whole set has one budget, since equal steps are
    equal epochs there."""
    study, tuning = params.tuning_study, params.quality_tuned
    whole, captions, first = tuning.num_steps, tuning.captions, study.seeds[0]
    arms = [
        Arm(
            f"share_{share}_{budget}_seed_{seed}",
            "share",
            whole if budget == "steps" else max(1, round(share * whole)),
            captions,
            share,
            budget,
            seed=seed,
        )
        for share in sorted({*study.shares} - {0.0})
        for budget in (study.budgets if share < 1 else ["steps"])
        for seed in study.seeds
    ]
    for last in (max(1, round(length * whole)) for length in sorted(study.lengths)):
        # up to the whole length the learning rate falls as in the whole tuning, which is only stopped
        arms.append(Arm(f"after_{last}_steps", "length", max(whole, last), captions, stop_after=last, seed=first))
    for name in study.chosen_by:
        arms.append(Arm(f"chosen_by_{name}", "chosen_by", whole, "corpus", chosen_by=name, seed=first))
    arms += [Arm(f"captions_{which}", "captions", whole, which, seed=first) for which in study.captions]
    return list({arm.name: arm for arm in arms}.values())


def rows_of(layout: Layout, study: TuningStudy, arm: Arm) -> tuple[Path, pd.DataFrame]:
    """Return the shards of an arm's pictures, and their rows (key, caption). Subsets of a seed are nested: a smaller
    one is part of a larger one. Raises ValueError if the ledger has no such column, or too few rows have a value."""
    curated = read_manifest(layout.curated)
    if arm.chosen_by is None:
        rows = pick_captions(curated, arm.captions)
        order = np.random.default_rng(arm.seed).permutation(len(rows))
        return layout.curated, rows.iloc[np.sort(order[: max(1, math.ceil(arm.share * len(rows)))])]
    candidates, column = read_manifest(layout.filtered)[["key", "caption"]], study.chosen_by[arm.chosen_by]
    if column is None:
        order = np.random.default_rng(arm.seed).permutation(len(candidates))
        chosen = candidates.iloc[np.sort(order[: len(curated)])]
    else:
        ledger = read_ledger(layout.filtered / "ledger")
        if column not in ledger.columns:
            known = ", ".join(sorted(ledger.select_dtypes("number").columns))
            raise ValueError(
                f"{ASSET}.chosen_by.{arm.chosen_by}: the ledger has no column {column!r}; its numbers are {known}"
            )
        scored = candidates.merge(ledger[["key", column]], on="key").dropna(subset=column)
        chosen = scored.sort_values([column, "key"], ascending=[False, True]).head(len(curated)).sort_values("key")
    if len(chosen) < len(curated):
        raise ValueError(
            f"{ASSET}.chosen_by.{arm.chosen_by}: only {len(chosen)} filtered pictures can be chosen, and the curated "
            f"set has {len(curated)}"
        )
    return layout.filtered, chosen[["key", "caption"]]


def make_jobs(layout: Layout, params: Params, arms: Sequence[Arm]) -> "list[DenoiserJob]":
    """Return the arms' trainings, which hold nothing out and do not stop early, so that their lengths are as asked."""
    jobs = []
    for arm in arms:
        shards, rows = rows_of(layout, params.tuning_study, arm)
        section = params.quality_tuned.model_copy(
            update={"num_steps": arm.num_steps, "max_rise": 0.0, "seed": params.quality_tuned.seed + arm.seed}
        )
        path = write_rows(layout, f"{ASSET}_{arm.name}", rows)
        start = layout.root / section.start_from
        job = denoiser_job(layout, params, ASSET, shards, path, section, start)
        loop = replace(job.loop, stop_after=arm.stop_after)
        jobs.append(replace(job, name=f"{ASSET}_{arm.name}", loop=loop, hold_out=False, prompts=()))
    return jobs


def report_tunings(
    layout: Layout, params: Params, arms: Sequence[Arm], models: Sequence[Path], judged: Mapping[str, str]
) -> tuple[dict[str, float], pd.DataFrame, Image.Image]:
    """Write data/reports/tuning_study; return metrics, a table and a sheet of pictures. models: the folder of each
    arm's finished model. judged: asset -> md5 of the inputs."""
    from emu_reports import studies
    from emu_reports.page import Run
    from emu_steps.comparing import Comparator, comparison_sheet, report_rows

    run, folder = Run(params.profile, params.toy, judged), layout.report(ASSET)
    if not arms:
        studies.write_tuning_report(folder, [], [], None, run)
        return {"num_arms": 0}, pd.DataFrame(), Image.new("RGB", (1, 1))
    comparator = Comparator(layout, params, params.tuning_study)
    before = comparator.draw(layout.root / params.quality_tuned.start_from, "before")
    found, shown = [], [("before", before.pictures[0])]
    for arm, model in zip(arms, models, strict=True):
        after = comparator.draw(model, arm.name)
        shards, rows = rows_of(layout, params.tuning_study, arm)
        outcome = comparator.outcome(arm.name, before, after, shards, rows["key"].tolist())
        num_steps = arm.num_steps if arm.stop_after is None else arm.stop_after
        found.append(studies.Arm(arm.part, arm.share, arm.budget, num_steps, arm.seed, outcome))
        if arm.seed == params.tuning_study.seeds[0]:
            shown.append((arm.name, after.pictures[0]))
    sheet = comparison_sheet(shown, NUM_SHOWN)
    studies.write_tuning_report(folder, found, comparator.prompts["prompt"].tolist()[:NUM_SHOWN], sheet, run)
    outcomes = [one.outcome for one in found]
    metrics = {"num_arms": float(len(arms)), "num_prompts": float(len(comparator.prompts))}
    return metrics | {k: v for one in outcomes for k, v in one.metrics().items()}, report_rows(outcomes), sheet
