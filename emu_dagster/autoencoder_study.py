"""Compares the autoencoders of the study on the pictures that none of them trained on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from emu_dagster.layout import Layout
from emu_dagster.params import Params
from emu_dagster.pictures import contact_sheet

NUM_SHOWN = 12  # held-out pictures in the report


def compare_variants(layout: Layout, params: Params, rows: Path) -> tuple[dict[str, float], str, Image.Image]:
    """Writes data/reports/autoencoder_study; returns metrics a variant, a Markdown table and a sheet at 1:1.

    The sheet has the originals in its first line and the reconstructions of each variant below.
    """
    import torch

    from emu_dagster.reporting.autoencoder import VariantFindings, write_autoencoder_report
    from emu_models.autoencoder.network import Autoencoder
    from emu_models.evaluation.plain_features import GRID_STATISTICS
    from emu_models.evaluation.reconstruction import measure_reconstruction
    from emu_models.training.cache import to_images, to_tensor
    from emu_models.training.rows import load_rows

    section = params.autoencoder_study
    held = load_rows(layout.raw, pd.read_parquet(rows), section.resolution).held
    found, rebuilt = {}, {}
    for name in section.variants:
        autoencoder = Autoencoder.from_pretrained(layout.model("autoencoder_study") / name).eval()
        with torch.no_grad():
            latents = autoencoder.encode(to_tensor(held.images)).mean
            rebuilt[name] = to_images(autoencoder.decode(latents))
        found[name] = measure_reconstruction(held.images, rebuilt[name], GRID_STATISTICS, section.seed)
    metrics: dict[str, float] = {"num_held_out": len(held.images)}
    for name, measured in found.items():
        metrics[f"ssim_{name}"] = measured.ssim.estimate
        metrics[f"psnr_{name}"] = measured.psnr.estimate
        metrics[f"frechet_{name}"] = measured.frechet.estimate
    variants = []
    for name, variant in section.variants.items():
        meta = json.loads((layout.model("autoencoder_study") / name / "meta.json").read_text())
        variants.append(
            VariantFindings(
                name,
                variant.latent_channels,
                variant.fourier_bands,
                found[name],
                rebuilt[name],
                meta["num_parameters"],
                meta["result"]["seconds"],
            )
        )
    write_autoencoder_report(
        layout.report("autoencoder_study"), variants, held.images, params, describe_trend(metrics, params)
    )
    table = pd.DataFrame(
        {
            "variant": list(found),
            "SSIM": [m.ssim.estimate for m in found.values()],
            "PSNR (dB)": [m.psnr.estimate for m in found.values()],
            "Fréchet": [m.frechet.estimate for m in found.values()],
        }
    )
    shown = np.concatenate([held.images[:NUM_SHOWN], *(images[:NUM_SHOWN] for images in rebuilt.values())])
    num = min(NUM_SHOWN, len(held.images))
    labels = [label if i == 0 else "" for label in ("original", *rebuilt) for i in range(num)]
    sheet = contact_sheet(shown, labels, columns=num, tile=section.resolution)
    return metrics, table.round(4).to_markdown(index=False), sheet


def describe_trend(metrics: dict[str, float], params: Params) -> str:
    """A sentence on what the study shows: does PSNR rise with channels, and which sign has the Fourier transform."""
    variants = params.autoencoder_study.variants
    plain = sorted((v.latent_channels, name) for name, v in variants.items() if v.fourier_bands == 0)
    values = [metrics[f"psnr_{name}"] for _, name in plain]
    holds = all(a < b for a, b in zip(values, values[1:], strict=False))
    trend = "PSNR rises with every step in channels" if holds else "PSNR does not rise with every step in channels"
    twin = dict(plain)
    signs = [
        f"the Fourier transform changes it at {v.latent_channels} channels by "
        f"{metrics[f'psnr_{name}'] - metrics[f'psnr_{twin[v.latent_channels]}']:+.2f} dB"
        for name, v in variants.items()
        if v.fourier_bands and v.latent_channels in twin
    ]
    return "; ".join([trend, *signs]) + ". No perceptual loss: its weights come with no package."
