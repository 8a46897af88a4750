"""The plan against arithmetic by hand, on networks that are small enough to run; nothing here needs a GPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from emu_models.cost.costs import Costs
from emu_models.cost.measuring import count_denoiser, count_flops, measure_text
from emu_models.cost.networks import Networks, ProfileNetworks, describe_text, make_text
from emu_models.cost.peaks import measure_step
from emu_models.cost.planning import Cluster, find_gpu, memory_per_gpu, plan_data, plan_training
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.denoiser import count_parameters, denoise
from emu_models.latent.jobs import DenoiserConfig
from emu_models.text import load_text_encoders
from emu_models.training.cache import encode_captions
from emu_models.training.row_file import open_rows
from emu_models.training.rows import PictureRows
from tests.shards import write_toy_shards

AUTOENCODER = {"latent_channels": 4, "fold": 4, "widths": [16, 32], "fourier_bands": 0}  # f8


@pytest.fixture(scope="module")
def networks() -> Networks:
    return ProfileNetworks(DenoiserConfig((64, 128), (False, True), 1), AUTOENCODER, describe_text(None, 12))


@pytest.fixture(scope="module")
def costs(networks: Networks) -> Costs:
    return Costs(lambda: networks)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster(find_gpu("h100"), num_gpus=16, utilisation=0.4, dollars_per_gpu_hour=2.5)


def flops_by_hand(network: nn.Module, run: Callable[[], object]) -> int:
    """Return 2 x the multiplications of every convolution, linear layer and attention that really runs."""
    total = 0

    def add(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            (kh, kw), positions = module.kernel_size, output.shape[-2] * output.shape[-1]
            total += 2 * len(output) * positions * module.out_channels * module.in_channels * kh * kw
        elif isinstance(module, nn.Linear):
            total += 2 * output.numel() * module.in_features

    def add_attention(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        nonlocal total
        x, text = args[0], kwargs.get("encoder_hidden_states")
        num_keys = x.shape[1] if text is None else text.shape[1]
        total += 2 * (2 * len(x) * x.shape[1] * num_keys * module.inner_dim)  # queries with keys, weights with values

    hooks = [m.register_forward_hook(add) for m in network.modules()]
    hooks += [
        m.register_forward_hook(add_attention, with_kwargs=True)
        for m in network.modules()
        if type(m).__name__ == "Attention"
    ]
    run()
    for hook in hooks:
        hook.remove()
    return total


def test_counted_flops_are_those_counted_by_hand(networks):
    denoiser = networks.build_denoiser()
    text = make_text(networks, 1, "cpu")
    for tensor, value in ((text.tokens_BLD, 0), (text.pooled_BD, 0), (text.mask_BL, True)):
        tensor.fill_(value)
    inputs = torch.zeros(networks.latents(1, 128)), torch.zeros(1, dtype=torch.long), text
    with torch.no_grad():
        expected = flops_by_hand(denoiser, lambda: denoise(denoiser, *inputs))
    flops = count_flops(networks, 128)
    assert flops.forward == expected
    # backward: as much again for the weights and for the inputs, except those of which nobody needs the gradient
    assert 2.5 * expected < flops.step < 3 * expected


def test_encoding_costs_what_its_layers_cost(networks):
    autoencoder = Autoencoder(**networks.autoencoder)
    with torch.no_grad():
        expected = flops_by_hand(autoencoder, lambda: autoencoder.encode(torch.zeros(1, 3, 64, 64)))
    assert count_flops(networks, 64).encode_picture == expected


def test_the_papers_text_encoders_have_their_known_sizes(networks):
    """T5 by hand: two operations per weight and token outside the embedding, and two matrix products per layer."""
    papers = replace(networks, text=describe_text(["openai/clip-vit-large-patch14", "google/t5-v1_1-xxl"], 100))
    clip, t5 = measure_text(papers)
    assert (clip.num_tokens, t5.num_tokens) == (77, 100)  # CLIP has 77 positions
    assert clip.num_parameters == pytest.approx(123e6, rel=0.01)
    assert t5.num_parameters == pytest.approx(4.76e9, rel=0.01)
    by_hand = 2 * (t5.num_parameters - 32128 * 4096) * 100 + 24 * 4 * 100 * 100 * 4096
    assert t5.flops == pytest.approx(by_hand, rel=1e-3)
    assert papers.widths == (768 + 4096, 768)


def test_what_a_sample_takes_grows_with_its_pixels(networks):
    """Four times the pixels take four times as much: no matrix of positions by positions is kept, otherwise a part
    would grow sixteenfold. The half-precision copy of the weights does not grow."""
    small, large = (measure_step(networks, resolution, False) for resolution in (128, 256))
    assert count_denoiser(networks)[0] == count_parameters(networks.build_denoiser())
    assert 3.5 < large.per_sample / small.per_sample <= 4.1
    assert large.fixed == pytest.approx(small.fixed, rel=0.1)
    assert not torch.is_autocast_enabled("cuda")


def test_states_take_twenty_bytes_per_parameter_and_are_shared(networks, costs):
    num_parameters, largest = count_denoiser(networks)
    alone, shared = (memory_per_gpu(costs, 128, 2, False, n) for n in (1, 8))
    states = [m.weights + m.gradients + m.optimizer + m.average for m in (alone, shared)]
    assert states == [20 * num_parameters, 20 * num_parameters / 8]
    assert (alone.gathered, shared.gathered) == (0, 12 * largest)
    assert alone.activations == 2 * measure_step(networks, 128, False).per_sample
    assert alone.total == sum(vars(alone).values())


def test_accumulated_gradients_are_whole_on_every_gpu(costs):
    at_once, in_parts = (memory_per_gpu(costs, 128, 2, False, 8, accumulates) for accumulates in (False, True))
    assert in_parts.gradients == 8 * at_once.gradients
    assert in_parts.total - at_once.total == in_parts.gradients - at_once.gradients


@pytest.mark.parametrize(("strategy", "expected"), [("ddp", 1), ("hsdp", 8), ("fsdp", 16)])
def test_how_many_gpus_share_the_states(cluster, strategy, expected):
    assert replace(cluster, strategy=strategy).num_sharing(16) == expected


def small_gpu(cluster: Cluster, memory: float) -> Cluster:
    return replace(cluster, gpu=replace(cluster.gpu, memory=memory), strategy="ddp", reserve=0.0)


def test_less_memory_means_more_accumulation_then_recomputation_then_an_error(costs, cluster):
    """Each GPU has exactly as much memory as the best case takes; with half a sample less, the next case is chosen."""
    cases = [(4, False), (2, False), (1, False), (4, True), (1, True)]
    needs = [memory_per_gpu(costs, 128, micro, recompute, 1).total for micro, recompute in cases]
    for (micro, recompute), need in zip(cases, needs, strict=True):
        if recompute and need > needs[2]:
            continue  # would fit without
        plan = plan_training(costs, small_gpu(cluster, need), "training", 128, 100, 64)
        assert (plan.micro_batch, plan.checkpointing) == (micro, recompute)
        assert plan.micro_batch * plan.accumulation * plan.num_gpus == 64
        assert plan.memory.total <= need
        again = plan.sample.forward if recompute else 0
        assert plan.flops == 64 * (plan.sample.step + again)
    with pytest.raises(ValueError, match=r"training: one sample needs .* choose --strategy fsdp"):
        plan_training(costs, small_gpu(cluster, needs[-1] - 1), "training", 128, 100, 64)


def test_gpus_that_a_small_batch_cannot_use_are_not_paid_for(costs, cluster):
    plan = plan_training(costs, replace(cluster, num_gpus=256), "training", 128, 100, 64)
    assert (plan.num_gpus, plan.micro_batch, plan.accumulation) == (64, 1, 1)
    assert plan_training(costs, replace(cluster, num_gpus=48), "training", 128, 100, 64).num_gpus == 32
    # 12 divides 60, but hsdp needs whole nodes of 8
    twelve = replace(cluster, num_gpus=12)
    assert plan_training(costs, twelve, "training", 128, 100, 60).num_gpus == 6
    assert plan_training(costs, replace(twelve, strategy="ddp"), "training", 128, 100, 60).num_gpus == 12


def test_twice_the_gpus_take_half_the_days_for_the_same_money(costs, cluster):
    few, many = (plan_training(costs, replace(cluster, num_gpus=n), "training", 128, 1000, 64) for n in (8, 16))
    assert few.days == pytest.approx(2 * many.days)
    assert few.dollars == pytest.approx(many.dollars)
    seconds = 1000 * few.flops / (8 * 989e12 * 0.4)
    assert few.days * 86400 == pytest.approx(seconds)
    assert few.dollars == pytest.approx(seconds / 3600 * 8 * 2.5)
    assert few.step_seconds == pytest.approx(seconds / 1000)


def test_a_cache_has_the_size_that_the_training_writes(networks, costs, cluster, tmp_path):
    """The bytes of the tensors in the files that encoding writes, but for the index."""
    plan = plan_training(costs, cluster, "training", 128, 10, 64)
    data = plan_data(costs, plan, 100_000)
    assert (data.num_encoded, data.num_passes) == (640, 640 / 100_000)
    assert plan_data(costs, plan, 64).num_encoded == 64
    short = replace(networks, text=describe_text(None, 3))  # so that every caption fills its tokens
    per_caption = plan_data(Costs(lambda: short), plan, 100_000).captions_bytes / 640
    shards, table = write_toy_shards(tmp_path, num_images=4)
    rows = PictureRows(shards, open_rows(shards, table, tmp_path / "cache"), [(32, 32)], 2)
    encode_captions(rows, load_text_encoders(), 3, tmp_path / "captions")
    written = [load_file(shard) for shard in (tmp_path / "captions").rglob("*.safetensors")]
    kept = sum(t.nbytes for tensors in written for name, t in tensors.items() if name not in ("ends", "digests"))
    # four captions and the empty one, which has two of three tokens, and padding is not kept
    assert kept == 5 * per_caption - 2 * 384
    moments = Autoencoder(**networks.autoencoder).encode(torch.zeros(1, 3, 128, 128))
    assert data.moments_bytes / 640 == moments.mean.half().nbytes + moments.logvar.half().nbytes


def test_what_was_measured_is_kept_exactly_and_not_measured_again(networks, cluster, tmp_path):
    file = tmp_path / "cache" / "costs.json"

    def plans(costs: Costs) -> tuple:
        plan = plan_training(costs, small_gpu(cluster, 1e9), "training", 128, 10, 64)
        return plan, plan_data(costs, plan, 100), costs.text(), costs.denoiser(), costs.latents(128)

    def refuse() -> Networks:
        raise AssertionError("something is measured again")

    expected = plans(Costs(lambda: networks))
    assert plans(Costs(lambda: networks, file)) == expected
    assert plans(Costs(refuse, file)) == expected
    file.write_text(file.read_text()[:50])  # a file that cannot be read is ignored
    assert plans(Costs(lambda: networks, file)) == expected


def test_what_is_unknown_or_impossible_is_refused(cluster):
    with pytest.raises(ValueError, match="known are A100, H100, H200"):
        find_gpu("abacus")
    with pytest.raises(ValueError, match="ddp, fsdp, hsdp"):
        replace(cluster, strategy="zero")
    with pytest.raises(ValueError, match="at a utilisation of"):
        replace(cluster, utilisation=0.0)
