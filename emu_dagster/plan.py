"""What `emu plan` prints: a profile's denoiser trainings on a named cluster. The measuring is emu_models.planning."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from emu_dagster.params import Params, Pretraining, QualityTuning
from emu_dagster.training_jobs import autoencoder_network

if TYPE_CHECKING:
    from emu_models.planning import Cluster, DataPlan, Networks, StagePlan

STAGES = ("pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned")
BITS_PER_PIXEL = 2.0  # of a stored JPEG; assumed
GB, TB, TFLOP = 1e9, 1e12, 1e12


def plan_networks(params: Params) -> "Networks":
    """The networks that a profile trains and reads."""
    from emu_models.denoiser import DenoiserConfig
    from emu_models.planning import Networks, describe_text

    study, first = params.autoencoder_study, params.pretrained_low
    return Networks(
        DenoiserConfig(**first.denoiser.model_dump()),
        autoencoder_network(study, study.variants[params.autoencoder.variant]),
        describe_text(first.text_encoder, first.num_text_tokens),
    )


def print_plan(params: Params, cluster: "Cluster", num_pairs: int, console: Console | None = None) -> None:
    """Prints the networks, the stages, the memory, the data and every assumption. ValueError where nothing fits."""
    from emu_models.planning import plan_data, plan_stage

    console, networks = console or Console(), plan_networks(params)
    stages, data = [], []
    for name in STAGES:
        section: Pretraining | QualityTuning = getattr(params, name)
        stages.append(plan_stage(networks, cluster, name, section.resolution, section.num_steps, section.batch_size))
        num_rows = params.curated_set.num_images if name == "quality_tuned" else num_pairs
        data.append(plan_data(networks, stages[-1], num_rows))
    title = f"profile {params.profile}, {cluster.num_gpus} x {cluster.gpu.name}, {cluster.strategy}"
    console.print(_networks_table(params, networks))
    console.print(_stages_table(title, cluster, stages))
    console.print(_memory_table(networks, cluster, stages))
    console.print(_data_table(params, cluster, stages, data))
    console.print(*assumptions(cluster, num_pairs), sep="\n", highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _networks_table(params: Params, networks: "Networks") -> Table:
    from emu_models.planning import count_denoiser, measure_text

    latent = networks.latents(1, params.pretrained_full.resolution)
    table = _table("Networks", "", "parameters", "takes")
    num_parameters, _ = count_denoiser(networks)
    table.add_row("denoiser, trained", f"{num_parameters:,}", f"latents {latent[1]} x {latent[2]} x {latent[3]}")
    for encoder in measure_text(networks):
        takes = f"{encoder.num_tokens} tokens, {encoder.flops / TFLOP:,.3f} TFLOP a caption"
        table.add_row(f"{encoder.kind}, frozen", f"{encoder.num_parameters:,}", takes)
    return table


def _stages_table(title: str, cluster: "Cluster", stages: list["StagePlan"]) -> Table:
    table = _table(
        f"Stages: {title}",
        *("stage", "px", "steps", "batch", "GPUs", "micro x accum.", "recompute"),
        *("TFLOP forward", "TFLOP step", "s a step", "GB a GPU", "days", "dollars"),
    )
    for s in stages:
        table.add_row(
            s.name,
            f"{s.resolution}",
            f"{s.num_steps:,}",
            f"{s.batch_size:,}",
            f"{s.num_gpus}",
            f"{s.micro_batch} x {s.accumulation}",
            "yes" if s.checkpointing else "no",
            f"{s.sample.forward / TFLOP:,.3g}",
            f"{s.sample.step / TFLOP:,.3g}",
            f"{s.step_seconds:.3g}",
            f"{s.memory.total / GB:.1f}",
            f"{s.days:,.2f}",
            f"{s.dollars:,.0f}",
        )
    table.add_section()
    total_flops = sum(s.num_steps * s.flops for s in stages)
    table.add_row(
        f"total, {total_flops:.2e} FLOP",
        *[""] * 10,
        f"{sum(s.days for s in stages):,.2f}",
        f"{sum(s.dollars for s in stages):,.0f}",
    )
    return table


def _memory_table(networks: "Networks", cluster: "Cluster", stages: list["StagePlan"]) -> Table:
    """A sample at the highest resolution under every strategy, on as many GPUs as the last pretraining has."""
    from emu_models.planning import STRATEGIES, memory_per_gpu

    full = stages[-2]
    table = _table(
        f"Memory at {full.resolution} px, one sample a GPU, {full.num_gpus} GPUs, GB",
        *("states", "recompute", "weights", "gradients", "AdamW", "average", "gathered", "bf16 copies"),
        *("activations", "total", f"of {cluster.gpu.memory / GB:.0f}"),
    )
    for strategy in STRATEGIES:
        sharing = replace(cluster, strategy=strategy).num_sharing(full.num_gpus)
        for checkpointing in (False, True):
            memory = memory_per_gpu(networks, full.resolution, 1, checkpointing, sharing)
            fits = memory.total <= cluster.gpu.memory * (1 - cluster.reserve)
            parts = [f"{value / GB:.1f}" for value in (*vars(memory).values(), memory.total)]
            label = f"{strategy}, shared by {sharing}" if sharing > 1 else f"{strategy}, not shared"
            table.add_row(label, "yes" if checkpointing else "no", *parts, "fits" if fits else "too much")
    return table


def _data_table(params: Params, cluster: "Cluster", stages: list["StagePlan"], data: list["DataPlan"]) -> Table:
    table = _table(
        "Data and caches: each row's encoding, once",
        *("stage", "rows", "passes", "shards", "pictures TB", "moments TB", "captions TB", "days", "dollars"),
        "encoding, share of training",
    )
    for s, d in zip(stages, data, strict=True):
        side = max(s.resolution, params.filter_ledger.policy.min_side)  # what is stored has passed the gate of size
        pictures = d.num_rows * side**2 * BITS_PER_PIXEL / 8
        days = cluster.days(d.encode_flops, cluster.num_gpus)
        table.add_row(
            s.name,
            f"{d.num_rows:,}",
            f"{d.num_passes:,.2f}",
            f"{math.ceil(d.num_rows / params.raw_corpus.samples_per_shard):,}",
            f"{pictures / TB:,.3g}",
            f"{d.moments_bytes / TB:,.3g}",
            f"{d.captions_bytes / TB:,.3g}",
            f"{days:,.2f}",
            f"{cluster.dollars(days, cluster.num_gpus):,.0f}",
            f"{d.encode_flops / (s.num_steps * s.flops):.0%}",
        )
    return table


def assumptions(cluster: "Cluster", num_pairs: int) -> list[str]:
    """Every number of the plan that is neither measured nor read from the profile, and where it comes from."""
    paper = " (the paper's)" if num_pairs == 1_100_000_000 else ""
    return [
        f"assumed: {cluster.utilisation:.0%} of the peak is reached, recomputation counted as work",
        f"assumed: {cluster.dollars_per_gpu_hour:g} dollars an hour of one GPU, GPUs of a stage paid while it runs",
        f"assumed: {cluster.gpus_per_node} GPUs a node; {cluster.reserve:.0%} of the memory left to workspace",
        f"assumed: {BITS_PER_PIXEL:g} bits a pixel of a stored picture, at the smallest size that the gates let pass",
        "assumed: caches warm, so that no encoder is on the GPU; an earlier stage's captions are encoded again",
        "assumed: gradients' and weights' way between GPUs is within that share of the peak; no stop, no restart, no "
        "evaluation, no storage or traffic is paid for",
        f"data sheet (NVIDIA): {cluster.gpu.flops / TFLOP:.0f} dense bf16 TFLOP/s, {cluster.gpu.memory / GB:.0f} GB",
        f"given: {num_pairs:,} pictures to pretrain on{paper}",
        "profile: steps, batches and the denoiser's widths; the paper has tuning's batch of 64 and at most 15 000 steps",
        "measured: parameters, FLOPs (a multiplication and an addition are 2), activations under bf16 autocast",
    ]
