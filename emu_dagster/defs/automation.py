"""Jobs, the weekly evaluation, and the sensor for new raw shards. Schedule and sensor are off until switched on."""

import dagster as dg

from emu_dagster.layout import Layout, project_root

DATA = dg.AssetSelection.groups("corpus", "curation")
MODELS = dg.AssetSelection.groups("autoencoder", "pretraining", "quality_tuning")
PROOF = dg.AssetSelection.groups("evaluation", "registry")

whole_graph = dg.define_asset_job(
    "whole_graph", dg.AssetSelection.all(), description="Everything, from raw pictures to a registered model."
)
data_half = dg.define_asset_job("data_half", DATA, description="From raw pictures to the curated set.")
model_half = dg.define_asset_job(
    "model_half", MODELS | PROOF, description="From the raw and the curated set to a registered model."
)
filter_shards = dg.define_asset_job(
    "filter_shards",
    dg.AssetSelection.assets("filter_ledger"),
    description="The ledger of every shard that has not been measured.",
)
evaluation = dg.define_asset_job("evaluation", PROOF, description="Pictures, reports and the registry.")

weekly_evaluation = dg.ScheduleDefinition(
    name="weekly_evaluation",
    job=evaluation,
    cron_schedule="0 6 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Mondays at six: the models of the day are judged again and the alias follows.",
)


@dg.sensor(job=filter_shards, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED)
def new_raw_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Starts filter_shards when there are shards it has not seen; the cursor lists the shards seen."""
    from emu_data.shards import list_shards

    layout = Layout(project_root())
    shards = [shard.stem for shard in list_shards(layout.raw)] if layout.raw.is_dir() else []
    fresh = set(shards) - set(filter(None, (context.cursor or "").split(",")))
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key="-".join(sorted(fresh)))] if fresh else [],
        cursor=",".join(shards),
    )
