"""Quality-tuning on the curated set (Emu paper, sec. 3.4): batch 64, noise offset 0.1, stopped early."""

from pathlib import Path

import dagster as dg

from emu_dagster.defs.pretraining import CODE, KINDS
from emu_dagster.recording import Recorder, facts
from emu_dagster.resources.gpu import TrainingProcess


@dg.asset(**facts("quality_tuned", "quality_tuning", KINDS, ["pretrained_full", "curated_set"], CODE), pool="gpu")
def quality_tuned(
    context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
) -> dg.MaterializeResult:
    """The model that people are to prefer: pretrained_full, briefly tuned on the curated set.

    The paper stops "despite the loss still decreasing" and gives no rule; the rule here (held-out loss) is ours.
    """
    from emu_dagster.training_jobs import denoiser_job

    with recorder.open(context) as record:
        layout, section = record.layout, record.params.quality_tuned
        record.fresh_folder(layout.model(record.key))
        job = denoiser_job(
            layout,
            record.params,
            record.key,
            layout.curated,
            layout.curated / "manifest.parquet",
            section,
            Path(section.start_from) if section.start_from else layout.model("pretrained_full"),
        )
        (result,) = trainer.train(context, "emu_dagster.train_process", {"jobs": [job]}, record.mlflow_environment)
        return record.trained(result)
