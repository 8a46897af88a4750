"""The proof: pictures of both models for the same prompts and seeds, and what judges say (Emu paper, sec. 4)."""

import dagster as dg

from emu_dagster.defs.quality_tuning import BASE
from emu_dagster.recording import Recorder, facts

GROUP = "evaluation"
REPORTING = ["emu_models/evaluation", "emu_dagster/reporting"]


@dg.asset(
    **facts(
        "evaluation_images",
        GROUP,
        {"pytorch", "diffusers"},
        [*BASE, "quality_tuned", "filtered_corpus"],
        ["emu_models/pipeline.py", "emu_models/checkpoints.py", "emu_dagster/evaluating.py"],
    ),
    pool="gpu",
)
def evaluation_images(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """Pictures from the model before and after tuning: the 16 fixed prompts and the names of the subjects."""
    from emu_dagster.evaluating import generate_pairs

    with recorder.open(context) as record:
        metrics, fixed, common = generate_pairs(record.layout, record.params)
        return record.result(metrics, pictures={"fixed_prompts": fixed, "common_prompts": common})


@dg.asset(
    **facts(
        "automatic_report",
        GROUP,
        {"pandas"},
        ["evaluation_images", "curated_set", "alignment_model", "raw_corpus"],
        [*REPORTING, "emu_dagster/evaluating.py"],
    )
)
def automatic_report(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """What can be measured without a voter: does a held-out judge name the subject, is it a copy, how far from real."""
    from emu_dagster.evaluating import fixed_prompts_sheet, report_automatically

    with recorder.open(context) as record:
        metrics, nearest = report_automatically(record.layout, record.params)
        pictures = {"fixed_prompts": fixed_prompts_sheet(record.layout), "nearest_curated": nearest}
        return record.result(metrics, pictures, pages={"report": record.layout.report(record.key) / "index.html"})


@dg.asset(
    **facts(
        "appeal_report",
        GROUP,
        {"pandas"},
        ["evaluation_images"],
        [*REPORTING, "emu_data/appeal.py", "emu_dagster/judging.py"],
    )
)
def appeal_report(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """Which picture is more appealing, caption hidden: five raters, A / B / tie."""
    from emu_dagster.judging import report_appeal

    with recorder.open(context) as record:
        metrics, plot = report_appeal(record.layout, record.params)
        return record.result(
            metrics, pictures={"win_rates": plot}, pages={"report": record.layout.report(record.key) / "index.html"}
        )


@dg.asset(
    **facts(
        "faithfulness_report",
        GROUP,
        {"pandas"},
        ["evaluation_images", "alignment_model", "raw_corpus"],
        [*REPORTING, "emu_dagster/judging.py"],
    )
)
def faithfulness_report(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """Which picture shows what its caption says: three raters, A / B / both / neither."""
    from emu_dagster.judging import report_faithfulness

    with recorder.open(context) as record:
        metrics, plot = report_faithfulness(record.layout, record.params)
        return record.result(
            metrics, pictures={"win_rates": plot}, pages={"report": record.layout.report(record.key) / "index.html"}
        )
