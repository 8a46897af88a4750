"""The model registry: every tuned model becomes a version; the alias says what the reports allow."""

import dagster as dg

from emu_dagster.recording import Recorder, facts


@dg.asset(
    **facts(
        "registered_model",
        "registry",
        {"mlflow"},
        ["quality_tuned", "automatic_report", "appeal_report", "faithfulness_report"],
        ["emu_dagster/registering.py", "emu_dagster/served_model.py"],
    )
)
def registered_model(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """A version of `emu` in MLflow with the lineage of its data; `champion` when the reports allow it, else
    `challenger` with the reason on its page.
    """
    from emu_dagster.evaluating import fixed_prompts_sheet
    from emu_dagster.registering import register

    with recorder.open(context) as record:
        version = register(record)
        return record.result(
            {"version": version.number, "is_champion": float(version.alias == "champion")},
            pictures={"fixed_prompts": fixed_prompts_sheet(record.layout)},
            tables={"verdict": version.verdict},
        )
