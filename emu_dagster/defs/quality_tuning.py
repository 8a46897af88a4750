"""Quality-tuning on the curated set (Emu paper, sec. 3.4): batch 64, noise offset 0.1, stopped early."""

import dagster as dg

from emu_dagster.declarations.declared import declared
from emu_dagster.defs.pretraining import CARD, KINDS, TEXT_AND_SHEET, train_pipeline
from emu_dagster.resources.recorder import Record


@declared(
    group="quality_tuning",
    kinds=KINDS,
    reads=["curated_set"],
    outs=["data/models/quality_tuned"],
    params=["quality_tuned", *TEXT_AND_SHEET, *CARD],
    how=["launch"],
    files=["quality_tuned.start_from"],
    pool="gpu",
)
def quality_tuned(record: Record) -> dg.MaterializeResult:
    """The model that people should prefer: quality_tuned.start_from, tuned briefly on the curated set.

    It starts from pretrained_full or your own Stable Diffusion checkpoint, and tunes all weights or low-rank adapters.
    Batch 64, noise offset 0.1 and at most 15 000 steps are from the paper. The paper stops "despite the loss still
    decreasing" but gives no rule; the rule here (held-out loss) is ours.
    """
    from emu_dagster.training.train import train_on_all_rows
    from emu_models.folders import inspect_tunable
    from emu_steps.training_jobs import denoiser_job, write_curated_rows

    layout, section = record.layout, record.params.quality_tuned
    inspect_tunable(layout.root / section.start_from)
    job = denoiser_job(
        layout,
        record.params,
        record.key,
        layout.curated,
        write_curated_rows(layout, section.captions),
        section,
        layout.root / section.start_from,
    )
    if section.whole_set:
        job = train_on_all_rows(record, job)
    return train_pipeline(record, job, ["raw_corpus", "curated_set"])
