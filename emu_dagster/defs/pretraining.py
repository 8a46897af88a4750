"""Pretraining at three rising resolutions (Emu paper, sec. 3.2); noise offset in the last only.

A chain of assets and not one asset partitioned by resolution: such a one could not depend on its own previous
resolution (dagster#13248). No automation condition: people or schedules start trainings.
"""

import dagster as dg

from emu_dagster.recording import Recorder, facts
from emu_dagster.resources.gpu import TrainingProcess

GROUP = "pretraining"
KINDS = {"pytorch", "diffusers", "safetensors"}
CODE = [
    "emu_models/diffusion",
    "emu_models/training",
    "emu_models/denoiser.py",
    "emu_models/text.py",
    "emu_models/pipeline.py",
    "emu_models/checkpoints.py",
    "emu_dagster/model_card.py",
    "emu_dagster/training_jobs.py",
]


def pretrain(
    context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess, previous: str | None
) -> dg.MaterializeResult:
    """One stage: the rows that passed the section's gates, from the previous stage's weights."""
    from emu_dagster.model_card import write_model_card
    from emu_dagster.params import Pretraining
    from emu_dagster.training_jobs import denoiser_job, write_gated_rows

    with recorder.open(context) as record:
        layout, section = record.layout, record.section
        assert isinstance(section, Pretraining)
        record.fresh_folder(layout.model(record.key))
        job = denoiser_job(
            layout,
            record.params,
            record.key,
            layout.raw,
            write_gated_rows(layout, record.key, section.gates),
            section,
            layout.model(previous) if previous else None,
        )
        (result,) = trainer.train(context, "emu_dagster.train_process", {"jobs": [job]}, record.mlflow_environment)
        write_model_card(record)
        return record.trained(result)


@dg.asset(**facts("pretrained_low", GROUP, KINDS, ["autoencoder", "raw_corpus", "filtered_corpus"], CODE), pool="gpu")
def pretrained_low(
    context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
) -> dg.MaterializeResult:
    """The denoiser at the lowest resolution, from nothing. The paper's 256 px."""
    return pretrain(context, recorder, trainer, None)


@dg.asset(
    **facts("pretrained_mid", GROUP, KINDS, ["pretrained_low", "raw_corpus", "filtered_corpus"], CODE), pool="gpu"
)
def pretrained_mid(
    context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
) -> dg.MaterializeResult:
    """From pretrained_low, at the middle resolution. The paper's 512 px."""
    return pretrain(context, recorder, trainer, "pretrained_low")


@dg.asset(
    **facts("pretrained_full", GROUP, KINDS, ["pretrained_mid", "raw_corpus", "filtered_corpus"], CODE), pool="gpu"
)
def pretrained_full(
    context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
) -> dg.MaterializeResult:
    """From pretrained_mid, at full resolution and with noise offset 0.02. The paper's 1024 px."""
    return pretrain(context, recorder, trainer, "pretrained_mid")
