"""Measures what networks take on tensors without data: parameters, FLOPs, activations. It takes seconds on any machine.

FLOPs are counted by torch's FlopCounterMode on the meta device: a multiplication and an addition are two, element-wise
operations are not counted. Activations are the bytes that autograd keeps from a forward pass, under the training's bf16
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
from transformers import AutoConfig, AutoModel

from emu_models.cost.costs import PUBLISHED, Activations, Flops, TextCost
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import count_parameters, denoise
from emu_models.latent.jobs import DenoiserConfig
from emu_models.text import TEXT_HALVES, TextFeatures, list_text_encoders


@dataclass(frozen=True, eq=False)
class Networks:
    """All networks of a denoiser's training. autoencoder: arguments of Autoencoder; text: the text encoders' configs,
    each with its number of tokens (see describe_text). Equal only to itself, so that lru_cache can use it as a key."""

    denoiser: DenoiserConfig
    autoencoder: dict[str, Any]
    text: tuple[tuple[Any, int], ...]

    @property
    def token_width(self) -> int:
        """Channels of the token features, summed over the encoders."""
        return sum(config.hidden_size for config, _ in self.text)

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled text vector: those of the first encoder."""
        return self.text[0][0].hidden_size

    @property
    def num_tokens(self) -> int:
        """Tokens per caption, summed over the encoders."""
        return sum(length for _, length in self.text)

    def build_denoiser(self) -> UNet2DConditionModel:
        """Return the U-Net on the current default device (meta, to count without memory)."""
        channels = self.autoencoder["latent_channels"]
        return build_denoiser(self.denoiser, channels, self.token_width, self.pooled_width)

    def latents(self, batch: int, resolution: int) -> torch.Size:
        """Return the shape of the latents of pictures of `resolution` px per side."""
        side = resolution // (self.autoencoder["fold"] * 2 ** (len(self.autoencoder["widths"]) - 1))
        return torch.Size((batch, self.autoencoder["latent_channels"], side, side))

    def inputs(self, batch: int, resolution: int, device: str) -> tuple[torch.Tensor, torch.Tensor, TextFeatures]:
        """Return uninitialised inputs of a forward pass: latents (batch, C, h, w) of pictures of `resolution` px per
        side, timesteps (batch,), and text features."""
        text = TextFeatures(
            torch.empty(batch, self.num_tokens, self.token_width, device=device),
            torch.empty(batch, self.num_tokens, dtype=torch.bool, device=device),
            torch.empty(batch, self.pooled_width, device=device),
        )
        timesteps = torch.empty(batch, dtype=torch.long, device=device)
        return torch.empty(self.latents(batch, resolution), device=device), timesteps, text


def describe_text(names: str | Sequence[str] | None, num_tokens: int) -> tuple[tuple[Any, int], ...]:
    """Return the config and number of tokens of each encoder in params' text_encoder; the paper's two need no file."""
    described = []
    for name in list_text_encoders(names):
        known = PUBLISHED.get(name)
        config = AutoConfig.for_model(**known) if known else AutoConfig.from_pretrained(name)
        config = getattr(config, "text_config", config)
        described.append((config, min(num_tokens, getattr(config, "max_position_embeddings", num_tokens))))
    return tuple(described)


@lru_cache(maxsize=32)
def count_flops(networks: Networks, resolution: int) -> Flops:
    """Return the FLOPs for one sample at `resolution` px; kept per networks and resolution."""
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


@lru_cache(maxsize=32)
def measure_text(networks: Networks) -> tuple[TextCost, ...]:
    """Return the cost of each text encoder, in their order."""
    found = []
    for config, num_tokens in networks.text:
        with torch.device("meta"):
            half = TEXT_HALVES.get(config.model_type)
            model = half(config) if half else AutoModel.from_config(config)
        ids = torch.empty(1, num_tokens, dtype=torch.long, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=ids)
        flops = counter.get_total_flops()
        found.append(TextCost(config.model_type, model.num_parameters(), config.hidden_size, num_tokens, flops))
    return tuple(found)


class FusedAttention(TorchFunctionMode):
    """Makes attention use CUDA's memory-efficient kernel, which does not keep a matrix of positions by positions.

    Fake tensors would use the plain kernel, since the choice depends on the GPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = (x.to(torch.bfloat16) for x in args[:3])  # as autocast does
        bias = (kwargs or {}).get("attn_mask")
        if bias is not None:
            bias = bias.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]


@contextlib.contextmanager
def _autocast_without_cuda() -> Iterator[None]:
    """Do what torch.autocast("cuda", torch.bfloat16) does, which turns itself off without a GPU; fake tensors need
    none.
    """
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


@lru_cache(maxsize=32)
def measure_activations(networks: Networks, resolution: int, checkpointing: bool) -> Activations:
    """Return the denoiser's activations at `resolution` px. checkpointing: every block keeps only its input and is
    recomputed in the backward pass."""
    with FakeTensorMode():
        with torch.device("cuda"):
            denoiser = networks.build_denoiser().train()
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        one, two = (_kept_bytes(denoiser, networks.inputs(batch, resolution, "cuda")) for batch in (1, 2))
    return Activations(fixed=2 * one - two, per_sample=two - one)


def _kept_bytes(denoiser: UNet2DConditionModel, inputs: tuple[torch.Tensor, torch.Tensor, TextFeatures]) -> int:
    kept: dict[int, torch.UntypedStorage] = {}  # holds the storages, so that no address is reused

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
    """Return the numbers of parameters of the denoiser, and of its largest block (the unit that fsdp gathers)."""
    with torch.device("meta"):
        denoiser = networks.build_denoiser()
    blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
    return count_parameters(denoiser), max(count_parameters(block) for block in blocks)
