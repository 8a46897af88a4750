"""What only a GPU can show: the CPU's losses, resumption, the predicted memory at 1024 px, and how fast it is.

Run by `make gpu` (Python 3.12 and its own torch will do). Until a card has run them, README lists them as never run.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emu_models.cost.costs import Costs
from emu_models.cost.networks import CheckpointNetworks, Networks, ProfileNetworks, make_text
from emu_models.cost.peaks import measure_drawing, measure_encoding
from emu_models.cost.planning import memory_per_gpu
from emu_models.device import autocast_on_gpu
from emu_models.diffusion.schedule import build_scheduler
from emu_models.latent.autoencoder.network import Autoencoder, Moments
from emu_models.latent.autoencoder_learner import AutoencoderLearner
from emu_models.latent.denoiser import denoise
from emu_models.latent.denoiser_learner import Batch, DenoiserLearner, LatentRows
from emu_models.latent.jobs import (
    AutoencoderLossConfig,
    AutoencoderTrainingConfig,
    DenoiserConfig,
    DenoiserTrainingConfig,
)
from emu_models.memory import Batches
from emu_models.text import TextFeatures
from emu_models.training.jobs import LoopConfig
from emu_models.training.loop import Interrupted, run_training
from emu_models.training.rows import Rows
from emu_models.training.running import Running
from tests.published import PAPER_AUTOENCODER, PAPER_DENOISER, paper_text, write_sdxl_configs

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
SMALL = DenoiserConfig((64, 128), (False, True), 1)
STEPS = 12


@pytest.fixture(scope="module")
def rows() -> LatentRows:
    """24 rows of random latents and text."""
    made = torch.Generator().manual_seed(0)
    mean = torch.randn(24, 4, 16, 16, generator=made)
    text = TextFeatures(
        torch.randn(24, 8, 32, generator=made), torch.ones(24, 8, dtype=torch.bool), torch.randn(24, 32, generator=made)
    )
    return LatentRows([str(i) for i in range(24)], Moments(mean, torch.full_like(mean, -6.0)), text)


def denoiser_learner(rows: LatentRows, device: torch.device, **changes: Any) -> DenoiserLearner:
    torch.manual_seed(0)
    networks = ProfileNetworks(SMALL, {"latent_channels": 4, "fold": 4, "widths": [16, 32]}, ((Hidden(32), 8),))
    network: Any = networks.build_denoiser()
    autoencoder: Any = Autoencoder(4, widths=(16, 32))
    config = replace(DenoiserTrainingConfig(STEPS, 8, 1e-4, 0.0, 0.1, 0), **changes)
    null = TextFeatures(torch.zeros(1, 8, 32), torch.ones(1, 8, dtype=torch.bool), torch.zeros(1, 32))
    parts = network.to(device).train(), autoencoder.to(device)
    return DenoiserLearner(*parts, build_scheduler(), rows, rows, null, config)


class Hidden:
    """A text encoder's config, as far as a network needs it."""

    def __init__(self, hidden_size: int) -> None:
        self.hidden_size = hidden_size


def learn(learner: Any, step: int, batch: Any) -> float:
    """Do a step as the loop does, and return its loss."""
    loss = learner.learn(step, batch)["loss"]
    for optimizer in learner.optimizers.values():
        optimizer.step()
    return loss


def losses_of(learner: Any) -> list[float]:
    return [learn(learner, step, learner.prepare(step)) for step in range(STEPS)]


def test_the_denoiser_learns_what_it_learns_on_a_cpu(rows, note):
    """bf16 on the GPU, fp32 or bf16 on the CPU: the losses of the same steps differ by rounding."""
    cpu, gpu = (losses_of(denoiser_learner(rows, torch.device(d))) for d in ("cpu", "cuda"))
    note(denoiser_losses={"cpu": cpu, "gpu": gpu})
    assert gpu == pytest.approx(cpu, rel=0.03)


def test_recomputed_accumulated_and_compiled_steps_give_the_same_losses(rows, note):
    plain = losses_of(denoiser_learner(rows, CUDA))
    for changes in ({"gradient_checkpointing": True}, {"micro_batch_size": 2}, {"compile": True}):
        assert losses_of(denoiser_learner(rows, CUDA, **changes)) == pytest.approx(plain, rel=0.02), changes


def test_the_autoencoder_learns_what_it_learns_on_a_cpu(note, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    data = Rows([str(i) for i in range(16)], [""] * 16, images, np.arange(16) >= 12)
    config = AutoencoderTrainingConfig(STEPS, 4, 1e-4, AutoencoderLossConfig(1e-6, 0.1, 0.5), 0)
    found = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr("emu_models.latent.autoencoder_learner.choose_device", lambda d=device: torch.device(d))
        torch.manual_seed(0)
        found[device] = losses_of(AutoencoderLearner(Autoencoder(4, widths=(32, 64)), data, config))
    note(autoencoder_losses=found)
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.03)


def test_a_training_that_was_interrupted_ends_with_the_same_weights(rows, note, tmp_path):
    loop = LoopConfig(STEPS, 1e-4, 2, 0.9, 4, 0.0, 1e9, 0)

    def train(folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        learner, calls = denoiser_learner(rows, CUDA), itertools.count(1)
        running = Running(stop_requested=lambda: next(calls) == stop_at)
        run_training(learner, loop, folder, "gpu", "denoiser", running)
        return {name: value.cpu() for name, value in learner.averaged.state_dict().items()}

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", stop_at=5)
    resumed = train(tmp_path / "parts")
    worst = max((whole[n] - resumed[n]).abs().max().item() for n in whole)
    note(resume_worst_difference=worst)
    assert worst < 1e-3


@pytest.fixture(params=["ours", "sdxl"])
def networks(request, tmp_path) -> Iterator[Networks]:
    """The 2.8 B network of profiles/paper.yaml, and SDXL, with random weights."""
    if request.param == "sdxl":
        yield CheckpointNetworks(write_sdxl_configs(tmp_path))
    else:
        yield ProfileNetworks(DenoiserConfig(**PAPER_DENOISER), PAPER_AUTOENCODER, paper_text())
    gc.collect()
    torch.cuda.empty_cache()


def seconds_of(act: Callable[[], Any], times: int = 3) -> float:
    """Return the seconds that one call takes, after one that warms up."""
    act()
    torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(times):
        act()
    torch.cuda.synchronize()
    return (time.monotonic() - began) / times


def test_a_step_at_1024_px_takes_the_memory_that_was_predicted(networks, request, note):
    with CUDA:
        network, autoencoder = networks.build_denoiser().train(), networks.build_autoencoder()
    none: Any = LatentRows([], None, None)  # type: ignore[arg-type]
    config = DenoiserTrainingConfig(1, 1, 1e-5, 0.0, 0.0, 0, gradient_checkpointing=True)
    null = make_text(networks, 1, "cpu")
    learner = DenoiserLearner(network, autoencoder, build_scheduler(), none, none, null, config)
    z0 = torch.randn(networks.latents(1, 1024))
    batch = Batch(z0, torch.randn_like(z0), torch.tensor([500]), null.select(torch.tensor([0])), torch.ones(1))
    for tensor in (batch.text.tokens_BLD, batch.text.pooled_BD):
        tensor.zero_()
    batch.text.mask_BL.fill_(True)
    seconds = seconds_of(lambda: learn(learner, 0, batch), times=2)
    measured = torch.cuda.max_memory_allocated()
    predicted = memory_per_gpu(Costs(lambda: networks), 1024, 1, True, 1).total
    name = type(networks).__name__
    note(**{f"step_1024_{name}": {"seconds": seconds, "bytes": measured, "predicted_bytes": predicted}})
    assert measured == pytest.approx(predicted, rel=0.1)


def test_encoding_and_drawing_at_1024_px_take_the_memory_that_was_predicted(networks, note):
    name = type(networks).__name__
    with CUDA, torch.no_grad():
        autoencoder = networks.build_autoencoder().eval()
    x = torch.zeros(1, 3, 1024, 1024, device=CUDA)
    with torch.no_grad(), autocast_on_gpu(CUDA):
        torch.cuda.reset_peak_memory_stats()
        seconds = seconds_of(lambda: autoencoder.encode(x))
    predicted = measure_encoding(networks, 1024)
    measured = torch.cuda.max_memory_allocated()
    note(**{f"encode_1024_{name}": {"seconds": seconds, "bytes": measured, "predicted": vars(predicted)}})
    assert measured == pytest.approx(predicted.weights + predicted.per_item, rel=0.15)

    with CUDA:
        denoiser = networks.build_denoiser().eval()
    z, t_B = torch.zeros(networks.latents(2, 1024), device=CUDA), torch.zeros(2, dtype=torch.long, device=CUDA)
    text = make_text(networks, 2, "cuda")
    text.mask_BL.fill_(True)
    batches = Batches("drawing", 32, CUDA)
    with torch.no_grad(), autocast_on_gpu(CUDA):
        torch.cuda.reset_peak_memory_stats()
        seconds = seconds_of(lambda: denoise(denoiser, z, t_B, text))
        seconds_decoding = seconds_of(lambda: autoencoder.decode(z[:1]))
        batches.run(lambda items: denoise(denoiser, z[:1], t_B[:1], text.select(torch.tensor([0]).to(CUDA))), 4)
    predicted = measure_drawing(networks, 1024)
    measured = torch.cuda.max_memory_allocated()
    drawn = {"seconds_per_step": seconds, "seconds_decoding": seconds_decoding, "at_once": batches.size}
    note(**{f"draw_1024_{name}": {**drawn, "bytes": measured, "predicted": vars(predicted)}})
    assert measured == pytest.approx(predicted.weights + predicted.per_item, rel=0.15)


def test_how_fast_filters_are(note):
    """CRAFT and a CLIP of ViT-L/14's size, with random weights, which take as long as real ones."""
    craft = pytest.importorskip("easyocr.craft")
    open_clip = pytest.importorskip("open_clip")
    with CUDA:
        detector = craft.CRAFT().eval().to(memory_format=torch.channels_last)
        tower: Any = open_clip.create_model("ViT-L-14", pretrained=None).visual.to(CUDA).eval()
    x, y = torch.zeros(16, 3, 384, 384, device=CUDA), torch.zeros(256, 3, 224, 224, device=CUDA)
    with torch.inference_mode(), autocast_on_gpu(CUDA):
        note(
            craft_384_per_second=16 / seconds_of(lambda: detector(x.to(memory_format=torch.channels_last))),
            vit_l_14_per_second=256 / seconds_of(lambda: tower(y)),
        )
