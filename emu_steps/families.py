"""The trainings of family_study: for each family in params.yaml, the stages that make its pretrained and its tuned
model, and the report that compares the two."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from emu_data.shards import read_manifest
from emu_steps.layout import Layout
from emu_steps.params import (
    CascadeFamily,
    Family,
    FamilyTraining,
    MaskedFamily,
    Params,
    Tokenizer,
    TransformerFamily,
)
from emu_steps.training_jobs import (
    at_every_level,
    places_of,
    text_encoders_of,
    write_curated_rows,
    write_gated_rows,
    write_training_rows,
)

if TYPE_CHECKING:
    from emu_models.training.jobs import LoopJob

ASSET = "family_study"
PRETRAINED, TUNED = "pretrained", "tuned"  # the last stage of each half, and the name of its rows
TOKENIZER = "tokenizer"  # a stage, and the name of its rows
NUM_SHOWN = 8  # prompts on the sheet; chosen here

Done = Mapping[str, Path]  # stage -> the folder of its finished model


@dataclass(frozen=True)
class Stage:
    """A training of a family. make: the job, from the models of the family's earlier stages."""

    name: str
    make: Callable[[Done], "LoopJob"]


def model_of(layout: Layout, family: str, stage: str) -> Path:
    """Return the folder in which family_study publishes a stage's model."""
    return layout.model(ASSET) / f"{family}_{stage}"


def stages_of(layout: Layout, params: Params) -> dict[str, list[Stage]]:
    """Return family -> its stages, in order, and write the rows that they learn. Stages of different families do not
    depend on each other."""
    section = params.family_study
    if not section.families:
        return {}
    rows = {
        PRETRAINED: (layout.raw, write_gated_rows(layout, ASSET, section.gates)),
        TUNED: (layout.curated, write_curated_rows(layout, params.quality_tuned.captions, f"{ASSET}_{TUNED}")),
    }

    def given_to(family: str) -> Given:
        def given(stage: str, whose: str) -> dict[str, Any]:
            return _given(layout, params, family, stage, *(raw_rows(family) if whose == TOKENIZER else rows[whose]))

        return given

    def raw_rows(family: str) -> tuple[Path, Path]:
        found = section.families[family]
        assert isinstance(found, MaskedFamily), "only a tokenizer learns all raw pictures"
        return layout.raw, write_training_rows(layout, found.resolution, found.tokenizer.max_images)

    return {name: STAGES[type(family)](given_to(name), family) for name, family in section.families.items()}


Given = Callable[[str, str], dict[str, Any]]  # stage, the name of its rows -> fields of any job


def _given(layout: Layout, params: Params, family: str, stage: str, shards: Path, rows: Path) -> dict[str, Any]:
    return {
        **places_of(layout, ASSET, shards, rows),
        "name": f"{ASSET}_{family}_{stage}",
        "out": model_of(layout, family, stage),
        "resolution": params.family_study.families[family].resolution,
        "num_text_tokens": params.pretrained_low.num_text_tokens,
        "text_encoder": text_encoders_of(layout, params.pretrained_low),
        # the report shows pictures of the finished models; sheets and previews only if they are asked for
        "prompts": params.evaluation_images.fixed_prompts if params.launch.of(ASSET).sample_every else [],
        "guidance_scale": params.evaluation_images.guidance_scale,
        "launch": params.launch,
        "autoencoder": layout.model("autoencoder"),
    }


def _settings(given: dict[str, Any], training: FamilyTraining | Tokenizer, **others: Any) -> dict[str, Any]:
    launch = given["launch"]
    settings = {**training.model_dump(), **launch.of(ASSET).model_dump(), **others}
    return {**at_every_level(settings, launch), **given}


def _transformer_stages(given: Given, family: TransformerFamily) -> list[Stage]:
    from emu_models.latent.jobs import DenoiserJob
    from emu_models.training.jobs import make

    def pretrain(done: Done) -> "LoopJob":
        settings = _settings(given(PRETRAINED, PRETRAINED), family.pretraining)
        new = {"transformer": family.transformer.model_dump(), "noise_shift": family.noise_shift}
        if family.transformer.bottleneck is not None:
            settings["autoencoder"] = None
        return make(DenoiserJob, {**settings, **new})

    def tune(done: Done) -> "LoopJob":
        settings = _settings(given(TUNED, TUNED), family.tuning)
        return make(DenoiserJob, {**settings, "autoencoder": None, "start_from": done[PRETRAINED]})

    return [Stage(PRETRAINED, pretrain), Stage(TUNED, tune)]


def _cascade_stages(given: Given, family: CascadeFamily) -> list[Stage]:
    from emu_models.pixel.jobs import CascadeJob
    from emu_models.training.jobs import make

    new = {name: getattr(family, name) for name in ("ratio", "max_augmentation", "augmentation")}

    def stage(name: str, half: str, training: FamilyTraining, **own: Any) -> Stage:
        """Each of `own`: a value, or a function of what is done that returns it."""

        def make_job(done: Done) -> "LoopJob":
            values = {key: value(done) if callable(value) else value for key, value in own.items()}
            return make(CascadeJob, {**_settings(given(name, half), training), **new, **values})

        return Stage(name, make_job)

    base, upscaler = family.denoiser.model_dump(), family.upscaler.model_dump()
    return [
        stage("base", PRETRAINED, family.pretraining, stage="base", denoiser=base),
        stage(
            PRETRAINED,
            PRETRAINED,
            family.upscaler_pretraining,
            stage="upscaler",
            denoiser=upscaler,
            patch=family.patch,
            base=lambda done: done["base"],
        ),
        stage("base_tuned", TUNED, family.tuning, stage="base", start_from=lambda done: done["base"]),
        stage(
            TUNED,
            TUNED,
            family.upscaler_tuning,
            stage="upscaler",
            start_from=lambda done: done[PRETRAINED],
            base=lambda done: done["base_tuned"],
        ),
    ]


def _masked_stages(given: Given, family: MaskedFamily) -> list[Stage]:
    from emu_models.masked.jobs import MaskedJob, TokenizerJob
    from emu_models.training.jobs import make

    tokenizer = family.tokenizer.model_dump()
    network = {name: tokenizer[name] for name in ("levels", "fold", "widths", "encoder_blocks", "decoder_blocks")}
    losses = {name: tokenizer[name] for name in ("adversarial_weight", "adversarial_start")} | {"kl_weight": 0.0}

    def tokenize(done: Done) -> "LoopJob":
        settings = _settings(given(TOKENIZER, TOKENIZER), family.tokenizer, losses=losses)
        return make(TokenizerJob, {**settings, "network": network})

    def pretrain(done: Done) -> "LoopJob":
        settings = _settings(given(PRETRAINED, PRETRAINED), family.pretraining)
        new = {"tokenizer": done[TOKENIZER], "transformer": family.transformer.model_dump()}
        return make(MaskedJob, {**settings, **new})

    def tune(done: Done) -> "LoopJob":
        return make(MaskedJob, {**_settings(given(TUNED, TUNED), family.tuning), "start_from": done[PRETRAINED]})

    return [Stage(TOKENIZER, tokenize), Stage(PRETRAINED, pretrain), Stage(TUNED, tune)]


STAGES: dict[type[Family], Callable[[Given, Any], list[Stage]]] = {
    TransformerFamily: _transformer_stages,
    CascadeFamily: _cascade_stages,
    MaskedFamily: _masked_stages,
}


def report_generality(
    layout: Layout, params: Params, judged: Mapping[str, str]
) -> tuple[dict[str, float], pd.DataFrame, Image.Image]:
    """Write data/reports/generality_report: every family, and the graph's own latent U-Net, before and after tuning on
    the same curated set. Return metrics, a table and a sheet of pictures. judged: asset -> md5 of the inputs."""
    from emu_reports.page import Run
    from emu_reports.studies import write_generality_report
    from emu_steps.comparing import Comparator, comparison_sheet, report_rows

    run, families = Run(params.profile, params.toy, judged), params.family_study.families
    folder = layout.report("generality_report")
    if not families:
        write_generality_report(folder, [], [], None, run)
        return {"num_families": 0}, pd.DataFrame(), Image.new("RGB", (1, 1))
    comparator = Comparator(layout, params, params.generality_report)
    models = {"latent": (layout.root / params.quality_tuned.start_from, layout.model("quality_tuned"))}
    models |= {name: (model_of(layout, name, PRETRAINED), model_of(layout, name, TUNED)) for name in families}
    keys = read_manifest(layout.curated)["key"].tolist()
    outcomes, shown = [], []
    for name, halves in models.items():
        before, after = (comparator.draw(model, name) for model in halves)
        outcomes.append(comparator.outcome(name, before, after, layout.curated, keys))
        shown += [(f"{name}, before", before.pictures[0]), (f"{name}, after", after.pictures[0])]
    sheet = comparison_sheet(shown, NUM_SHOWN)
    write_generality_report(folder, outcomes, comparator.prompts["prompt"].tolist()[:NUM_SHOWN], sheet, run)
    metrics = {"num_families": float(len(models)), "num_prompts": float(len(comparator.prompts))}
    return metrics | {k: v for one in outcomes for k, v in one.metrics().items()}, report_rows(outcomes), sheet
