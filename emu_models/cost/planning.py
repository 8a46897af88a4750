"""What a training costs, before it is run: memory a GPU, days and dollars on a named cluster.

What networks take is measured (emu_models.cost.measuring). How weights lie over GPUs is what torch's fully_shard does,
block by block and in fp32, as the training uses it. The rest is a field of Cluster and assumed by whoever fills it in.
"""

from dataclasses import dataclass

from emu_models.cost.measuring import Flops, Networks, count_denoiser, count_flops, measure_activations

FP32 = 4  # bytes


@dataclass(frozen=True)
class Gpu:
    """flops: dense bf16 operations a second at the peak; memory: bytes. Both from NVIDIA's data sheets."""

    name: str
    flops: float
    memory: float


GPUS = {
    "A100": Gpu("A100 SXM 80 GB", 312e12, 80e9),
    "H100": Gpu("H100 SXM 80 GB", 989e12, 80e9),
    "H200": Gpu("H200 SXM 141 GB", 989e12, 141e9),
}


def find_gpu(name: str) -> Gpu:
    if name.upper() not in GPUS:
        raise ValueError(f"no GPU {name!r} is known to the plan; there are: {', '.join(GPUS)}")
    return GPUS[name.upper()]


STRATEGIES = ("ddp", "fsdp", "hsdp")


@dataclass(frozen=True)
class Cluster:
    """strategy: ddp (every GPU holds all states), fsdp (shared by all), hsdp (shared within a node, copied across).

    utilisation: share of the peak that a step reaches, recomputation counted as work; in 0..1. reserve: share of the
    memory left to the workspace, fragmentation and one recomputed block; in 0..1. dollars an hour of one GPU.
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
            raise ValueError(f"{self.num_gpus} GPUs at {self.utilisation} of their peak; give 1 or more, above 0 to 1")

    def num_sharing(self, num_gpus: int) -> int:
        """GPUs among which one copy of the states is divided, where num_gpus train."""
        return {"ddp": 1, "fsdp": num_gpus, "hsdp": min(num_gpus, self.gpus_per_node)}[self.strategy]

    def divides(self, batch_size: int, num_gpus: int) -> bool:
        """Whether each of num_gpus takes as many samples; hsdp over several nodes needs whole ones."""
        whole_nodes = num_gpus <= self.gpus_per_node or num_gpus % self.gpus_per_node == 0
        return batch_size % num_gpus == 0 and (self.strategy != "hsdp" or whole_nodes)

    def days(self, flops: float, num_gpus: int) -> float:
        return flops / (num_gpus * self.gpu.flops * self.utilisation) / 86400

    def dollars(self, days: float, num_gpus: int) -> float:
        return days * 24 * num_gpus * self.dollars_per_gpu_hour


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU. gathered: whole weights of the block at work and of the next, and the gradient of one, where states
    are shared. fixed, activations: see Activations."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    fixed: float
    activations: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory_per_gpu(
    networks: Networks,
    resolution: int,
    micro_batch: int,
    checkpointing: bool,
    num_sharing: int,
    accumulates: bool = False,
) -> Memory:
    """fp32 weights, gradients, AdamW's two moments and the average, divided among num_sharing; activations are not.

    accumulates: gradients of several micro-batches are added up before they are exchanged, so each GPU has them whole.
    """
    num_parameters, largest_block = count_denoiser(networks)
    kept = measure_activations(networks, resolution, checkpointing)
    share = FP32 * num_parameters / num_sharing
    gathered = 3 * FP32 * largest_block if num_sharing > 1 else 0
    gradients = FP32 * num_parameters if accumulates else share
    return Memory(share, gradients, 2 * share, share, gathered, kept.fixed, micro_batch * kept.per_sample)


@dataclass(frozen=True)
class StagePlan:
    """num_gpus: as many as divide the batch; num_gpus x micro_batch x accumulation is the batch.

    flops: of a step of the whole batch, recomputation included.
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
        return self.num_steps * self.flops

    @property
    def step_seconds(self) -> float:
        return self.days * 86400 / self.num_steps


def plan_stage(
    networks: Networks, cluster: Cluster, name: str, resolution: int, num_steps: int, batch_size: int
) -> StagePlan:
    """The largest micro-batch that fits, without checkpointing where one sample fits. ValueError where none does."""
    num_gpus = max(n for n in range(1, min(cluster.num_gpus, batch_size) + 1) if cluster.divides(batch_size, n))
    per_gpu, sharing = batch_size // num_gpus, cluster.num_sharing(num_gpus)
    sample = count_flops(networks, resolution)
    usable = cluster.gpu.memory * (1 - cluster.reserve)
    for checkpointing in (False, True):
        for micro_batch in (m for m in range(per_gpu, 0, -1) if per_gpu % m == 0):
            accumulates = micro_batch < per_gpu
            memory = memory_per_gpu(networks, resolution, micro_batch, checkpointing, sharing, accumulates)
            if memory.total > usable:
                continue
            flops = batch_size * (sample.step + checkpointing * sample.forward)
            days = cluster.days(num_steps * flops, num_gpus)
            return StagePlan(
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
    raise ValueError(
        f"{name}: one sample needs {memory.total / 1e9:.0f} GB with {cluster.strategy} and gradient checkpointing, but "
        f"{usable / 1e9:.0f} GB of a {cluster.gpu.name} are usable; choose --strategy fsdp, or more GPUs to share with"
    )


@dataclass(frozen=True)
class DataPlan:
    """What a stage reads: rows, passes over them, and what encoding each row once takes in bytes and FLOPs."""

    num_rows: int
    num_passes: float
    num_encoded: int
    moments_bytes: float
    captions_bytes: float
    encode_flops: float


def plan_data(networks: Networks, stage: StagePlan, num_rows: int) -> DataPlan:
    """Caches keep fp32 (training/cache.py): two moments a latent; tokens, mask and pooled vector a caption."""
    num_seen = stage.num_steps * stage.batch_size
    num_encoded = min(num_rows, num_seen)
    moments = 2 * FP32 * networks.latents(1, stage.resolution).numel()
    caption = networks.num_tokens * (FP32 * networks.token_width + 1) + FP32 * networks.pooled_width
    return DataPlan(
        num_rows=num_rows,
        num_passes=num_seen / num_rows,
        num_encoded=num_encoded,
        moments_bytes=num_encoded * moments,
        captions_bytes=num_encoded * caption,
        encode_flops=num_encoded * (stage.sample.encode_picture + stage.sample.encode_caption),
    )
