"""Jobs, the weekly evaluation, and the sensors for what arrives. Schedule and sensors are off until switched on.

Nothing is partitioned: a job, "Materialize all", a tick of a schedule or sensor are one run each.
"""

import dagster as dg

from emu_dagster.layout import Layout, project_root
from emu_dagster.requests import ask

CORPUS = dg.AssetSelection.groups("corpus")
DATA = CORPUS | dg.AssetSelection.groups("curation")
MODELS = dg.AssetSelection.groups("autoencoder", "pretraining", "quality_tuning")
PROOF = dg.AssetSelection.groups("evaluation", "registry")

whole_graph = dg.define_asset_job(
    "whole_graph",
    dg.AssetSelection.all(),
    description="Everything in one run, from raw pictures to the front page of the reports. Trainings that are "
    "finished and shards that are measured are taken as they are; `emu materialize` makes only what is stale.",
)
data_half = dg.define_asset_job("data_half", DATA, description="From raw pictures to the curated set, in one run.")
model_half = dg.define_asset_job(
    "model_half",
    MODELS | PROOF,
    description="From the corpus and the curated set, which must be there, to a registered model and its reports.",
)
filter_shards = dg.define_asset_job(
    "filter_shards",
    CORPUS,
    description="From raw pictures to the filtered corpus: takes in shards that arrived, measures those that have not "
    "been measured, and chooses anew.",
)
evaluation = dg.define_asset_job(
    "evaluation",
    PROOF,
    description="Pictures of the models that are there, what judges say of them, the registry and the reports.",
)

weekly_evaluation = dg.ScheduleDefinition(
    name="weekly_evaluation",
    job=evaluation,
    cron_schedule="0 6 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Mondays at six (UTC): the models of the day are judged again and the alias follows.",
)


@dg.sensor(
    job=filter_shards,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Starts filter_shards when data/raw holds shards that the filtered corpus does not know, once they "
    "have stopped growing. After a failed run it tries again, twice at the most.",
)
def new_raw_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    from emu_data.shards import list_shards

    layout = Layout(project_root())
    known = {path.stem for path in (layout.filtered / "ledger").glob("*.parquet")}
    fresh = [shard for shard in list_shards(layout.raw) if shard.stem not in known] if layout.raw.is_dir() else []
    looks = {path.name: path.stat().st_size for shard in fresh for path in layout.raw.glob(f"{shard.stem}.*")}
    return ask(context, looks, f"{len(fresh)} new shard(s) in data/raw")
