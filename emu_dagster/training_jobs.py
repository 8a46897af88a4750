"""Jobs for the training child, made from sections of params.yaml: plain values that go through Dagster Pipes."""

from pathlib import Path
from typing import Any

from emu_dagster.layout import Layout
from emu_dagster.params import (
    AutoencoderSection,
    AutoencoderStudy,
    FirstPretraining,
    Params,
    Pretraining,
    QualityTuning,
    Training,
    Variant,
)

CHECKPOINT_SECONDS = 20.0  # wall time between two saved states, about what a crash may cost; chosen here


def autoencoder_network(study: AutoencoderStudy, variant: Variant) -> dict[str, Any]:
    """Arguments of emu_models.autoencoder.network.Autoencoder."""
    return {
        **variant.model_dump(),
        "fold": study.fold,
        "widths": study.widths,
        "encoder_blocks": study.encoder_blocks,
        "decoder_blocks": study.decoder_blocks,
        "linear_shortcut": study.linear_shortcut,
    }


def autoencoder_job(
    layout: Layout,
    name: str,
    rows: Path,
    out: Path,
    section: AutoencoderStudy | AutoencoderSection,
    network: dict[str, Any] | None,
    start_from: Path | None,
) -> dict[str, Any]:
    """A job that trains one autoencoder on raw pictures: from `network`, or on from the folder `start_from`."""
    training = {**_batches(section), "losses": section.losses.model_dump()}
    spec = {"network": network, "start_from": str(start_from) if start_from else None, "training": training}
    return {"kind": "autoencoder", "spec": spec, **_common(layout, name, layout.raw, rows, out, section)}


def denoiser_job(
    layout: Layout,
    params: Params,
    name: str,
    shards: Path,
    rows: Path,
    section: Pretraining | QualityTuning,
    start_from: Path | None,
) -> dict[str, Any]:
    """A job that trains a denoiser: a new one over the autoencoder, or on from the pipeline in `start_from`."""
    first = section if isinstance(section, FirstPretraining) else None
    spec = {
        "autoencoder": str(layout.model("autoencoder")) if first else None,
        "start_from": str(start_from) if start_from else None,
        "denoiser": first.denoiser.model_dump() if first else None,
        "text_encoder": params.pretrained_low.text_encoder,
        "num_text_tokens": params.pretrained_low.num_text_tokens,
        "training": {
            **_batches(section),
            "noise_offset": section.noise_offset,
            "caption_dropout": section.caption_dropout,
        },
        "prompts": params.evaluation_images.fixed_prompts,
        "guidance_scale": params.evaluation_images.guidance_scale,
    }
    return {
        "kind": "denoiser",
        "spec": spec,
        **_common(layout, name, shards, rows, layout.model(name), section),
    }


def _batches(section: Training) -> dict[str, Any]:
    return {name: getattr(section, name) for name in ("num_steps", "batch_size", "learning_rate", "seed")}


def _common(
    layout: Layout, name: str, shards: Path, rows: Path, out: Path, section: Training
) -> dict[str, Any]:
    loop = {
        name: getattr(section, name)
        for name in (
            "num_steps",
            "learning_rate",
            "warmup_steps",
            "ema_decay",
            "validate_every",
            "patience",
            "seed",
        )
    }
    return {
        "name": name,
        "shards": str(shards),
        "rows": str(rows),
        "resolution": section.resolution,
        "out": str(out),
        "work": str(layout.cache / "training" / name),
        "cache": str(layout.cache / "encoded"),
        "loop": {**loop, "checkpoint_seconds": CHECKPOINT_SECONDS},
    }
