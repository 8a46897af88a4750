"""Measures what networks take on tensors without data: parameters and FLOPs here, memory in peaks.py. It takes seconds
on any machine.

FLOPs are counted by torch's FlopCounterMode on the meta device: a multiplication and an addition are two, element-wise
operations are not counted.
"""

from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from emu_models.cost.costs import Flops, TextCost
from emu_models.cost.networks import Networks, build_text_encoders, make_text
from emu_models.latent.denoiser import count_parameters


@lru_cache(maxsize=32)
def count_flops(networks: Networks, resolution: int) -> Flops:
    """Return the FLOPs for one sample at `resolution` px; kept per networks and resolution."""
    with torch.device("meta"):
        denoiser = networks.build_denoiser()
        autoencoder: Any = networks.build_autoencoder()
        z, time_B = torch.empty(networks.latents(1, resolution)), torch.empty(1)
    with FlopCounterMode(display=False) as counter:
        predicted = networks.predict(denoiser, z, time_B, make_text(networks, 1, "meta"))
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
    with torch.device("meta"):
        models: Any = build_text_encoders(networks)
    for model, (config, num_tokens) in zip(models, networks.text, strict=True):
        ids = torch.empty(1, num_tokens, dtype=torch.long, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=ids)
        flops = counter.get_total_flops()
        found.append(TextCost(config.model_type, model.num_parameters(), config.hidden_size, num_tokens, flops))
    return tuple(found)


@lru_cache(maxsize=32)
def count_denoiser(networks: Networks) -> tuple[int, int]:
    """Return the numbers of parameters of the denoiser, and of its largest block (the unit that fsdp gathers)."""
    with torch.device("meta"):
        denoiser = networks.build_denoiser()
    return count_parameters(denoiser), max(map(count_parameters, networks.blocks(denoiser)))


def shape_of_latents(networks: Networks, resolution: int) -> tuple[int, ...]:
    """Return the shape (C, h, w) of the latents of a picture."""
    return tuple(networks.latents(1, resolution)[1:])
