"""The model registry: every tuned model becomes a version; the alias says what the reports allow."""

import dagster as dg

from emu_dagster.declarations.declared import declared
from emu_dagster.resources.recorder import Record


@declared(
    group="registry",
    kinds={"mlflow"},
    reads=["quality_tuned", "evaluation_images", "automatic_report", "appeal_report", "faithfulness_report"],
    outs=["data/registered_model.json"],
    params=["registered_model", "quality_tuned.start_from", "profile", "toy"],
)
def registered_model(record: Record) -> dg.MaterializeResult:
    """A version of `emu` in MLflow with the lineage of its data; `champion` when the reports allow it, else
    `challenger` with the reason on its page.
    """
    from emu_dagster.registering import register
    from emu_steps.evaluating import fixed_prompts_sheet

    version = register(record)
    return record.result(
        {"version": version.number, "is_champion": float(version.alias == "champion")},
        pictures={"fixed_prompts": fixed_prompts_sheet(record.layout)},
        tables={"verdict": version.verdict},
    )
