"""Every step at the paper's scale, run on CUDA tensors without data: our 2.8 B and SDXL must fit into an 80 GB GPU."""

from pathlib import Path

import pytest
import torch
from torch import nn

from emu_models.budget import fitting
from emu_models.cost.costs import Costs
from emu_models.cost.fake_gpu import MemoryCounter, pretend_gpu
from emu_models.cost.flow_networks import FlowNetworks
from emu_models.cost.measuring import count_denoiser, count_flops
from emu_models.cost.networks import CheckpointNetworks, Networks, ProfileNetworks, describe_text
from emu_models.cost.peaks import measure_step
from emu_models.cost.planning import GPUS, Cluster, autoencoder_per_gpu, memory_per_gpu
from emu_models.device import autocast_on_gpu
from emu_models.latent.jobs import DenoiserConfig
from tests.flow_checkpoints import KINDS, make_flow_checkpoint
from tests.published import write_flux_configs, write_sdxl_configs

USABLE = 72e9  # what `emu plan` calls fitting on 80 GB


def test_what_lives_is_counted_and_what_dies_is_not():
    with pretend_gpu(), MemoryCounter() as counter:
        kept = torch.empty(1000, 256, device="cuda")
        assert counter.now == kept.nbytes
        del kept
        other = torch.empty(10, device="cuda") + 1
        assert (counter.now, counter.peak) == (512, 1000 * 256 * 4)
        assert other.device.type == "cuda"


def test_a_forward_pass_keeps_what_its_layers_need():
    """By hand, under bf16 autocast: half-precision copies of the inputs, the output, and of the second layer's weights,
    which the backward pass reads; those of the first layer only until autocast ends."""
    with pretend_gpu(), torch.device("cuda"):
        network = nn.Sequential(nn.Linear(512, 1024, bias=False), nn.Linear(1024, 256, bias=False))
        x = torch.empty(64, 512)
        counter = MemoryCounter()
        counter.add(network, x)
        before, features = counter.now, 2 * 64 * (512 + 1024 + 256)
        assert before == sum(t.nbytes for t in (x, *network.parameters()))
        with counter:
            with autocast_on_gpu(x.device):
                y = network(x)
                assert counter.now - before == features + 2 * (512 * 1024 + 1024 * 256)
            assert counter.now - before == features + 2 * 1024 * 256
            assert (y.dtype, y.requires_grad) == (torch.bfloat16, True)


@pytest.fixture(scope="module")
def small() -> ProfileNetworks:
    autoencoder = {"latent_channels": 4, "fold": 4, "widths": [16, 32], "fourier_bands": 0}
    return ProfileNetworks(DenoiserConfig((64, 128), (False, True), 1), autoencoder, describe_text(None, 12))


def test_the_plan_is_the_peak_of_the_step(small):
    """The parts of the plan add up to the peak that the learner's own step has; more rows take in proportion more."""
    costs = Costs(lambda: small)
    beside = measure_step(small, 128, False)
    for rows in (1, 3):
        total = memory_per_gpu(costs, 128, rows, False, 1).total
        assert total == 20 * count_denoiser(small)[0] + beside.fixed + rows * beside.per_sample


def paper() -> Networks:
    from emu_dagster.commands.plan import plan_networks
    from tests.profiles import params_of

    return plan_networks(params_of("paper"), Path())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "sdxl"])
def test_every_step_at_1024_px_fits(kind, tmp_path):
    networks = paper() if kind == "ours" else CheckpointNetworks(write_sdxl_configs(tmp_path))
    num_parameters = count_denoiser(networks)[0]
    assert num_parameters == pytest.approx(
        2.8e9 if kind == "ours" else 2_567_463_684, rel=0.02 if kind == "ours" else 0
    )
    costs = Costs(lambda: networks)
    states = 20 * num_parameters
    peaks = {"train": memory_per_gpu(costs, 1024, 1, False, 1).total}
    peaks["recomputed"] = memory_per_gpu(costs, 1024, 1, True, 1).total
    peaks["validate"] = states + costs.validation(1024)
    peaks["sample"] = states + costs.drawing(1024).per_item
    for name, found in (
        ("captions", costs.captions()),
        ("encode", costs.encoding(1024)),
        ("draw", costs.drawing(1024)),
    ):
        num = fitting(64, found.per_item, USABLE - found.weights)
        peaks[name] = found.weights + num * found.per_item
        assert num >= 4, (name, found)
    assert peaks["recomputed"] < peaks["train"] - 5e9
    too_large = {name: f"{peak / 1e9:.1f} GB" for name, peak in peaks.items() if peak > USABLE}
    assert not too_large, peaks


@pytest.mark.parametrize("kind", KINDS)
def test_a_brought_transformer_is_planned_from_its_configs(kind, tmp_path):
    folder = make_flow_checkpoint(kind, tmp_path / kind)
    for file in folder.rglob("*.safetensors"):
        file.unlink()  # weights are not read
    networks = FlowNetworks(folder)
    costs, flops = Costs(lambda: networks), count_flops(networks, 32)
    assert 2 * flops.forward < flops.step and flops.encode_caption > 0
    one, three = (memory_per_gpu(costs, 32, rows, False, 1).total for rows in (1, 3))
    assert one > 20 * count_denoiser(networks)[0] and three > one
    assert costs.drawing(32).per_item > 0 and costs.encoding(32).per_item > 0


@pytest.mark.slow
def test_flux_at_1024_px_fits_on_eight_gpus_beside_its_sharded_states(tmp_path):
    networks = FlowNetworks(write_flux_configs(tmp_path))
    assert count_denoiser(networks)[0] == 11_901_408_320  # as published
    costs = Costs(lambda: networks)
    peaks = {"train": memory_per_gpu(costs, 1024, 1, True, 8).total}
    peaks["captions"] = costs.captions().weights + costs.captions().per_item
    # fp32 weights beside their bf16 copies: more than what a plan calls fitting, but less than the GPU has
    assert costs.drawing(1024).weights + costs.drawing(1024).per_item < 80e9
    too_large = {name: f"{peak / 1e9:.1f} GB" for name, peak in peaks.items() if peak > USABLE}
    assert not too_large, peaks


@pytest.mark.slow
@pytest.mark.parametrize("num_gpus", [1, 8])
def test_the_papers_autoencoder_fits_in_micro_batches(num_gpus):
    """A batch of 64 at 256 px with LPIPS and the adversary: more than one GPU has, so it is computed in parts."""
    costs = Costs(paper)
    assert costs.autoencoder(256, 64, True) > USABLE
    cluster = Cluster(GPUS["H100"], num_gpus, 0.4, 2.5)
    sharing, micro_batch, taken = autoencoder_per_gpu(costs, cluster, 256, 64, True)
    assert (sharing, taken <= USABLE, taken == costs.autoencoder(256, micro_batch, True)) == (num_gpus, True, True)
    assert micro_batch == {1: 32, 8: 8}[num_gpus]


def test_an_autoencoders_parts_take_in_proportion_to_their_pictures(small):
    one, two, four = (Costs(lambda: small).autoencoder(64, num, False) for num in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
