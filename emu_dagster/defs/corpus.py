"""From raw pictures to the few hundred thousand that pass every gate (Emu paper, sec. 3.3, items 1 to 4)."""

import dagster as dg

from emu_dagster.declarations.declared import declared
from emu_dagster.resources.recorder import Record

GROUP = "corpus"


@declared(
    group=GROUP,
    kinds={"webdataset"},
    outs=["data/raw", "data/damage.parquet"],
    params=["raw_corpus"],
)
def raw_corpus(record: Record) -> dg.MaterializeResult:
    """The image-text pairs as they came, in img2dataset's layout; never changed afterwards.

    By default the demo corpus: drawings of common things in three styles from package registries, a written share of
    them damaged on arrival. `emu ingest ADDRESS` puts a corpus of yours in its place (docs/data.md).
    """
    from emu_data.shards import iter_rows, list_shards
    from emu_reports.sheets import contact_sheet
    from emu_steps.corpora import first_images, read_corpus

    raw = record.layout.raw
    read_corpus(record.params.raw_corpus, record.layout)
    num_rows = num_images = 0
    for rows in iter_rows(raw, ["status"]):
        num_rows, num_images = num_rows + len(rows), num_images + int((rows["status"] == "success").sum())
    images, captions = first_images(raw, num=40, size=96)
    return record.result(
        {"num_rows": num_rows, "num_images": num_images, "num_shards": len(list_shards(raw))},
        pictures={"contact_sheet": contact_sheet(images, captions)},
    )


@declared(
    group=GROUP,
    kinds={"open_clip", "pytorch"},
    reads=["raw_corpus"],
    outs=["data/models/alignment_model"],
    params=["alignment_model"],
    how=["launch"],
    pool="gpu",
)
def alignment_model(record: Record) -> dg.MaterializeResult:
    """Small open_clip models trained on the corpus itself, each scoring what it has not seen.

    With filter_ledger.signals.alignment_weights, filtering uses those instead.
    """
    import pandas as pd

    from emu_dagster.training.train import train
    from emu_data.shards import read_images
    from emu_reports.sheets import contact_sheet
    from emu_steps.training_jobs import alignment_job

    layout = record.layout
    (result,) = train(record, [alignment_job(layout, record.params.alignment_model)])
    folds = pd.read_parquet(layout.model(record.key) / "folds.parquet").head(40)
    images = read_images(layout.raw, folds["key"].tolist(), 96)
    sheet = contact_sheet(images, [f"scored by fold_{fold}" for fold in folds["fold"]])
    metrics = {name: value for name, value in result.items() if not isinstance(value, str)}
    return record.result(metrics, pictures={"folds": sheet})


@declared(
    group=GROUP,
    kinds={"easyocr", "open_clip", "parquet"},
    reads=["raw_corpus", "alignment_model"],
    outs=["data/signals", "data/ledger"],
    # a picture that filtering turns away is measured on while a pretraining, which asks fewer gates, may want it
    params=["filter_ledger", "pretrained_low.gates", "pretrained_mid.gates", "pretrained_full.gates"],
    how=["engine"],
    files=["filter_ledger.signals.alignment_weights", "filter_ledger.signals.aesthetics_head"],
)
def filter_ledger(record: Record) -> dg.MaterializeResult:
    """A row for every raw image: each signal's value and the first gate that failed.

    One run brings all shards up to date; a shard that has been measured is not measured again, so an interrupted run
    goes on, and new shards cost only themselves. The engine spreads shards over cores or a Ray cluster.
    """
    from emu_dagster.training.progress import Progress
    from emu_steps.filtering import measure_corpus

    told = Progress(record.context.log.info, record.key, "shard")
    counts, rejected, timings = measure_corpus(record.layout, record.params, told)
    if timings.warning:
        record.context.log.warning(timings.warning)
    if timings.expected:
        counts |= dict(zip(("ms_a_picture", "ms_a_picture_in_the_best_order"), timings.expected, strict=True))
    pictures = {"rejected": rejected} if rejected else None
    return record.result(counts, pictures=pictures, tables={"cascade": timings.table})


@declared(
    group=GROUP,
    kinds={"webdataset", "parquet"},
    reads=["filter_ledger", "raw_corpus"],
    outs=["data/filtered", "data/reports/filtered_corpus"],
    params=["filtered_corpus", "profile", "toy"],
)
def filtered_corpus(record: Record) -> dg.MaterializeResult:
    """Exactly N pictures of those that passed: no near-twins, balanced over concepts. The paper's 200 K.

    Its ledger has a row for every raw image again, with the two gates that need the whole corpus, and its report
    shows the funnel with examples; where the damage is known, with each gate's precision and recall.
    """
    from emu_steps.filtering import publish_filtered

    counts, quality, sheet = publish_filtered(record.layout, record.params, record.inputs)
    return record.result(
        counts,
        pictures={"contact_sheet": sheet},
        pages={"funnel_report": record.layout.report("filtered_corpus") / "index.html"},
        tables={"gate_quality": quality} if quality is not None else None,
    )
