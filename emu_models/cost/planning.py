"""What a training will cost: memory per GPU, days and dollars on a given cluster.

What networks take is measured (emu_models.cost.costs). The states are distributed over GPUs as torch's fully_shard does
it in the training, block by block and in fp32. Everything else is a field of Cluster, which the user assumes.
"""

import math
from dataclasses import dataclass

from emu_models.cost.costs import Costs, Flops

FP32, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Gpu:
    """A GPU. flops: peak dense bf16 operations per second; memory: bytes. Both from NVIDIA's data sheets."""

    name: str
    flops: float
    memory: float


GPUS = {
    "A100": Gpu("A100 SXM 80 GB", 312e12, 80e9),
    "H100": Gpu("H100 SXM 80 GB", 989e12, 80e9),
    "H200": Gpu("H200 SXM 141 GB", 989e12, 141e9),
}


def find_gpu(name: str) -> Gpu:
    """Return the GPU called `name` in GPUS, in upper or lower case. Raises ValueError if it is unknown."""
    if name.upper() not in GPUS:
        raise ValueError(f"unknown GPU {name!r}; known are {', '.join(GPUS)}")
    return GPUS[name.upper()]


STRATEGIES = ("ddp", "fsdp", "hsdp")


@dataclass(frozen=True)
class Cluster:
    """A cluster, as the user assumes it.

    strategy: ddp (every GPU holds all states), fsdp (sharded over all), hsdp (sharded within a node, replicated across
    nodes). utilisation: 0..1, the share of the peak that a step reaches, where recomputation counts as work. reserve:
    0..1, the share of memory for workspace, fragmentation and one recomputed block.
    """

    gpu: Gpu
    num_gpus: int
    utilisation: float
    dollars_per_gpu_hour: float
    strategy: str = "hsdp"
    gpus_per_node: int = 8
    reserve: float = 0.1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy is {self.strategy!r}; it must be one of {', '.join(STRATEGIES)}")
        if self.num_gpus < 1 or not 0 < self.utilisation <= 1:
            raise ValueError(
                f"{self.num_gpus} GPUs at a utilisation of {self.utilisation}: give at least 1 GPU, and a utilisation "
                "above 0 and up to 1"
            )

    def num_sharing(self, num_gpus: int) -> int:
        """Return among how many GPUs one copy of the states is divided if num_gpus train."""
        return {"ddp": 1, "fsdp": num_gpus, "hsdp": min(num_gpus, self.gpus_per_node)}[self.strategy]

    def divides(self, batch_size: int, num_gpus: int) -> bool:
        """Whether num_gpus can share a batch equally; hsdp over several nodes also needs whole nodes."""
        whole_nodes = num_gpus <= self.gpus_per_node or num_gpus % self.gpus_per_node == 0
        return batch_size % num_gpus == 0 and (self.strategy != "hsdp" or whole_nodes)

    def days(self, flops: float, num_gpus: int) -> float:
        """Return the days that `flops` FLOPs take on `num_gpus` GPUs at the assumed utilisation."""
        return flops / (num_gpus * self.gpu.flops * self.utilisation) / 86400

    def dollars(self, days: float, num_gpus: int) -> float:
        """Return what `num_gpus` GPUs cost for `days` days, in dollars."""
        return days * 24 * num_gpus * self.dollars_per_gpu_hour


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU at the peak of a step. gathered: if states are sharded, the whole weights of the current block and
    the next, and the gradient of one. encoders: of captions and pictures, if they are encoded whenever a step needs
    them. fixed, activations: see Activations."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    encoders: float
    fixed: float
    activations: float

    @property
    def total(self) -> float:
        """Bytes per GPU, all parts together."""
        return sum(vars(self).values())


def memory_per_gpu(
    costs: Costs,
    resolution: int,
    micro_batch: int,
    checkpointing: bool,
    num_sharing: int,
    accumulates: bool = False,
    on_the_fly: bool = False,
) -> Memory:
    """Return the memory for fp32 weights, gradients, AdamW's two moments and the average, divided among num_sharing
    GPUs, and for activations, which are not divided.

    accumulates: gradients of several micro-batches are summed before they are exchanged, so each GPU holds all of them.
    on_the_fly: a caption and a picture are encoded meanwhile; more at a time only if more is free (memory.py).
    """
    num_parameters, largest_block = costs.denoiser()
    beside = costs.step(resolution, checkpointing)
    share = FP32 * num_parameters / num_sharing
    gathered = 3 * FP32 * largest_block if num_sharing > 1 else 0
    gradients = FP32 * num_parameters if accumulates else share
    encoders = 0.0
    if on_the_fly:
        captions = costs.captions()
        encoders = captions.weights + captions.per_item + costs.encoding(resolution).per_item
    return Memory(share, gradients, 2 * share, share, gathered, encoders, beside.fixed, micro_batch * beside.per_sample)


@dataclass(frozen=True)
class TrainingPlan:
    """A training on a cluster. num_gpus: the largest number that divides the batch; batch_size = num_gpus x micro_batch
    x accumulation. flops: per step of the whole batch, including recomputation.
    """

    name: str
    resolution: int
    num_steps: int
    batch_size: int
    num_gpus: int
    micro_batch: int
    accumulation: int
    checkpointing: bool
    memory: Memory
    sample: Flops
    flops: float
    days: float
    dollars: float

    @property
    def total_flops(self) -> float:
        """FLOPs of the whole training."""
        return self.num_steps * self.flops

    @property
    def step_seconds(self) -> float:
        """Seconds per optimiser step."""
        return self.days * 86400 / self.num_steps


def plan_training(
    costs: Costs,
    cluster: Cluster,
    name: str,
    resolution: int,
    num_steps: int,
    batch_size: int,
    on_the_fly: bool = False,
) -> TrainingPlan:
    """Plan a training with the largest micro-batch that fits, without checkpointing if one sample fits. Raises
    ValueError if none fits even with checkpointing."""
    num_gpus = max(n for n in range(1, min(cluster.num_gpus, batch_size) + 1) if cluster.divides(batch_size, n))
    per_gpu, sharing = batch_size // num_gpus, cluster.num_sharing(num_gpus)
    sample = costs.flops(resolution)
    usable = cluster.gpu.memory * (1 - cluster.reserve)
    memory = None
    for checkpointing in (False, True):
        for micro_batch in (m for m in range(per_gpu, 0, -1) if per_gpu % m == 0):
            accumulates = micro_batch < per_gpu
            sizes = (resolution, micro_batch, checkpointing, sharing, accumulates, on_the_fly)
            memory = memory_per_gpu(costs, *sizes)
            if memory.total > usable:
                continue
            flops = batch_size * (sample.step + checkpointing * sample.forward)
            days = cluster.days(num_steps * flops, num_gpus)
            return TrainingPlan(
                name=name,
                resolution=resolution,
                num_steps=num_steps,
                batch_size=batch_size,
                num_gpus=num_gpus,
                micro_batch=micro_batch,
                accumulation=per_gpu // micro_batch,
                checkpointing=checkpointing,
                memory=memory,
                sample=sample,
                flops=flops,
                days=days,
                dollars=cluster.dollars(days, num_gpus),
            )
    assert memory is not None
    raise ValueError(
        f"{name}: one sample needs {memory.total / 1e9:.0f} GB with {cluster.strategy} and gradient checkpointing, but "
        f"only {usable / 1e9:.0f} GB of a {cluster.gpu.name} are usable; choose --strategy fsdp, or more GPUs"
    )


def autoencoder_per_gpu(
    costs: Costs, cluster: Cluster, resolution: int, batch_size: int, with_lpips: bool
) -> tuple[int, int, float]:
    """Return for an autoencoder's training the number of GPUs that share a batch, the largest micro-batch that fits,
    at least 1, and its bytes; every GPU holds all weights."""
    num_gpus = max(n for n in range(1, min(cluster.num_gpus, batch_size) + 1) if batch_size % n == 0)
    per_gpu, usable, taken = batch_size // num_gpus, cluster.gpu.memory * (1 - cluster.reserve), 0.0
    for micro_batch in (m for m in range(per_gpu, 0, -1) if per_gpu % m == 0):
        taken = costs.autoencoder(resolution, micro_batch, with_lpips)
        if taken <= usable:
            return num_gpus, micro_batch, taken
    return num_gpus, 1, taken


@dataclass(frozen=True)
class DataPlan:
    """What a training reads: rows, passes over them, and the bytes and FLOPs of encoding each row once."""

    num_rows: int
    num_passes: float
    num_encoded: int
    moments_bytes: float
    captions_bytes: float
    encode_flops: float


def plan_data(costs: Costs, training: TrainingPlan, num_rows: int) -> DataPlan:
    """Plan a training's data. Caches (training/cache.py) keep two moments per value of the latents and the captions'
    tokens in half precision, and a mask and a pooled vector in fp32. Padding is not kept, so captions take at most what
    is planned."""
    num_seen = training.num_steps * training.batch_size
    num_encoded = min(num_rows, num_seen)
    moments = 2 * HALF * math.prod(costs.latents(training.resolution))
    text = costs.text()
    token_width = sum(encoder.width for encoder in text)  # each encoder has its own channels
    num_tokens = sum(encoder.num_tokens for encoder in text)
    caption = num_tokens * (HALF * token_width + 1) + FP32 * text[0].width  # the pooled vector is the first one's
    return DataPlan(
        num_rows=num_rows,
        num_passes=num_seen / num_rows,
        num_encoded=num_encoded,
        moments_bytes=num_encoded * moments,
        captions_bytes=num_encoded * caption,
        encode_flops=num_encoded * (training.sample.encode_picture + training.sample.encode_caption),
    )
