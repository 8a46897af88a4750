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
    """The image-text pairs as they arrived, in img2dataset's layout; never changed afterwards.

    By default this is the demo corpus: drawings of common things in three styles from package registries. A share of
    them, set in params.yaml, is damaged on purpose. `emu ingest ADDRESS` replaces it with your own corpus
    (docs/data.md).
    """
    from emu_data.shards import iter_rows, list_shards
    from emu_reports.sheets import contact_sheet
    from emu_steps.corpora import first_images, read_corpus

    raw = record.layout.raw
    with record.dvc.digesting() as digest:
        read_corpus(record.params.raw_corpus, record.layout, digest)
    num_rows = num_images = 0
    for rows in iter_rows(raw, ["status"]):
        num_rows, num_images = num_rows + len(rows), num_images + int((rows["status"] == "success").sum())
    images, captions = first_images(raw, num=40, size=96)
    return record.result(
        {"num_rows": num_rows, "num_images": num_images, "num_shards": len(list_shards(raw))},
        pictures={"contact_sheet": contact_sheet(images, captions)} if captions else None,
    )


@declared(
    group=GROUP,
    kinds={"open_clip", "pytorch"},
    reads=["raw_corpus"],
    outs=["data/models/alignment_model"],
    params=["alignment_model", "filter_ledger.signals.alignment_weights"],
    how=["launch"],
    pool="gpu",
)
def alignment_model(record: Record) -> dg.MaterializeResult:
    """Small open_clip models trained on the corpus itself; each scores the pictures that it was not trained on.

    Nothing is trained if filter_ledger.signals.alignment_weights is set, since filtering uses those weights then, or if
    alignment_model.num_folds is 0.
    """
    import pandas as pd

    from emu_dagster.training.train import train
    from emu_data.shards import read_images
    from emu_reports.sheets import contact_sheet
    from emu_steps.params.references import trains_alignment
    from emu_steps.training_jobs import alignment_job, publish

    layout = record.layout
    if not trains_alignment(record.params):
        publish(layout, record.key, [])
        return record.result({"num_folds": 0})
    job = alignment_job(layout, record.params.alignment_model, record.params.launch)
    (result,) = train(record, [job])
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
    # a picture that filtering rejects is measured further if a pretraining, which uses fewer gates, may still use it
    params=["filter_ledger", "pretrained_low.gates", "pretrained_mid.gates", "pretrained_full.gates"],
    how=["engine"],
    files=["filter_ledger.signals.alignment_weights", "filter_ledger.signals.aesthetics_head"],
)
def filter_ledger(record: Record) -> dg.MaterializeResult:
    """A row for every raw image: each signal's value and the first gate that failed.

    One run brings all shards up to date. Measured shards are not measured again, so an interrupted run continues, and
    only new shards take time. The engine spreads shards over cores or a Ray cluster.
    """
    from emu_dagster.training.progress import Progress
    from emu_steps.filtering import measure_corpus

    progress = Progress(record.context.log.info, record.key, "shard")
    counts, rejected, timings = measure_corpus(record.layout, record.params, progress)
    if timings.warning:
        record.context.log.warning(timings.warning)
    if timings.expected:
        counts |= dict(zip(("ms_per_picture", "ms_per_picture_in_the_best_order"), timings.expected, strict=True))
    pictures = {"rejected": rejected} if rejected else None
    return record.result(counts, pictures=pictures, tables={"cascade": timings.table})


@declared(
    group=GROUP,
    kinds={"duckdb", "matplotlib"},
    reads=["filter_ledger", "raw_corpus"],
    outs=["data/reports/corpus_report"],
    params=["corpus_report", "filter_ledger.policy", "filter_ledger.control_share", "profile", "toy"],
    files=["corpus_report.labels"],
)
def corpus_report(record: Record) -> dg.MaterializeResult:
    """What the corpus holds before anything is dropped.

    It shows every signal's values, what each threshold would drop by itself, examples on both sides of it, which
    subjects and sizes lose more pictures than others, and how often a gate agrees with a person's labels.
    """
    from emu_steps.surveying import survey_corpus

    counts = survey_corpus(record.layout, record.params, record.inputs)
    return record.result(counts, pages={"report": record.layout.report(record.key) / "index.html"})


@declared(
    group=GROUP,
    kinds={"webdataset", "parquet"},
    reads=["filter_ledger", "raw_corpus"],
    outs=["data/filtered", "data/reports/filtered_corpus"],
    params=["filtered_corpus", "profile", "toy"],
)
def filtered_corpus(record: Record) -> dg.MaterializeResult:
    """Exactly filtered_corpus.num_images of the pictures that passed, without near-twins and balanced over concepts.
    The paper's 200 K.

    Its ledger has a row for every raw image, like filter_ledger, with two more gates, which need the whole corpus. Its
    report shows the funnel with examples and, if the damage is known, each gate's precision and recall.
    """
    from emu_steps.filtering import publish_filtered

    counts, quality, sheet = publish_filtered(record.layout, record.params, record.inputs)
    return record.result(
        counts,
        pictures={"contact_sheet": sheet},
        pages={"funnel_report": record.layout.report("filtered_corpus") / "index.html"},
        tables={"gate_quality": quality} if quality is not None else None,
    )
