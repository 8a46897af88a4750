"""What networks take, measured on tensors without data: parameters, FLOPs, activations. Any machine, in seconds.

FLOPs are counted by torch's FlopCounterMode on the meta device: a multiplication and an addition are two, element-wise
work is not counted. Activations are the bytes that autograd keeps of a forward pass, under the training's own bf16
autocast, on fake tensors of a CUDA device.
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

from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import count_parameters, denoise
from emu_models.latent.jobs import DenoiserConfig
from emu_models.text import TEXT_HALVES, TextFeatures, list_text_encoders

# sizes of the paper's encoders as their config.json on the hub give them, so that a plan needs no network
PUBLISHED = {
    "openai/clip-vit-large-patch14": CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    ),
    "google/t5-v1_1-xxl": T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    ),
}


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


@lru_cache(maxsize=32)
def count_denoiser(networks: Networks) -> tuple[int, int]:
    """Parameters of the denoiser, and of its largest block (what one gathering brings)."""
    with torch.device("meta"):
        denoiser = networks.build_denoiser()
    blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
    return count_parameters(denoiser), max(count_parameters(block) for block in blocks)
