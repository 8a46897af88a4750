"""The proof: pictures of both models for the same prompts and seeds, and what judges say (Emu paper, sec. 4)."""

import dagster as dg

from emu_dagster.declaring import declared
from emu_dagster.recording import Record

GROUP = "evaluation"
LABELS = ["profile", "toy"]  # on every page


@declared(
    group=GROUP,
    kinds={"pytorch", "diffusers"},
    reads=["quality_tuned", "filtered_corpus"],
    params=["evaluation_images", "quality_tuned.start_from", "quality_tuned.resolution"],
    files=["quality_tuned.start_from"],
    pool="gpu",
)
def evaluation_images(record: Record) -> dg.MaterializeResult:
    """Pictures from the model before and after tuning: the 16 fixed prompts and the names of the subjects."""
    from emu_dagster.evaluating import generate_pairs

    metrics, fixed, common = generate_pairs(record.layout, record.params)
    return record.result(metrics, pictures={"fixed_prompts": fixed, "common_prompts": common})


@declared(
    group=GROUP,
    kinds={"pandas"},
    reads=["evaluation_images", "curated_set", "alignment_model", "filtered_corpus", "raw_corpus"],
    params=["automatic_report", "quality_tuned.resolution", *LABELS],
)
def automatic_report(record: Record) -> dg.MaterializeResult:
    """What can be measured without a voter: does a held-out judge name the subject, is it a copy, how far from real."""
    from emu_dagster.evaluating import fixed_prompts_sheet, report_automatically

    metrics, nearest = report_automatically(record.layout, record.params)
    pictures = {"fixed_prompts": fixed_prompts_sheet(record.layout), "nearest_curated": nearest}
    return record.result(metrics, pictures, pages={"report": record.layout.report(record.key) / "index.html"})


@declared(group=GROUP, kinds={"pandas"}, reads=["evaluation_images"], params=["appeal_report", *LABELS])
def appeal_report(record: Record) -> dg.MaterializeResult:
    """Which picture is more appealing, caption hidden: five raters, A / B / tie."""
    from emu_dagster.judging import report_appeal

    metrics, plot = report_appeal(record.layout, record.params)
    return record.result(
        metrics, pictures={"win_rates": plot}, pages={"report": record.layout.report(record.key) / "index.html"}
    )


@declared(
    group=GROUP,
    kinds={"pandas"},
    reads=["evaluation_images", "alignment_model", "filtered_corpus"],
    params=["faithfulness_report", *LABELS],
)
def faithfulness_report(record: Record) -> dg.MaterializeResult:
    """Which picture shows what its caption says: three raters, A / B / both / neither."""
    from emu_dagster.judging import report_faithfulness

    metrics, plot = report_faithfulness(record.layout, record.params)
    return record.result(
        metrics, pictures={"win_rates": plot}, pages={"report": record.layout.report(record.key) / "index.html"}
    )
