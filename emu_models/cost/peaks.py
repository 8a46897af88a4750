"""The memory that each step of a training takes at its peak, measured by running the real code on a GPU that is not
there (fake_gpu.py). It takes seconds on any machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from emu_models.cost.costs import Activations, Peak
from emu_models.cost.fake_gpu import MemoryCounter, pretend_gpu
from emu_models.cost.networks import Networks, ProfileNetworks, build_text_encoders, make_text
from emu_models.device import autocast_on_gpu
from emu_models.latent import autoencoder_learner, denoiser_learner
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.autoencoder.perceptual import LpipsDistance
from emu_models.latent.denoiser_learner import Batch, DenoiserLearner, LatentRows
from emu_models.latent.jobs import AutoencoderLossConfig, AutoencoderTrainingConfig, DenoiserTrainingConfig


@lru_cache(maxsize=32)
def measure_step(networks: Networks, resolution: int, checkpointing: bool) -> Activations:
    """Return what a step of the denoiser's training takes beside its states, at `resolution` px: what its forward pass
    leaves for the backward pass. checkpointing: blocks keep their inputs only, and the largest one is recomputed."""
    with pretend_gpu():
        learner, counter = _make_learner(networks, checkpointing)
        autoencoder = MemoryCounter()
        autoencoder.add(learner.autoencoder)  # type: ignore[arg-type]
        states = counter.now - autoencoder.now
        one, two = (_kept(learner, counter, _make_batch(learner, networks, n, resolution)) - states for n in (1, 2))
    block = _largest_block(networks, resolution) if checkpointing else 0
    return Activations(fixed=2 * one - two, per_sample=two - one + block)


def _kept(learner: DenoiserLearner, counter: MemoryCounter, batch: Batch) -> int:
    """Return the bytes that live after a forward pass whose loss can be differentiated."""
    with counter:
        loss = learner.weighted_loss(learner.network, batch)
        assert loss.requires_grad
        return counter.now


@lru_cache(maxsize=32)
def measure_validation(networks: Networks, resolution: int) -> int:
    """Return the bytes that a validated sample takes beside the states of the training, at `resolution` px."""
    with pretend_gpu():
        learner, counter = _make_learner(networks, False)
        before = counter.now
        with counter, torch.no_grad():
            learner.weighted_loss(learner.averaged, _make_batch(learner, networks, 1, resolution))
    return counter.peak - before


def _make_learner(networks: Networks, checkpointing: bool) -> tuple[DenoiserLearner, MemoryCounter]:
    """Return a learner on the GPU, and a counter of its weights, the average and the autoencoder."""
    config = DenoiserTrainingConfig(1, 1, 1e-4, 0.0, 0.0, 0, gradient_checkpointing=checkpointing)
    with torch.device("cuda"):
        network, autoencoder = networks.build_denoiser(), networks.build_autoencoder()
    empty: Any = LatentRows([], None, None)  # type: ignore[arg-type]
    null = make_text(networks, 1, "cpu")

    def build_again(*_: Any, **__: Any) -> torch.nn.Module:  # a deep copy would read the weights
        with torch.device("cuda"):
            return networks.build_denoiser().eval().requires_grad_(False)

    with mock.patch.object(denoiser_learner, "copy_for_averaging", build_again):
        learner = networks.make_learner(network.train(), autoencoder, empty, empty, null, config)
    counter = MemoryCounter()
    counter.add(learner.network, learner.averaged, autoencoder)  # type: ignore[arg-type]
    return learner, counter


def _make_batch(learner: DenoiserLearner, networks: Networks, num: int, resolution: int) -> Batch:
    z0 = torch.empty(networks.latents(num, resolution))
    times = learner.draw_times(torch.full((num,), 0.5), z0)
    return Batch(z0, torch.empty_like(z0), times, make_text(networks, num, "cpu"), torch.ones(num))


@lru_cache(maxsize=32)
def _largest_block(networks: Networks, resolution: int) -> int:
    """Return the bytes that the largest block of the denoiser keeps of one sample."""
    with pretend_gpu():
        learner, counter = _make_learner(networks, False)
        network, kept = learner.network, []
        for block in networks.blocks(network):
            block.register_forward_pre_hook(lambda *_: kept.append(-counter.now))
            block.register_forward_hook(lambda *_: kept.append(kept.pop() + counter.now))
        with counter:
            learner.weighted_loss(network, _make_batch(learner, networks, 1, resolution))
    return max(kept)


@lru_cache(maxsize=32)
def measure_encoding(networks: Networks, resolution: int) -> Peak:
    """Return what encoding pictures of `resolution` px takes."""
    with _built(networks.build_autoencoder) as (autoencoder, counter):
        return _of_one(counter, lambda: autoencoder.encode(torch.empty(1, 3, resolution, resolution, device="cuda")))


@lru_cache(maxsize=32)
def measure_captions(networks: Networks) -> Peak:
    """Return what encoding captions takes, with all text encoders on the GPU, in bf16 as they are lent to it."""

    def build() -> Any:
        torch.set_default_dtype(torch.bfloat16)
        try:
            return build_text_encoders(networks)
        finally:
            torch.set_default_dtype(torch.float32)

    with _built(build) as (encoders, counter):

        def encode() -> None:
            for encoder, (_, num_tokens) in zip(encoders, networks.text, strict=True):
                encoder(input_ids=torch.empty(1, num_tokens, dtype=torch.long, device="cuda"))

        return _of_one(counter, encode)


@lru_cache(maxsize=32)
def measure_drawing(networks: Networks, resolution: int) -> Peak:
    """Return what drawing pictures of `resolution` px with guidance takes, decoded one at a time."""

    def build() -> Any:
        return torch.nn.ModuleList([networks.build_denoiser(), networks.build_autoencoder()])  # type: ignore[list-item]

    with _built(build) as ((denoiser, autoencoder), counter):

        def draw() -> Tensor:
            z = torch.empty(networks.latents(1, resolution), device="cuda")
            text = make_text(networks, 2, "cuda")
            predicted = networks.predict(denoiser, torch.cat([z, z]), torch.empty(2, device="cuda"), text)
            return autoencoder.decode(z + predicted.chunk(2)[0])

        return _of_one(counter, draw)


@lru_cache(maxsize=8)
def measure_autoencoder(networks: ProfileNetworks, resolution: int, micro_batch: int, with_lpips: bool) -> int:
    """Return the bytes that a step of the autoencoder's training takes with `micro_batch` pictures of `resolution` px
    at a time, once its adversary has started."""
    with pretend_gpu():
        with torch.device("cuda"):
            network, perceptual = Autoencoder(**networks.autoencoder), LpipsDistance() if with_lpips else None
        for part in perceptual.modules() if perceptual else ():  # some of its constants start on the CPU
            part._buffers = {name: None if buffer is None else buffer.cuda() for name, buffer in part._buffers.items()}
        config = AutoencoderTrainingConfig(1, micro_batch, 1e-4, AutoencoderLossConfig(1e-6, 0.5, 0.0), 0)
        stand_ins: dict[str, Any] = {
            "choose_device": lambda: torch.device("cuda"),
            "build_perceptual": lambda _: perceptual,
            "copy_for_averaging": lambda network: network,  # a deep copy would read the weights; counted below
        }
        stays = mock.patch.object(torch.nn.Module, "to", lambda module, *_, **__: module)  # fakes stay
        with mock.patch.multiple(autoencoder_learner, **stand_ins), stays, torch.device("cuda"):
            none: Any = SimpleNamespace(trained=None, held=None)
            learner = autoencoder_learner.AutoencoderLearner(network, none, config)
        trained = sum(p.nbytes for module in learner.modules.values() for p in module.parameters())
        average = sum(p.nbytes for p in network.parameters())
        counter = MemoryCounter()
        counter.add(*learner.modules.values(), *([perceptual] if perceptual else []))
        side = resolution // network.factor
        with counter:
            x = torch.empty(micro_batch, 3, resolution, resolution, device="cuda")
            x = x.to(memory_format=torch.channels_last)
            noise = torch.empty(micro_batch, len(network.latent_mean), side, side, device="cuda")
            losses = learner.losses(x, noise, 1.0, True)
            assert losses.l1.requires_grad
            kept = counter.now
    # beside the weights: their gradients and AdamW's two moments, and the average
    return kept + 3 * trained + average


@contextmanager
def _built(build: Callable[[], Any]) -> Iterator[tuple[Any, MemoryCounter]]:
    """Yield frozen networks on the GPU and the counter of their memory, within bf16 autocast, as in encoding and
    drawing."""
    with pretend_gpu(), torch.no_grad(), autocast_on_gpu(torch.device("cuda")):
        with torch.device("cuda"):
            made = build().eval()
        counter = MemoryCounter()
        counter.add(made)
        yield made, counter


def _of_one(counter: MemoryCounter, act: Callable[[], Any]) -> Peak:
    """Return the bytes that are there before one item, and the bytes that it adds at its peak (as memory.Batches
    measures them)."""
    before = counter.now
    with counter:
        act()
    return Peak(before, counter.peak - before)
