"""Jobs, the weekly evaluation, and the sensors for new shards and new votes. The schedule and the sensors are off until
somebody switches them on.

Nothing is partitioned: a job, "Materialize all", and a tick of a schedule or sensor are one run each.
"""

from typing import Any

import dagster as dg

from emu_dagster.defs.requests import ask
from emu_dagster.resources.dvc import DvcRepo
from emu_dagster.resources.instance import recorded_version
from emu_steps.layout import Layout, project_root
from emu_steps.params import read_params

CORPUS = dg.AssetSelection.groups("corpus")
DATA = CORPUS | dg.AssetSelection.groups("curation")
MODELS = dg.AssetSelection.groups("autoencoder", "pretraining", "quality_tuning")
PROOF = dg.AssetSelection.groups("evaluation", "registry")

whole_graph = dg.define_asset_job(
    "whole_graph",
    dg.AssetSelection.all(),
    description="Everything in one run, from raw pictures to the front page of the reports. Finished trainings and "
    "measured shards are reused; to make only what is stale, use `emu materialize`.",
)
data_half = dg.define_asset_job("data_half", DATA, description="From raw pictures to the curated set, in one run.")
model_half = dg.define_asset_job(
    "model_half",
    MODELS | PROOF,
    description="From the corpus and the curated set, which must exist, to a registered model and its reports.",
)
filter_shards = dg.define_asset_job(
    "filter_shards",
    CORPUS,
    description="From raw pictures to the filtered corpus: adds new shards, measures those that have not been measured "
    "yet, and chooses again.",
)
evaluation = dg.define_asset_job(
    "evaluation",
    PROOF,
    description="Pictures by the current models, the judges' votes on them, the registry and the reports.",
)

weekly_evaluation = dg.ScheduleDefinition(
    name="weekly_evaluation",
    job=evaluation,
    cron_schedule="0 6 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Mondays at 06:00 UTC: judges the current models again and moves the registry's alias accordingly.",
)


@dg.sensor(
    job=filter_shards,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Starts filter_shards when data/raw holds shards that are not in the filtered corpus and have stopped "
    "growing, or when the source of raw_corpus has new ones. After a failed run it tries again, at most twice.",
)
def new_raw_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Request filter_shards for shards in data/raw, or new entries in the source, that the filtered corpus lacks."""
    from emu_data.shards import list_shards
    from emu_steps.corpora import new_in_source

    layout = Layout(project_root())
    if not layout.raw.is_dir():
        return ask(context, {}, "")
    known = {path.stem for path in (layout.filtered / "ledger").glob("*.parquet")}
    fresh = [shard for shard in list_shards(layout.raw) if shard.stem not in known]
    sizes: dict[str, Any] = {
        path.name: path.stat().st_size for shard in fresh for path in layout.raw.glob(f"{shard.stem}.*")
    }
    with DvcRepo().digesting() as digest:
        in_source = new_in_source(read_params(layout.root / "params.yaml").raw_corpus, layout, digest)
    summary = f"{len(fresh)} new shard(s) in data/raw, {len(in_source)} in its source"
    return ask(context, sizes | {f"source: {name}": True for name in in_source}, summary)


# What is made again after new votes in a round, or new captions; no trainings, because people or schedules start them.
AFTER_VOTES = {
    "generalist_votes": ["generalist_votes", "generalist_selection", "specialist_votes", "curated_set"],
    "specialist_votes": ["specialist_votes", "curated_set"],
    "written_captions": ["written_captions", "curated_set"],
    "appeal_votes": ["appeal_votes", "appeal_report", "registered_model", "front_page"],
    "faithfulness_votes": ["faithfulness_votes", "faithfulness_report", "registered_model", "front_page"],
}


@dg.sensor(
    job=whole_graph,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="If people have voted, or written captions, since a round was recorded: records the round, and makes "
    "again what depends on it, up to the next training. After a failed run it tries again, at most twice.",
)
def new_votes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Request a run for the rounds whose log has grown, and for captions that were added, since their asset recorded
    them.
    """
    from emu_steps.voting import grown

    layout, news, assets = Layout(project_root()), {}, list[str]()
    for key, following in AFTER_VOTES.items():
        recorded = recorded_version(context.instance, key)
        if recorded and (why := grown(layout, key, recorded)):
            news[key] = why
            assets += [asset for asset in following if asset not in assets]
    summary = "; ".join(f"{key}: {why}" for key, why in news.items())
    return ask(context, news, summary, [dg.AssetKey(asset) for asset in assets])


defs = dg.Definitions(
    jobs=[whole_graph, data_half, model_half, filter_shards, evaluation],
    schedules=[weekly_evaluation],
    sensors=[new_raw_shards, new_votes],
)
