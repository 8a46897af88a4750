"""`emu plan`: what it prints for a profile, seen from outside."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emu_dagster.commands.plan import TRAININGS, plan_networks, print_plan
from emu_models.cost.costs import Costs
from emu_models.cost.measuring import count_denoiser, count_flops
from emu_models.cost.planning import Cluster, find_gpu
from emu_steps.params import Params
from tests.profiles import params_of

PROFILES = Path(__file__).parents[2] / "profiles"


def printed(profile: str, **changes) -> str:
    return printed_of(params_of(profile), **changes)


def printed_of(params: Params, **changes) -> str:
    console = Console(file=io.StringIO(), width=200)
    given: dict[str, Any] = {"num_gpus": 16, "utilisation": 0.4, "dollars_per_gpu_hour": 2.5} | changes
    cluster = Cluster(find_gpu("H100"), **given)
    print_plan(params, Costs(lambda: plan_networks(params, PROFILES.parent)), cluster, 1000, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_papers_denoiser_has_its_parameters_and_latents():
    """2.8 B, 16 channels, 1024 px in one training; CLIP ViT-L and T5-XXL."""
    networks = plan_networks(params_of("paper"), PROFILES.parent)
    num_parameters, _ = count_denoiser(networks)
    assert num_parameters == pytest.approx(2.8e9, rel=0.02)
    assert tuple(networks.latents(1, 1024)) == (1, 16, 128, 128)
    assert [config.hidden_size for config, _ in networks.text] == [768, 4096]


@pytest.mark.slow
def test_the_papers_step_is_counted_at_full_resolution():
    """Four times the pixels are four times the convolutions and more than four times the attention."""
    networks = plan_networks(params_of("paper"), PROFILES.parent)
    mid, full = (count_flops(networks, resolution) for resolution in (512, 1024))
    assert 4 < full.forward / mid.forward < 6
    assert 2.9 < full.step / full.forward < 3


def test_every_training_is_printed_and_every_assumption_labelled():
    text = printed("smoke")
    for name in TRAININGS:
        assert text.count(name) == 2, name  # once as a training and once as data
    assumed = [line for line in text.splitlines() if line.startswith("assumed:")]
    for words in ("40% of the peak", "2.5 dollars per GPU-hour", "8 GPUs per node", "bits per pixel"):
        assert any(words in line for line in assumed), words
    assert "given: 1,000 pictures" in text


def test_a_tuning_that_learns_all_rows_once_the_step_is_known_is_planned_twice():
    params = params_of("smoke")
    once, twice = (
        params.model_copy(update={"quality_tuned": params.quality_tuned.model_copy(update={"whole_set": both})})
        for both in (False, True)
    )
    found = []
    for changed in (once, twice):
        (line,) = (line for line in printed_of(changed).splitlines() if line.split()[:1] == ["steps"])
        found.append([int(number.replace(",", "")) for number in line.split()[1:]])
    assert found[1] == [*found[0][:-1], 2 * found[0][-1]]


def test_assumptions_follow_the_options():
    text = printed("smoke", utilisation=0.25, dollars_per_gpu_hour=1.1, strategy="ddp")
    assert "25% of the peak" in text
    assert "1.1 dollars per GPU-hour" in text
    assert "16 x H100 SXM 80 GB, ddp" in text


@pytest.mark.slow
def test_the_papers_whole_plan_fits_the_named_gpus():
    text = printed("paper", num_gpus=256)
    assert "all trainings: " in text
    # whole states on every GPU, beside encoders that stay there, fit only with recomputation; sharded ones always
    fits = next(line for line in text.splitlines() if "fits in 72 GB" in line)
    assert fits.split()[4:] == ["no", *["yes"] * 5]
    assert "2,793,629,904" in text
