"""Pretraining at three increasing resolutions (Emu paper, sec. 3.2); noise offset only in the last.

It is a chain of assets and not one asset partitioned by resolution, because such an asset could not depend on its own
previous resolution (dagster#13248). There is no automation condition: people or schedules start trainings.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from emu_dagster.declarations.declared import declared
from emu_dagster.resources.recorder import Record

if TYPE_CHECKING:
    from emu_models.latent.jobs import DenoiserJob

GROUP = "pretraining"
KINDS = {"pytorch", "diffusers", "safetensors"}
# What every training of a denoiser reads besides its own section: the text encoders, and the prompts of its preview.
TEXT_AND_SHEET = [
    "pretrained_low.text_encoder",
    "pretrained_low.num_text_tokens",
    "evaluation_images.fixed_prompts",
    "evaluation_images.guidance_scale",
]
SIZES = "pretrained_low.denoiser.size_conditioning"  # whether the network is told sizes, which rows must have then
CARD = ["profile", "toy", "raw_corpus.source", "raw_corpus.styles"]  # what the model card says about the data
ROWS = ["raw_corpus", "filtered_corpus"]  # pictures, and the ledger that says which of them passed the gates


def train_pipeline(record: Record, job: "DenoiserJob", data: Sequence[str]) -> dg.MaterializeResult:
    """Train a denoiser and write its model card, which names the assets `data`, and the weights from which it started,
    by their md5.
    """
    from emu_dagster.training.train import train
    from emu_steps.model_card import write_model_card

    (result,) = train(record, [job])
    start_from = record.params.quality_tuned.start_from if record.key == "quality_tuned" else None
    deps = record.before.deps.items()
    weights = {path: md5 for path, md5 in deps if path.startswith("data/models/") or path == start_from}
    digests = {asset: record.dvc.digest_of(asset) for asset in data}
    write_model_card(record.layout, record.params, record.key, digests | weights)
    return record.trained(result)


def pretrain(record: Record, previous: str | None) -> dg.MaterializeResult:
    """Train one step of the chain on the rows that passed the section's gates, starting from the weights of `previous`
    (None: from scratch).
    """
    from emu_steps.training_jobs import denoiser_job, write_gated_rows

    layout, section = record.layout, record.section
    with_sizes = section.aspect_buckets > 1 or record.params.pretrained_low.denoiser.size_conditioning
    job = denoiser_job(
        layout,
        record.params,
        record.key,
        layout.raw,
        write_gated_rows(layout, record.key, section.gates, with_sizes, section.min_side),
        section,
        layout.model(previous) if previous else None,
    )
    return train_pipeline(record, job, ROWS)


@declared(
    group=GROUP,
    kinds=KINDS,
    reads=["autoencoder", *ROWS],
    outs=["data/models/pretrained_low"],
    params=["pretrained_low", *TEXT_AND_SHEET[2:], *CARD],
    how=["launch"],
    files=["pretrained_low.text_encoder"],
    pool="gpu",
)
def pretrained_low(record: Record) -> dg.MaterializeResult:
    """The denoiser, trained from scratch at the lowest resolution. The paper's 256 px."""
    return pretrain(record, None)


@declared(
    group=GROUP,
    kinds=KINDS,
    reads=["pretrained_low", *ROWS],
    outs=["data/models/pretrained_mid"],
    params=["pretrained_mid", SIZES, *TEXT_AND_SHEET, *CARD],
    how=["launch"],
    pool="gpu",
)
def pretrained_mid(record: Record) -> dg.MaterializeResult:
    """The denoiser, trained further from pretrained_low at the middle resolution. The paper's 512 px."""
    return pretrain(record, "pretrained_low")


@declared(
    group=GROUP,
    kinds=KINDS,
    reads=["pretrained_mid", *ROWS],
    outs=["data/models/pretrained_full"],
    params=["pretrained_full", SIZES, *TEXT_AND_SHEET, *CARD],
    how=["launch"],
    pool="gpu",
)
def pretrained_full(record: Record) -> dg.MaterializeResult:
    """The denoiser, trained further from pretrained_mid at full resolution, with noise offset 0.02. The paper's 1024
    px.
    """
    return pretrain(record, "pretrained_mid")
