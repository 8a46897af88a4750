"""Jobs, the weekly evaluation, and the sensors for what arrives. Schedule and sensors are off until switched on.

Nothing is partitioned: a job, "Materialize all", a tick of a schedule or sensor are one run each.
"""

from typing import Any

import dagster as dg

from emu_dagster.declarations.staleness import recorded_version
from emu_dagster.defs.requests import ask
from emu_steps.layout import Layout, project_root
from emu_steps.params import read_params

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
    "have stopped growing, or when the source of raw_corpus has new ones. After a failed run it tries again, twice at "
    "the most.",
)
def new_raw_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    from emu_data.shards import list_shards
    from emu_steps.corpora import new_in_source

    layout = Layout(project_root())
    if not layout.raw.is_dir():
        return ask(context, {}, "")
    known = {path.stem for path in (layout.filtered / "ledger").glob("*.parquet")}
    fresh = [shard for shard in list_shards(layout.raw) if shard.stem not in known]
    looks: dict[str, Any] = {
        path.name: path.stat().st_size for shard in fresh for path in layout.raw.glob(f"{shard.stem}.*")
    }
    in_source = new_in_source(read_params(layout.root / "params.yaml").raw_corpus, layout)
    told = f"{len(fresh)} new shard(s) in data/raw, {len(in_source)} in its source"
    return ask(context, looks | {f"source: {name}": True for name in in_source}, told)


# What a round's new votes lead to, as far as it takes no training: those are started by people or schedules.
AFTER_VOTES = {
    "generalist_votes": ["generalist_votes", "generalist_selection", "specialist_votes", "curated_set"],
    "specialist_votes": ["specialist_votes", "curated_set"],
    "appeal_votes": ["appeal_votes", "appeal_report", "registered_model", "front_page"],
    "faithfulness_votes": ["faithfulness_votes", "faithfulness_report", "registered_model", "front_page"],
}


@dg.sensor(
    job=whole_graph,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="When people have voted since a round was recorded: records the round and makes anew what it decides, "
    "up to the next training. After a failed run it tries again, twice at the most.",
)
def new_votes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    from emu_steps.voting import grown

    layout, news, assets = Layout(project_root()), {}, list[str]()
    for key, following in AFTER_VOTES.items():
        recorded = recorded_version(context.instance, key)
        if recorded and (why := grown(layout, key, recorded)):
            news[key] = why
            assets += [asset for asset in following if asset not in assets]
    told = "; ".join(f"{key}: {why}" for key, why in news.items())
    return ask(context, news, told, [dg.AssetKey(asset) for asset in assets])


defs = dg.Definitions(
    jobs=[whole_graph, data_half, model_half, filter_shards, evaluation],
    schedules=[weekly_evaluation],
    sensors=[new_raw_shards, new_votes],
)
