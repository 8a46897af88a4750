"""The model registry: every tuned model becomes a version, and its alias says whether the reports accept it."""

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
    """A version of the model in MLflow's registry, with the lineage of its data: `champion` if all reports accept it,
    otherwise `challenger`, with the reasons on its page.
    """
    from emu_dagster.registering import register
    from emu_steps.evaluating import fixed_prompts_sheet

    version = register(record)
    return record.result(
        {"version": version.number, "is_champion": float(version.alias == "champion")},
        pictures={"fixed_prompts": fixed_prompts_sheet(record.layout)},
        tables={"verdict": version.verdict},
    )
