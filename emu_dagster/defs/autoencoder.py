"""The autoencoder and the study that chose it (Emu paper, sec. 3.1)."""

import dagster as dg

from emu_dagster.recording import Recorder, facts
from emu_dagster.resources.gpu import TrainingProcess

GROUP = "autoencoder"
CODE = ["emu_models/autoencoder", "emu_models/training", "emu_dagster/training_jobs.py"]

EVALUATION = [f"emu_models/evaluation/{name}.py" for name in ("reconstruction", "features", "judge")]


@dg.asset(
    **facts(
        "autoencoder_study",
        GROUP,
        {"pytorch", "safetensors"},
        ["raw_corpus", "alignment_model"],  # its encoder for the perceptual loss, its judge for the distances
        [*CODE, *EVALUATION, "emu_dagster/autoencoder_study.py"],
    ),
    pool="gpu",
)
def autoencoder_study(
    context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
) -> dg.MaterializeResult:
    """4, 8, 16 latent channels and 16 with the Fourier transform, under one budget: SSIM, PSNR, a Fréchet distance."""
    from emu_dagster.autoencoder_study import compare_variants
    from emu_dagster.training_jobs import autoencoder_job, autoencoder_network, write_training_rows

    with recorder.open(context) as record:
        layout, section = record.layout, record.params.autoencoder_study
        rows = write_training_rows(layout, section)
        out = record.fresh_folder(layout.model(record.key))
        jobs = [
            autoencoder_job(
                layout,
                record.key,
                f"{record.key}_{name}",
                rows,
                out / name,
                section,
                autoencoder_network(section, variant),
                None,
            )
            for name, variant in section.variants.items()
        ]
        results = trainer.train(context, "emu_dagster.train_process", {"jobs": jobs}, record.mlflow_environment)
        seconds = {
            f"seconds_{name}": r["timings"]["seconds"]
            for name, r in zip(section.variants, results, strict=True)
            if "timings" in r
        }
        metrics, table, preview = compare_variants(layout, record.params, rows)
        return record.result(
            metrics | seconds,
            pictures={"reconstructions": preview},
            pages={"study_report": layout.report(record.key) / "index.html"},
            tables={"comparison": table},
        )


@dg.asset(
    **facts(
        "autoencoder",
        GROUP,
        {"pytorch", "safetensors"},
        ["autoencoder_study", "raw_corpus", "alignment_model"],
        CODE,
    ),
    pool="gpu",
)
def autoencoder(
    context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
) -> dg.MaterializeResult:
    """The chosen variant, trained on from where the study left it; its latents are measured for the denoiser."""
    from emu_dagster.training_jobs import autoencoder_job, write_training_rows

    with recorder.open(context) as record:
        layout, section = record.layout, record.params.autoencoder
        job = autoencoder_job(
            layout,
            record.key,
            record.key,
            write_training_rows(layout, section),
            record.fresh_folder(layout.model(record.key)),
            section,
            None,
            layout.model("autoencoder_study") / section.variant,
        )
        (result,) = trainer.train(context, "emu_dagster.train_process", {"jobs": [job]}, record.mlflow_environment)
        return record.trained(result)
