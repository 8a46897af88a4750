"""What a training costs, before it is run: parameters, FLOPs, memory, days and dollars.

All of it is measured on tensors without data, on any machine, in seconds. FLOPs are counted by torch's FlopCounterMode
on the meta device: a multiplication and an addition are two, element-wise work is not counted. Activations are the
bytes that autograd keeps of a forward pass, under the training's own bf16 autocast, on fake tensors of a CUDA device.
How weights lie over GPUs is what torch's fully_shard does, block by block and in fp32, as the training uses it.
What cannot be measured that way is a field of Cluster and assumed by whoever fills it in.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, CLIPTextConfig, T5Config

from emu_models.autoencoder.network import Autoencoder
from emu_models.denoiser import DenoiserConfig, build_denoiser, count_parameters, denoise
from emu_models.text import TEXT_HALVES, TextFeatures, list_text_encoders

FP32 = 4  # bytes
# sizes of the paper's encoders as their config.json on the hub give them, so that a plan needs no network
PUBLISHED = {
    "openai/clip-vit-large-patch14": CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    ),
    "google/t5-v1_1-xxl": T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    ),
}


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


@dataclass(frozen=True, eq=False)
class Networks:
    """All that a denoiser's training holds. autoencoder: arguments of Autoencoder; text: the encoders' configs, each
    with its number of tokens (see describe_text). Equal only to itself, so that what was measured is kept by it."""

    denoiser: DenoiserConfig
    autoencoder: dict[str, Any]
    text: tuple[tuple[Any, int], ...]

    @property
    def token_width(self) -> int:
        return sum(config.hidden_size for config, _ in self.text)

    @property
    def pooled_width(self) -> int:
        return self.text[0][0].hidden_size

    @property
    def num_tokens(self) -> int:
        return sum(length for _, length in self.text)

    def build_denoiser(self) -> UNet2DConditionModel:
        channels = self.autoencoder["latent_channels"]
        return build_denoiser(self.denoiser, channels, self.token_width, self.pooled_width)

    def latents(self, batch: int, resolution: int) -> torch.Size:
        """Shape of the latents of pictures of that side in pixels."""
        side = resolution // (self.autoencoder["fold"] * 2 ** (len(self.autoencoder["widths"]) - 1))
        return torch.Size((batch, self.autoencoder["latent_channels"], side, side))

    def inputs(self, batch: int, resolution: int, device: str) -> tuple[torch.Tensor, torch.Tensor, TextFeatures]:
        text = TextFeatures(
            torch.empty(batch, self.num_tokens, self.token_width, device=device),
            torch.empty(batch, self.num_tokens, dtype=torch.bool, device=device),
            torch.empty(batch, self.pooled_width, device=device),
        )
        timesteps = torch.empty(batch, dtype=torch.long, device=device)
        return torch.empty(self.latents(batch, resolution), device=device), timesteps, text


def describe_text(names: str | Sequence[str] | None, num_tokens: int) -> tuple[tuple[Any, int], ...]:
    """Config and number of tokens of each encoder of params' text_encoder; the paper's two need no file."""
    described = []
    for name in list_text_encoders(names):
        config = PUBLISHED.get(name) or AutoConfig.from_pretrained(name)
        config = getattr(config, "text_config", config)
        described.append((config, min(num_tokens, getattr(config, "max_position_embeddings", num_tokens))))
    return tuple(described)


@dataclass(frozen=True)
class Flops:
    """Of one sample: the denoiser's forward pass and its whole step, and what caches spare: encoding it."""

    forward: int
    step: int
    encode_picture: int
    encode_caption: int


@lru_cache(maxsize=32)
def count_flops(networks: Networks, resolution: int) -> Flops:
    with torch.device("meta"):
        denoiser = networks.build_denoiser()
        autoencoder = Autoencoder(**networks.autoencoder)
    with FlopCounterMode(display=False) as counter:
        predicted = denoise(denoiser, *networks.inputs(1, resolution, "meta"))
        forward = counter.get_total_flops()
        predicted.sum().backward()
    step = counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        autoencoder.encode(torch.empty(1, 3, resolution, resolution, device="meta"))
    encode_picture = counter.get_total_flops()
    encode_caption = sum(encoder.flops for encoder in measure_text(networks))
    return Flops(forward, step, encode_picture, encode_caption)


@dataclass(frozen=True)
class TextCost:
    """An encoder's parameters, tokens a caption, and FLOPs of encoding one."""

    kind: str
    num_parameters: int
    num_tokens: int
    flops: int


@lru_cache(maxsize=32)
def measure_text(networks: Networks) -> tuple[TextCost, ...]:
    """One a text encoder, in their order."""
    found = []
    for config, num_tokens in networks.text:
        with torch.device("meta"):
            half = TEXT_HALVES.get(config.model_type)
            model = half(config) if half else AutoModel.from_config(config)
        ids = torch.empty(1, num_tokens, dtype=torch.long, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=ids)
        found.append(TextCost(config.model_type, model.num_parameters(), num_tokens, counter.get_total_flops()))
    return tuple(found)


class FusedAttention(TorchFunctionMode):
    """Attention as CUDA's memory-efficient kernel does it, which keeps no matrix of positions by positions.

    Fake tensors would take the plain one, since which kernel serves is asked of the GPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = (x.to(torch.bfloat16) for x in args[:3])  # autocast does so
        bias = (kwargs or {}).get("attn_mask")
        if bias is not None:
            bias = bias.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]


@contextlib.contextmanager
def _autocast_without_cuda() -> Iterator[None]:
    """torch.autocast("cuda", torch.bfloat16), which switches itself off where there is no GPU; fake ones need none."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps until the backward pass: whatever the batch (half-precision weights), and a sample."""

    fixed: int
    per_sample: int


@lru_cache(maxsize=32)
def measure_activations(networks: Networks, resolution: int, checkpointing: bool) -> Activations:
    """checkpointing: every block keeps only its input and is computed again in the backward pass."""
    with FakeTensorMode():
        with torch.device("cuda"):
            denoiser = networks.build_denoiser().train()
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        one, two = (_kept_bytes(denoiser, networks.inputs(batch, resolution, "cuda")) for batch in (1, 2))
    return Activations(fixed=2 * one - two, per_sample=two - one)


def _kept_bytes(denoiser: UNet2DConditionModel, inputs: tuple[torch.Tensor, torch.Tensor, TextFeatures]) -> int:
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    weights = {p.untyped_storage()._cdata for p in denoiser.parameters()}
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with _autocast_without_cuda(), FusedAttention(), hooks:
        predicted = denoise(denoiser, *inputs)
    assert predicted.dtype == torch.bfloat16
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


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


@lru_cache(maxsize=32)
def count_denoiser(networks: Networks) -> tuple[int, int]:
    """Parameters of the denoiser, and of its largest block (what one gathering brings)."""
    with torch.device("meta"):
        denoiser = networks.build_denoiser()
    blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
    return count_parameters(denoiser), max(count_parameters(block) for block in blocks)


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
