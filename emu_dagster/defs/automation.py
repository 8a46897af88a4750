"""Jobs, the weekly evaluation, and the sensor for new raw shards. Schedule and sensor are off until switched on."""

import dagster as dg

from emu_dagster.defs.corpus import list_shard_groups, shard_groups
from emu_dagster.layout import Layout, project_root
from emu_dagster.params import read_params

DATA = dg.AssetSelection.groups("corpus", "curation")
MODELS = dg.AssetSelection.groups("autoencoder", "pretraining", "quality_tuning")
PROOF = dg.AssetSelection.groups("evaluation", "registry")

whole_graph = dg.define_asset_job(
    "whole_graph", dg.AssetSelection.all(), description="Everything; choose all shard groups of the partition dialog."
)
data_half = dg.define_asset_job("data_half", DATA, description="From raw pictures to the curated set.")
model_half = dg.define_asset_job(
    "model_half", MODELS | PROOF, description="From the raw and the curated set to a registered model."
)
filter_shards = dg.define_asset_job(
    "filter_shards", dg.AssetSelection.assets("filter_ledger"), description="The ledger of one shard group."
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
    """Starts filter_shards for every shard group that has shards it has not seen; the cursor lists the shards seen."""
    layout = Layout(project_root())
    groups = list_shard_groups(layout, read_params(layout.root / "params.yaml")) if layout.raw.is_dir() else {}
    seen = set(filter(None, (context.cursor or "").split(",")))
    fresh = {group: shards for group, shards in groups.items() if set(shards) - seen}
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=f"{group}:{'-'.join(shards)}", partition_key=group) for group, shards in fresh.items()
        ],
        dynamic_partitions_requests=[shard_groups.build_add_request(list(fresh))] if fresh else [],
        cursor=",".join(sorted(shard for shards in groups.values() for shard in shards)),
    )
