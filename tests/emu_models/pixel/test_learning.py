"""What an upscaler is given, and the sizes of a cascade's networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emu_models.latent.denoiser import count_parameters
from emu_models.latent.denoiser_learner import LatentRows
from emu_models.latent.jobs import DenoiserTrainingConfig
from emu_models.pixel.denoising import denoise_pixels, pixel_multiple
from emu_models.pixel.learner import UpscalerLearner
from emu_models.pixel.network import (
    PUBLISHED_BASE,
    PUBLISHED_UPSCALER,
    build_base,
    build_pixel_scheduler,
    build_upscaler,
)
from emu_models.pixel.scaling import LEVEL_SCALE, augment, condition_on, enlarge, keep_colours, shrink
from emu_models.pixel.space import PixelSpace
from emu_models.text import TextFeatures
from tests.toy_cascade import NETWORK

WIDTH = 24


def features(num: int) -> TextFeatures:
    drawn = torch.Generator().manual_seed(3)
    return TextFeatures(
        torch.randn(num, 4, WIDTH, generator=drawn),
        torch.ones(num, 4, dtype=torch.bool),
        torch.randn(num, WIDTH, generator=drawn),
    )


def learner(crop: int | None = None, num: int = 8, patch: int = 1) -> UpscalerLearner:
    torch.manual_seed(0)
    pixels = torch.rand(num, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    rows = LatentRows([str(i) for i in range(num)], PixelSpace().encode(pixels), features(num))
    config = DenoiserTrainingConfig(10, 4, 1e-3, 0.0, 0.1, 0)
    network = build_upscaler(NETWORK, WIDTH, WIDTH, patch)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)  # as if it had learned
    given = (network, PixelSpace(), build_pixel_scheduler(predicts="sample"), rows, rows, features(1), config)
    return UpscalerLearner(*given, ratio=4, max_augmentation=0.5, crop=crop)


def test_small_pictures_get_noise_up_to_their_level_and_are_told_it():
    small, noise = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(augment(small, noise, torch.zeros(2)), small)
    assert torch.allclose(augment(small, noise, torch.ones(2)), noise, atol=1e-6)
    beside, told = condition_on(small, noise, torch.tensor([0.0, 0.5]), 4)
    assert torch.equal(beside[:1], enlarge(small[:1], 4)) and beside.shape == (2, 3, 16, 16)
    assert told.tolist() == [[0.0], [0.5 * LEVEL_SCALE]]


def test_a_batch_has_its_own_small_pictures_beside_it_with_noise_of_their_own():
    """The small pictures' noise is not that of the pictures, or the network could read off what it is to predict."""
    made = learner()
    batch = made.prepare(3)
    assert batch.beside is not None and batch.sizes_B6 is not None
    assert batch.beside.shape == batch.z0.shape and batch.sizes_B6.shape == (4, 1)
    level_B = batch.sizes_B6[:, 0] / LEVEL_SCALE
    assert (level_B >= 0).all() and (level_B < 0.5).all() and len(set(level_B.tolist())) == 4
    _, noise = (torch.linalg.vector_norm(x) for x in (batch.z0, batch.noise))
    left = batch.beside - enlarge(shrink(batch.z0, 4), 4) * (0.5 * torch.pi * level_B).cos()[:, None, None, None]
    share = (left * batch.noise).sum() / (torch.linalg.vector_norm(left) * noise)
    assert torch.linalg.vector_norm(left) > 0 and abs(share) < 0.1
    again = made.prepare(3)
    assert again.beside is not None and torch.equal(again.beside, batch.beside)


def test_random_parts_are_cut_from_pictures_and_what_is_beside_them_alike():
    whole, part = learner().prepare(5), learner(crop=16).prepare(5)
    assert part.beside is not None and whole.beside is not None and part.z0.shape == (4, 3, 16, 16)
    for i in range(4):
        corners = [
            (y, x)
            for y in range(0, 17, 4)
            for x in range(0, 17, 4)
            if torch.equal(whole.z0[i, :, y : y + 16, x : x + 16], part.z0[i])
        ]
        ((y, x),) = corners
        assert torch.equal(whole.beside[i, :, y : y + 16, x : x + 16], part.beside[i])
        assert torch.equal(whole.noise[i, :, y : y + 16, x : x + 16], part.noise[i])


def test_a_validation_gives_the_same_number_again_and_a_step_changes_it():
    made = learner()
    before = made.validate(made.network)
    assert before == made.validate(made.network) and before["val_loss"] > 0
    learned = made.learn(0, made.prepare(0))
    made.optimizers["network"].step()
    assert np.isfinite(learned["loss"]) and made.validate(made.network) != before


def test_parts_of_a_batch_add_up_to_its_gradients(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # bf16 would differ by more
    first, second = learner(), learner()
    second._at_once.number = 2
    for made in (first, second):
        made.learn(0, made.prepare(0))
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_a_new_upscaler_returns_the_small_picture_and_learns_from_its_first_step_on():
    network, x = build_upscaler(NETWORK, WIDTH, WIDTH, 2), torch.randn(2, 6, 16, 16)
    found = denoise_pixels(network, x, torch.tensor([500, 999]), features(2), 1, torch.tensor([[100.0], [0.0]]))
    assert torch.equal(found, x[:, 3:])
    (found - x[:, :3]).square().mean().backward()
    assert network.conv_out.weight.grad is not None and network.conv_out.weight.grad.abs().max() > 0


def test_an_upscaler_sees_the_small_picture_and_its_level():
    torch.manual_seed(0)
    network, x = build_upscaler(NETWORK, WIDTH, WIDTH).eval(), torch.randn(1, 6, 16, 16)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    other, t_B, told = x.clone(), torch.tensor([500]), torch.tensor([[100.0]])
    other[:, 3:] += 0.5
    with torch.no_grad():
        plain, seen, level = (
            denoise_pixels(network, *given)
            for given in (
                (x, t_B, features(1), 1, told),
                (other, t_B, features(1), 1, told),
                (x, t_B, features(1), 1, told + 100),
            )
        )
    assert plain.shape == (1, 3, 16, 16)
    assert not torch.allclose(seen - plain, torch.tensor(0.5), atol=1e-5)  # it is more than added
    assert not torch.allclose(plain, level, atol=1e-5)


@pytest.mark.parametrize("patch", [2, 4])
def test_a_network_of_patches_sees_each_pixel_once(patch):
    """Its input has the pixels of a patch as channels; one that returns what it sees returns the picture."""
    network = build_base(NETWORK, WIDTH, WIDTH, patch)
    assert pixel_multiple(network) == 2 * patch
    x, seen = torch.randn(1, 3, 16, 16), []

    def forward(sample, *given, **named):
        seen.append(sample.shape)
        return type("Output", (), {"sample": sample})

    network.forward = forward
    assert torch.equal(denoise_pixels(network, x, torch.tensor([5]), features(1), 1, None), x)
    assert seen == [(1, 3 * patch**2, 16 // patch, 16 // patch)]
    made = learner(patch=patch)
    assert np.isfinite(made.learn(0, made.prepare(0))["loss"])


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_colours_are_kept_and_details_left(cell):
    drawn = torch.Generator().manual_seed(0)
    colours = torch.rand(3, 3, 2, 2, generator=drawn) - 0.5
    small = torch.nn.functional.interpolate(colours, size=8, mode="bilinear")
    details = 0.1 * torch.randn(3, 3, 32, 32, generator=drawn)
    details -= enlarge(shrink(details, 4 * cell), 4 * cell)
    x = enlarge(small, 4) + details + 0.2  # too bright, as upscalers are known to draw
    kept = keep_colours(x, small, cell)
    assert (shrink(kept, 32) - shrink(small, 8)).abs().max() < 0.5 / 127.5
    change = kept - x
    assert (change.mean() + 0.2).abs() < 0.01 and change.std() < 0.25 * details.std()


def test_whatever_is_drawn_gets_the_mean_colours_of_the_small_picture():
    """Also white and black ones, where clipping undoes what is added."""
    small = (torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).clone()
    small[0], small[1], small[2] = 1.0, -1.0, 0.98
    kept = keep_colours(2 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), small, 4)
    assert kept.abs().max() <= 1 and torch.allclose(kept.mean((2, 3)), small.mean((2, 3)), atol=1e-4)


def test_the_published_networks_have_about_their_published_sizes():
    """Imagen, arXiv 2205.11487, sec. 2.4: 2 B parameters for 64 px and 600 M from 64 to 256 px, with T5-XXL (4096)."""
    with torch.device("meta"):
        base, upscaler = build_base(PUBLISHED_BASE, 4096, 4096), build_upscaler(PUBLISHED_UPSCALER, 4096, 4096)
    assert count_parameters(base) == pytest.approx(2e9, rel=0.1)
    assert count_parameters(upscaler) == pytest.approx(600e6, rel=0.05)


def test_guided_pixels_are_thresholded_and_the_schedule_survives_saving(tmp_path: Path):
    scheduler = build_pixel_scheduler(0.5)
    scheduler.save_pretrained(tmp_path)
    again: Any = type(scheduler).from_pretrained(tmp_path)
    assert torch.equal(scheduler.alphas_cumprod, again.alphas_cumprod)
    assert not torch.equal(scheduler.alphas_cumprod, build_pixel_scheduler().alphas_cumprod)
    again.set_timesteps(4)
    z = torch.full((1, 3, 8, 8), 5.0)
    found = again.step(-z, int(again.timesteps[0]), torch.zeros_like(z), use_clipped_model_output=True)
    assert found.pred_original_sample.abs().max() <= 1
