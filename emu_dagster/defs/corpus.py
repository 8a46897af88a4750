"""From raw pictures to the few hundred thousand that pass every gate (Emu paper, sec. 3.3, items 1 to 4)."""

from collections import Counter

import dagster as dg

from emu_dagster.layout import Layout
from emu_dagster.params import Params
from emu_dagster.recording import Recorder, facts
from emu_dagster.resources.gpu import TrainingProcess

GROUP = "corpus"
shard_groups = dg.DynamicPartitionsDefinition(name="shard_groups")


def list_shard_groups(layout: Layout, params: Params) -> dict[str, list[str]]:
    """Partition -> names of its shards, by number, `shards_per_group` a group, so that new ones join at the end."""
    from emu_data.shards import list_shards

    size = params.filter_ledger.shards_per_group
    groups: dict[str, list[str]] = {}
    for shard in list_shards(layout.raw):
        groups.setdefault(f"{int(shard.stem) // size:05d}", []).append(shard.stem)
    return groups


def register_shard_groups(instance: dg.DagsterInstance, layout: Layout, params: Params) -> list[str]:
    """Makes Dagster's partitions those of data/raw, and returns them; groups of an earlier corpus go."""
    groups = list(list_shard_groups(layout, params))
    name = str(shard_groups.name)
    for gone in set(instance.get_dynamic_partitions(name)) - set(groups):
        instance.delete_dynamic_partition(name, gone)
    instance.add_dynamic_partitions(name, groups)
    return groups


@dg.asset(
    **facts(
        "raw_corpus",
        GROUP,
        {"webdataset"},
        [],
        [
            f"emu_data/{name}"
            for name in ("sources", "shards.py", "bodies.py", "tars.py", "addresses.py", "quarantine.py")
        ],
    )
)
def raw_corpus(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """The image-text pairs as they came, in img2dataset's layout; never changed afterwards.

    By default the demo corpus: drawings of common things in three styles from package registries, a written share of
    them damaged on arrival. `emu ingest ADDRESS` puts a corpus of yours in its place (docs/data.md).
    """
    from emu_dagster.corpora import first_images, read_corpus
    from emu_dagster.pictures import contact_sheet
    from emu_data.shards import iter_rows

    with recorder.open(context) as record:
        read_corpus(record.params.raw_corpus, record.layout)
        groups = register_shard_groups(context.instance, record.layout, record.params)
        num_rows = num_images = 0
        for rows in iter_rows(record.layout.raw, ["status"]):
            num_rows, num_images = num_rows + len(rows), num_images + int((rows["status"] == "success").sum())
        images, captions = first_images(record.layout.raw, num=40, size=96)
        sheet = contact_sheet(images, captions)
        return record.result(
            {"num_rows": num_rows, "num_images": num_images, "num_shard_groups": len(groups)},
            pictures={"contact_sheet": sheet},
        )


@dg.asset(
    **facts("alignment_model", GROUP, {"open_clip", "pytorch"}, ["raw_corpus"], ["emu_models/alignment.py"]),
    pool="gpu",
)
def alignment_model(
    context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
) -> dg.MaterializeResult:
    """Small open_clip models trained on the corpus itself, each scoring what it has not seen; and a judge for the
    reports that filtering never uses. With `pretrained` in params.yaml, filtering uses those weights instead.
    """
    import pandas as pd

    from emu_dagster.pictures import contact_sheet
    from emu_dagster.training_jobs import alignment_job
    from emu_data.shards import read_images

    with recorder.open(context) as record:
        job = alignment_job(record.layout, record.params.alignment_model)
        messages = trainer.train(context, "emu_dagster.train_process", {"jobs": [job]}, record.mlflow_environment)
        folds = pd.read_parquet(record.layout.model(record.key) / "folds.parquet").head(40)
        images = read_images(record.layout.raw, folds["key"].tolist(), 96)
        sheet = contact_sheet(images, [f"scored by fold_{fold}" for fold in folds["fold"]])
        metrics = {name: value for message in messages for name, value in message.items()}
        return record.result(metrics, pictures={"folds": sheet})


@dg.asset(
    **facts(
        "filter_ledger",
        GROUP,
        {"easyocr", "open_clip", "parquet"},
        ["raw_corpus", "alignment_model"],
        ["emu_data/signals", "emu_data/cascade.py", "emu_data/plan.py", "emu_data/ledger.py", "emu_data/engine"],
    ),
    partitions_def=shard_groups,
)
def filter_ledger(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """A row for every raw image of a shard group: each signal's value and the first gate that failed."""
    from emu_dagster.filtering import build_engine, plan_signals, row_policy
    from emu_dagster.pictures import contact_sheet
    from emu_data.cascade import measure_group, read_values
    from emu_data.files import file_sha256, fingerprint
    from emu_data.ledger import check_conserved, decide, funnel, write_ledger
    from emu_data.records import STATUS_UNLISTED
    from emu_data.shards import list_shards, read_images, read_rows

    with recorder.open(context) as record:
        layout = record.layout
        shards = list_shard_groups(layout, record.params)[context.partition_key]
        signals, going_on = plan_signals(layout, record.params)
        engine = build_engine(record.params)
        measure_group(layout.raw, shards, signals, layout.signals, going_on, engine=engine)
        ledger = decide(
            read_values(layout.raw, shards, signals, layout.signals),
            row_policy(record.params.filter_ledger.policy),
        )
        num_unlisted = int((ledger["status"] == STATUS_UNLISTED).sum())  # in a tar, and in no parquet
        check_conserved(ledger, sum(len(read_rows(layout.raw / f"{s}.parquet")) for s in shards) + num_unlisted)
        write_ledger(layout.ledger, ledger)
        present = {shard.stem for shard in list_shards(layout.raw)}
        for file in layout.ledger.glob("*.parquet"):  # rows of an earlier corpus would be counted with this one's
            if file.stem not in present:
                file.unlink()
        counts = funnel(Counter(ledger["first_failed_gate"]))
        rejected = ledger[~ledger["kept"] & (ledger["first_failed_gate"] != "readable")].head(40)
        pictures = {}
        if len(rejected):
            images = read_images(layout.raw, rejected["key"].tolist(), 96)
            pictures["rejected"] = contact_sheet(images, rejected["first_failed_gate"].tolist())
        return record.result(
            {
                "num_rows": len(ledger),
                "num_kept": int(ledger["kept"].sum()),
                **{f"num_dropped_{g}": n for g, n in zip(counts["gate"], counts["num_dropped"], strict=True)},
            },
            pictures=pictures,
            data_version=fingerprint([file_sha256(layout.ledger / f"{s}.parquet") for s in shards]),
        )


@dg.asset(
    **facts(
        "filtered_corpus",
        GROUP,
        {"webdataset", "parquet"},
        ["filter_ledger", "raw_corpus"],
        [
            "emu_data/selection.py",
            "emu_data/near_twins.py",
            "emu_data/gate_quality.py",
            "emu_data/ledger.py",
            "emu_dagster/filtering.py",
            "emu_dagster/reporting",
        ],
    )
)
def filtered_corpus(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """Exactly N pictures of those that passed: no near-twins, balanced over concepts. The paper's 200 K.

    Its ledger has a row for every raw image again, with the two gates that need the whole corpus, and its report
    shows the funnel with examples; where the damage is known, with each gate's precision and recall.
    """
    from emu_dagster.filtering import publish_filtered

    with recorder.open(context) as record:
        counts, quality, sheet = publish_filtered(record.layout, record.params)
        return record.result(
            counts,
            pictures={"contact_sheet": sheet},
            pages={"funnel_report": record.layout.report("filtered_corpus") / "index.html"},
            tables={"gate_quality": quality} if quality else None,
        )
