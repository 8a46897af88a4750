"""What `emu plan` prints: a profile's denoiser trainings on a named cluster, planned by emu_models.cost.planning."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from emu_steps.params import Params, Pretraining, QualityTuning
from emu_steps.training_jobs import autoencoder_network

if TYPE_CHECKING:
    from emu_models.cost.measuring import Networks
    from emu_models.cost.planning import Cluster, DataPlan, StagePlan

STAGES = ("pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned")
BITS_PER_PIXEL = 2.0  # of a stored JPEG; assumed
GB, TFLOP = 1e9, 1e12


def plan_networks(params: Params) -> "Networks":
    """The networks that a profile trains and reads."""
    from emu_models.cost.measuring import Networks, describe_text
    from emu_models.latent.jobs import DenoiserConfig

    study, first = params.autoencoder_study, params.pretrained_low
    return Networks(
        DenoiserConfig(**first.denoiser.model_dump()),
        autoencoder_network(study, study.variants[params.autoencoder.variant]),
        describe_text(first.text_encoder, first.num_text_tokens),
    )


def print_plan(params: Params, cluster: "Cluster", num_pairs: int, console: Console | None = None) -> None:
    """Prints the networks, the stages, the memory, the data and every assumption. ValueError where nothing fits."""
    from emu_models.cost.planning import plan_data, plan_stage

    console, networks = console or Console(), plan_networks(params)
    stages, data = [], []
    for name in STAGES:
        section: Pretraining | QualityTuning = getattr(params, name)
        stages.append(plan_stage(networks, cluster, name, section.resolution, section.num_steps, section.batch_size))
        num_rows = params.curated_set.num_images if name == "quality_tuned" else num_pairs
        data.append(plan_data(networks, stages[-1], num_rows))
    console.print(_networks_table(params, networks))
    console.print(_stages_table(params, cluster, stages))
    total, days, dollars = (sum(getattr(s, name) for s in stages) for name in ("total_flops", "days", "dollars"))
    console.print(f"all stages: {total:.3g} FLOP, {days:,.2f} days, {dollars:,.0f} dollars\n", highlight=False)
    console.print(_data_table(params, cluster, stages, data))
    console.print(_memory_table(networks, cluster, stages))
    console.print(*assumptions(cluster, num_pairs), sep="\n", highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


def _networks_table(params: Params, networks: "Networks") -> Table:
    from emu_models.cost.measuring import count_denoiser, measure_text

    latent = networks.latents(1, params.pretrained_full.resolution)
    table = _table("Networks", "", "parameters", "takes")
    num_parameters, _ = count_denoiser(networks)
    table.add_row("denoiser, trained", f"{num_parameters:,}", f"latents {latent[1]} x {latent[2]} x {latent[3]}")
    for encoder in measure_text(networks):
        takes = f"{encoder.num_tokens} tokens, {encoder.flops / TFLOP:,.3f} TFLOP a caption"
        table.add_row(f"{encoder.kind}, frozen", f"{encoder.num_parameters:,}", takes)
    return table


def _stages_table(params: Params, cluster: "Cluster", stages: list["StagePlan"]) -> Table:
    title = f"Stages of profile {params.profile} on {cluster.num_gpus} x {cluster.gpu.name}, {cluster.strategy}"
    table = _table(title, "", *(s.name for s in stages))
    rows: dict[str, Callable[[StagePlan], str]] = {
        "pixels a side": lambda s: f"{s.resolution}",
        "steps": lambda s: f"{s.num_steps:,}",
        "batch": lambda s: f"{s.batch_size:,}",
        "GPUs x micro-batch x accumulation": lambda s: f"{s.num_gpus} x {s.micro_batch} x {s.accumulation}",
        "activations computed again": lambda s: "yes" if s.checkpointing else "no",
        "TFLOP a sample, forward": lambda s: f"{s.sample.forward / TFLOP:,.3g}",
        "TFLOP a sample, whole step": lambda s: f"{s.sample.step / TFLOP:,.3g}",
        "seconds a step": lambda s: f"{s.step_seconds:.3g}",
        "GB a GPU": lambda s: f"{s.memory.total / GB:.1f}",
        "days": lambda s: f"{s.days:,.2f}",
        "dollars": lambda s: f"{s.dollars:,.0f}",
    }
    for name, show in rows.items():
        table.add_row(name, *(show(s) for s in stages))
    return table


def _data_table(params: Params, cluster: "Cluster", stages: list["StagePlan"], data: list["DataPlan"]) -> Table:
    """Encoding: every row that a stage sees, once, by the whole cluster."""
    table = _table("Data and caches", "", *(s.name for s in stages))
    days = [cluster.days(d.encode_flops, cluster.num_gpus) for d in data]
    shares = [d.encode_flops / s.total_flops for s, d in zip(stages, data, strict=True)]
    # what is stored has passed the gate of size
    sides = [max(s.resolution, params.filter_ledger.policy.min_side) for s in stages]
    pictures = [d.num_rows * side**2 * BITS_PER_PIXEL / 8 for side, d in zip(sides, data, strict=True)]
    table.add_row("rows", *(f"{d.num_rows:,}" for d in data))
    table.add_row("passes over them", *(f"{d.num_passes:,.2f}" for d in data))
    table.add_row("shards", *(f"{math.ceil(d.num_rows / params.raw_corpus.samples_per_shard):,}" for d in data))
    table.add_row("pictures", *(_bytes(p) for p in pictures))
    table.add_row("cache of moments", *(_bytes(d.moments_bytes) for d in data))
    table.add_row("cache of captions", *(_bytes(d.captions_bytes) for d in data))
    table.add_row("encoding, days", *(f"{d:,.2f}" for d in days))
    table.add_row("encoding, dollars", *(f"{cluster.dollars(d, cluster.num_gpus):,.0f}" for d in days))
    table.add_row("encoding, share of training", *(f"{share:.1%}" for share in shares))
    return table


def _memory_table(networks: "Networks", cluster: "Cluster", stages: list["StagePlan"]) -> Table:
    """Every strategy at the highest resolution, on as many GPUs as the last pretraining has."""
    from emu_models.cost.planning import STRATEGIES, memory_per_gpu

    full = stages[-2]
    table = _table(
        f"GB a GPU at {full.resolution} px, one sample at a time, {full.num_gpus} GPUs; "
        "'again': activations computed again",
        *("", *(f"{strategy}{again}" for strategy in STRATEGIES for again in ("", ", again"))),
    )
    sharing = [replace(cluster, strategy=strategy).num_sharing(full.num_gpus) for strategy in STRATEGIES]
    cases = [memory_per_gpu(networks, full.resolution, 1, again, n) for n in sharing for again in (False, True)]
    table.add_row("GPUs that share states", *(str(n) for n in sharing for _ in range(2)))
    parts = {
        "weights, fp32": [m.weights for m in cases],
        "gradients, fp32": [m.gradients for m in cases],
        "AdamW's moments, fp32": [m.optimizer for m in cases],
        "average, fp32": [m.average for m in cases],
        "gathered blocks, fp32": [m.gathered for m in cases],
        "weights in bf16": [m.fixed for m in cases],
        "activations": [m.activations for m in cases],
        "total": [m.total for m in cases],
    }
    for name, values in parts.items():
        table.add_row(name, *(f"{value / GB:.1f}" for value in values))
    usable = cluster.gpu.memory * (1 - cluster.reserve)
    table.add_row(f"fits in {usable / GB:.0f} GB", *("yes" if m.total <= usable else "no" for m in cases))
    return table


def _bytes(number: float) -> str:
    units = {"PB": 1e15, "TB": 1e12, "GB": 1e9}
    unit = next((name for name, size in units.items() if number >= size), "MB")
    return f"{number / units.get(unit, 1e6):,.3g} {unit}"


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
        "profile: steps, batches and widths; of the paper: tuning's batch of 64 and at most 15 000 steps",
        "measured: parameters, FLOPs (a multiplication and an addition are 2), activations under bf16 autocast",
    ]
