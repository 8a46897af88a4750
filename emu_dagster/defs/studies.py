"""Studies beside the graph's own model: other families of networks, and other tunings (Emu paper, sec. 4.4)."""

from pathlib import Path

import dagster as dg

from emu_dagster.declarations.declared import declared
from emu_dagster.defs.evaluation import LABELS
from emu_dagster.defs.pretraining import KINDS, TEXT_AND_SHEET
from emu_dagster.resources.recorder import Record

GROUP = "studies"
# What decides how models of a study are compared.
COMPARED_BY = [
    "evaluation_images",
    "quality_tuned.resolution",
    "quality_tuned.start_from",
    "registered_model.min_appeal_win",
    *LABELS,
]


@declared(
    group=GROUP,
    kinds=KINDS,
    reads=["raw_corpus", "filtered_corpus", "curated_set", "autoencoder"],
    outs=["data/models/family_study"],
    params=["family_study", "quality_tuned.captions", *TEXT_AND_SHEET],
    how=["launch"],
    pool="gpu",
)
def family_study(record: Record) -> dg.MaterializeResult:
    """Networks of other families (family_study.families), each pretrained on the rows that passed the gates and then
    tuned on the curated set. Without families it is empty.
    """
    from emu_dagster.training.train import run_jobs
    from emu_steps.families import stages_of
    from emu_steps.training_jobs import publish

    stages, done, results = stages_of(record.layout, record.params), {}, []
    for number in range(max(map(len, stages.values()), default=0)):
        now = [family for family, some in stages.items() if number < len(some)]
        jobs = [stages[family][number].make(done.get(family, {})) for family in now]
        for family, result in zip(now, run_jobs(record, jobs), strict=True):
            done.setdefault(family, {})[stages[family][number].name] = Path(result["folder"]) / "result"
            results.append(result)
    publish(record.layout, record.key, results)
    seconds = {f"seconds_{r['name']}": r["timings"]["seconds"] for r in results if "timings" in r}
    return record.result({"num_families": len(stages), **seconds})


@declared(
    group=GROUP,
    kinds={"pytorch", "diffusers"},
    reads=["family_study", "quality_tuned", "curated_set", "faithfulness_judge", "filtered_corpus"],
    outs=["data/reports/generality_report"],
    params=["generality_report", "family_study.families", *COMPARED_BY],
    files=["quality_tuned.start_from", "evaluation_images.prompts_file"],
    pool="gpu",
)
def generality_report(record: Record) -> dg.MaterializeResult:
    """Whether tuning on the curated set helps every family of networks: appeal, faithfulness, near-copies and variety
    before and after, with intervals.
    """
    from emu_steps.families import report_generality

    metrics, table, sheet = report_generality(record.layout, record.params, record.inputs)
    page = record.layout.report(record.key) / "index.html"
    pictures = {"before_and_after": sheet} if len(table) else {}
    return record.result(metrics, pictures, pages={"report": page}, tables={"families": table} if len(table) else {})


@declared(
    group=GROUP,
    kinds={"pytorch", "diffusers"},
    reads=["curated_set", "filtered_corpus", "faithfulness_judge"],
    outs=["data/reports/tuning_study"],
    params=["tuning_study", "quality_tuned", *TEXT_AND_SHEET, *COMPARED_BY],
    how=["launch"],
    files=["quality_tuned.start_from", "evaluation_images.prompts_file"],
    pool="gpu",
)
def tuning_study(record: Record) -> dg.MaterializeResult:
    """Tunings that differ in how many pictures they learn, for how long, who chose them, or in their captions, compared
    with the model before tuning. Their models stay in data/states/tuning_study.
    """
    from emu_dagster.training.train import run_jobs
    from emu_steps.tuning_study import arms_of, make_jobs, report_tunings

    layout, arms = record.layout, arms_of(record.params)
    results = run_jobs(record, make_jobs(layout, record.params, arms)) if arms else []
    models = [Path(result["folder"]) / "result" for result in results]
    metrics, table, sheet = report_tunings(layout, record.params, arms, models, record.inputs)
    page = layout.report(record.key) / "index.html"
    pictures = {"tunings": sheet} if arms else {}
    return record.result(metrics, pictures, pages={"report": page}, tables={"tunings": table} if arms else {})
