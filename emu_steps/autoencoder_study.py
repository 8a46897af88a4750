"""Compares the autoencoders of the study on pictures that none of them was trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.formatting import format_signed
from emu_reports.sheets import contact_sheet
from emu_steps.layout import Layout
from emu_steps.params import AutoencoderStudy, Params, Variant

if TYPE_CHECKING:
    from emu_models.evaluation.reconstruction import Features
    from emu_reports.autoencoder import Step

NUM_SHOWN = 12  # held-out pictures on the sheet; chosen here
AT_ONCE = 64  # pictures encoded and decoded at a time; chosen here


def compare_variants(
    layout: Layout, params: Params, rows: Path, made_from: Mapping[str, str]
) -> tuple[dict[str, float], pd.DataFrame, Image.Image]:
    """Write data/reports/autoencoder_study; return metrics per variant, a table of them and a contact sheet at 1:1.

    The first row of the sheet shows the originals, the rows below the reconstructions of each variant. rows: a parquet
    with the keys of the pictures, as `write_training_rows` writes it. made_from: asset -> md5 of the inputs, listed on
    the page.
    """
    import torch

    from emu_models.evaluation.reconstruction import compare_reconstructions, measure_reconstruction
    from emu_models.latent.autoencoder.network import Autoencoder
    from emu_models.training.cache import to_images, to_tensor
    from emu_models.training.rows import load_rows
    from emu_reports.autoencoder import Step, VariantFindings, write_autoencoder_report
    from emu_reports.page import Run

    section, folder = params.autoencoder_study, layout.model("autoencoder_study")
    held = load_rows(layout.raw, pd.read_parquet(rows), section.resolution).held
    features = choose_features(layout, section)
    found, rebuilt, variants, late_gains = {}, {}, [], {}
    for name, variant in section.variants.items():
        autoencoder = Autoencoder.from_pretrained(folder / name).eval()
        with torch.no_grad():
            parts = to_tensor(held.images).split(AT_ONCE)
            rebuilt[name] = np.concatenate([to_images(autoencoder.decode(autoencoder.encode(x).mean)) for x in parts])
        found[name] = measure_reconstruction(held.images, rebuilt[name], features, section.seed)
        meta = json.loads((folder / name / "meta.json").read_text())
        late_gains[name] = late_gain(folder / name)
        variants.append(
            VariantFindings(
                name,
                variant.latent_channels,
                variant.fourier_bands,
                found[name],
                rebuilt[name],
                meta["num_parameters"],
            )
        )
    steps = [
        Step(
            before,
            after,
            compare_reconstructions(held.images, rebuilt[before], rebuilt[after], features, section.seed),
        )
        for before, after in neighbours(section.variants)
    ]
    note = describe_steps(steps, section.variants, late_gains, len(held.images))
    write_autoencoder_report(
        layout.report("autoencoder_study"),
        variants,
        steps,
        held.images,
        Run(params.profile, params.toy, made_from),
        f"{note} {describe_losses(section)}",
    )
    metrics: dict[str, float] = {"num_held_out": len(held.images)}
    for name, measured in found.items():
        metrics[f"ssim_{name}"] = measured.ssim.estimate
        metrics[f"psnr_{name}"] = measured.psnr.estimate
        metrics[f"frechet_{name}"] = measured.frechet.estimate
    for step in steps:
        metrics[f"psnr_gain_{step.before}_to_{step.after}"] = step.difference.psnr.estimate
    table = pd.DataFrame(
        {
            "variant": list(found),
            "SSIM": [m.ssim.estimate for m in found.values()],
            "PSNR (dB)": [m.psnr.estimate for m in found.values()],
            f"Fréchet on {features.name}": [m.frechet.estimate for m in found.values()],
        }
    )
    shown = np.concatenate([held.images[:NUM_SHOWN], *(images[:NUM_SHOWN] for images in rebuilt.values())])
    num = min(NUM_SHOWN, len(held.images))
    labels = [label if i == 0 else "" for label in ("original", *rebuilt) for i in range(num)]
    sheet = contact_sheet(shown, labels, columns=num, tile=section.resolution)
    return metrics, table, sheet


def choose_features(layout: Layout, section: AutoencoderStudy) -> "Features":
    """Choose Inception's features if its weights are given, else those of the alignment model fold_1, which no loss of
    the study uses (the perceptual loss uses fold_0). The faithfulness judge would work as well, but the study would
    then have to wait for filtering.
    """
    from emu_models.evaluation.features import encoder_features, inception_features

    if section.inception:
        return inception_features(layout.root / section.inception)
    if not (folder := layout.model("alignment_model") / "fold_1").is_dir():
        raise ValueError(
            "no alignment model was trained, whose features measure distances: set autoencoder_study.inception to the "
            "path of inception-2015-12-05.pt"
        )
    return encoder_features(folder)


def late_gain(folder: Path) -> float:
    """Return how many dB of held-out PSNR a training gained in its last third, or since its first validation if that
    was later; 0 if it was validated only once.
    """
    log = pd.read_json(folder / "metrics.jsonl", lines=True).dropna(subset="val_psnr")
    early = log[log["step"] <= log["step"].max() * 2 / 3]
    since = early.iloc[-1] if len(early) else log.iloc[0]
    return float(log["val_psnr"].iloc[-1] - since["val_psnr"])


def neighbours(variants: Mapping[str, Variant]) -> list[tuple[str, str]]:
    """Return pairs of variants to compare: each number of channels with the next, and each Fourier variant with the
    plain one that has as many channels.
    """
    plain = sorted((v.latent_channels, name) for name, v in variants.items() if not v.fourier_bands)
    plain_with = dict(plain)
    pairs = [(before, after) for (_, before), (_, after) in zip(plain, plain[1:], strict=False)]
    return pairs + [
        (plain_with[v.latent_channels], name)
        for name, v in variants.items()
        if v.fourier_bands and v.latent_channels in plain_with
    ]


def describe_steps(
    steps: "list[Step]", variants: Mapping[str, Variant], late_gains: Mapping[str, float], num_images: int
) -> str:
    """Describe in words what the numbers show: whether quality rises with the channels and, if not, what the learning
    curves say about the reason; and whether the Fourier transform helps or hurts.
    """
    from emu_data.votes.intervals import is_above, is_below

    channels = [step for step in steps if not variants[step.after].fourier_bands]
    rising = [step for step in channels if is_above(step.difference.psnr, 0)]
    sentences = []
    if channels:
        how_often = "with every step" if len(rising) == len(channels) else f"in {len(rising)} of {len(channels)} steps"
        gains = ", ".join(_describe_gain(step, variants) for step in channels)
        sentences.append(f"PSNR rises {how_often} in channels: {gains}.")
    for step in channels:
        if step not in rising:
            sentences.append(_reason(step, variants, late_gains, num_images))
    for step in steps:
        if variants[step.after].fourier_bands:
            psnr, ssim = step.difference.psnr, step.difference.ssim
            no_verdict = "makes no measurable difference"
            verdict = "helps" if is_above(psnr, 0) else "hurts" if is_below(psnr, 0) else no_verdict
            sentences.append(
                f"The Fourier transform {verdict} at {variants[step.after].latent_channels} channels: "
                f"PSNR {_signed(psnr, 2)} dB, SSIM {_signed(ssim, 4)}."
            )
    return " ".join(sentences)


def describe_losses(section: AutoencoderStudy) -> str:
    """Name the losses that the study's autoencoders were trained with, as one sentence for the report."""
    from emu_models.latent.autoencoder.perceptual import describe_perceptual
    from emu_models.latent.jobs import PerceptualConfig

    given = section.losses.perceptual
    perceptual = describe_perceptual(PerceptualConfig(given.kind, given.path or "alignment_model", given.weight))
    return f"Losses: L1, KL, a hinge PatchGAN, {perceptual}."


def _reason(step: "Step", variants: Mapping[str, Variant], late_gains: Mapping[str, float], num_images: int) -> str:
    from emu_data.votes.intervals import is_below

    before, after = variants[step.before].latent_channels, variants[step.after].latent_channels
    gains = late_gains[step.before], late_gains[step.after]
    curves = (
        f"in the last third of the training {before} channels gained {format_signed(gains[0], 2)} dB and "
        f"{after} channels {format_signed(gains[1], 2)} dB"
    )
    if not is_below(step.difference.psnr, 0):
        return f"{num_images} held-out pictures do not show whether {before} or {after} channels are better; {curves}."
    if gains[1] > gains[0]:
        return (
            f"{after} channels are behind {before} because the training was too short: {curves}, "
            "so they were catching up."
        )
    return f"{after} channels are behind {before}, and not because the training was too short: {curves}."


def _describe_gain(step: "Step", variants: Mapping[str, Variant]) -> str:
    channels = variants[step.before].latent_channels, variants[step.after].latent_channels
    return f"{channels[0]} to {channels[1]} {_signed(step.difference.psnr, 2)} dB"


def _signed(interval, digits: int) -> str:
    estimate, low, high = (format_signed(value, digits) for value in (interval.estimate, interval.low, interval.high))
    return f"{estimate} ({low} to {high})" if interval.low == interval.low else f"{estimate} (no interval)"
