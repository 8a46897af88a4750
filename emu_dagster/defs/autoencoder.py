"""The autoencoder and the study that chose it (Emu paper, sec. 3.1)."""

import dagster as dg

from emu_dagster.declarations.declared import declared
from emu_dagster.resources.recorder import Record

GROUP = "autoencoder"


@declared(
    group=GROUP,
    kinds={"pytorch", "safetensors"},
    reads=["raw_corpus", "alignment_model"],  # fold_0 for the perceptual loss, fold_1 for the distances
    outs=["data/models/autoencoder_study", "data/reports/autoencoder_study"],
    params=["autoencoder_study", "profile", "toy"],
    how=["launch"],
    files=["autoencoder_study.losses.perceptual.path", "autoencoder_study.inception"],
    pool="gpu",
)
def autoencoder_study(record: Record) -> dg.MaterializeResult:
    """Compare 4, 8 and 16 latent channels, and 16 with the Fourier transform, all trained with the same budget: SSIM,
    PSNR and a Fréchet distance.
    """
    from emu_dagster.training.train import train
    from emu_steps.autoencoder_study import compare_variants
    from emu_steps.training_jobs import autoencoder_job, autoencoder_network, write_training_rows

    layout, section = record.layout, record.params.autoencoder_study
    rows = write_training_rows(layout, section.resolution, section.max_images)
    jobs = [
        autoencoder_job(
            layout,
            record.key,
            f"{record.key}_{name}",
            rows,
            layout.model(record.key) / name,
            section,
            autoencoder_network(section, variant),
            None,
            record.params.launch,
        )
        for name, variant in section.variants.items()
    ]
    results = train(record, jobs)
    seconds = {
        f"seconds_{name}": r["timings"]["seconds"]
        for name, r in zip(section.variants, results, strict=True)
        if "timings" in r
    }
    metrics, table, preview = compare_variants(layout, record.params, rows, record.inputs)
    return record.result(
        metrics | seconds,
        pictures={"reconstructions": preview},
        pages={"study_report": layout.report(record.key) / "index.html"},
        tables={"comparison": table},
    )


@declared(
    group=GROUP,
    kinds={"pytorch", "safetensors"},
    reads=["autoencoder_study", "raw_corpus", "alignment_model"],
    outs=["data/models/autoencoder"],
    params=["autoencoder"],
    how=["launch"],
    files=["autoencoder.losses.perceptual.path"],
    pool="gpu",
)
def autoencoder(record: Record) -> dg.MaterializeResult:
    """The chosen variant, trained further from where the study stopped, and the statistics of its latents, which the
    denoiser needs.
    """
    from emu_dagster.training.train import train
    from emu_steps.training_jobs import autoencoder_job, write_training_rows

    layout, section = record.layout, record.params.autoencoder
    job = autoencoder_job(
        layout,
        record.key,
        record.key,
        write_training_rows(layout, section.resolution, section.max_images),
        layout.model(record.key),
        section,
        None,
        layout.model("autoencoder_study") / section.variant,
        record.params.launch,
    )
    (result,) = train(record, [job])
    return record.trained(result)
