"""Properties of the networks: shapes, how they start, and that what is saved is loaded unchanged."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_models.latent.autoencoder.fourier import FourierFeatures
from emu_models.latent.autoencoder.losses import PatchDiscriminator, adaptive_weight, gradients_at, hinge_loss
from emu_models.latent.autoencoder.network import Autoencoder, Moments, ResidualBlock
from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import denoise, takes_sizes
from emu_models.latent.jobs import DenoiserConfig
from emu_models.text import TextFeatures, encode_prompts, load_text_encoders


def small_autoencoder(**changes) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(**{"latent_channels": 8, "fold": 4, "widths": (16, 32), **changes}).eval()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Return smooth pictures (16, 3, 32, 32) in [-1, 1], so that a linear code can hold most of them."""
    coarse = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")


def test_no_bands_is_the_identity():
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(FourierFeatures(0)(x), x)


@given(bands=st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_fourier_features_keep_rgb_and_stay_in_range(bands):
    x = torch.rand(2, 3, 4, 4) * 2 - 1
    lifted = FourierFeatures(bands)(x)
    assert lifted.shape == (2, 3 * (1 + 2 * bands), 4, 4)
    assert torch.equal(lifted[:, :3], x)
    assert lifted.abs().max() <= 1
    assert not list(FourierFeatures(bands).parameters())


def test_residual_block_starts_as_the_identity():
    x = torch.randn(2, 32, 5, 7)
    assert torch.equal(ResidualBlock(32)(x), x)


@pytest.mark.parametrize("fold, widths, factor", [(4, (16, 32), 8), (1, (16, 16, 16, 16), 8), (2, (16, 32), 4)])
@pytest.mark.parametrize("bands", [0, 2])
def test_autoencoder_shapes(fold, widths, factor, bands):
    autoencoder = small_autoencoder(fold=fold, widths=widths, fourier_bands=bands)
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    moments = autoencoder.encode(x)
    assert moments.mean.shape == moments.logvar.shape == (2, 8, 32 // factor, 48 // factor)
    assert autoencoder.decode(moments.mean).shape == x.shape


def test_a_side_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        small_autoencoder().encode(torch.zeros(1, 3, 30, 32))


def test_starts_at_the_principal_components(pictures):
    """Before any training it reconstructs as well as the best linear code with as many components."""
    autoencoder = small_autoencoder()
    autoencoder.start_from_principal_components(pictures)
    with torch.no_grad():
        rebuilt = autoencoder.decode(autoencoder.encode(pictures).mean)
    patches = torch.nn.functional.unfold(pictures, 8, stride=8).transpose(1, 2).reshape(-1, 192)
    centred = patches - patches.mean(0)
    kept = torch.linalg.svd(centred, full_matrices=False)[2][:8]
    best = (centred - centred @ kept.T @ kept).square().mean()
    # its bias is one number per channel, not per position, so it may be a little worse than the best
    assert (rebuilt - pictures).square().mean() <= 1.05 * best + 1e-6


def test_measured_latents_have_unit_variance_and_can_be_undone(pictures):
    autoencoder = small_autoencoder()
    autoencoder.start_from_principal_components(pictures)
    autoencoder.measure_latents(pictures)
    with torch.no_grad():
        z = autoencoder.encode(pictures).mean
    normalised = autoencoder.normalise(z)
    assert normalised.mean((0, 2, 3)).abs().max() < 1e-4
    assert normalised.var((0, 2, 3)).mean() == pytest.approx(1, abs=0.05)
    assert torch.allclose(autoencoder.denormalise(normalised), z, atol=1e-5)


def test_autoencoder_is_saved_with_its_statistics(tmp_path, pictures):
    autoencoder = small_autoencoder(fourier_bands=1)
    autoencoder.start_from_principal_components(pictures)
    autoencoder.measure_latents(pictures)
    autoencoder.save_pretrained(tmp_path)
    again = Autoencoder.from_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert torch.equal(again.latent_std, autoencoder.latent_std)
    with torch.no_grad():
        assert torch.equal(again.encode(pictures).mean, autoencoder.encode(pictures).mean)


def test_kl_is_zero_only_at_the_unit_gaussian():
    zero = torch.zeros(2, 3, 4, 4)
    assert Moments(zero, zero).kl() == 0
    assert Moments(zero + 0.5, zero).kl() > 0
    assert Moments(zero, zero - 1).kl() > 0


def test_hinge_loss_is_zero_once_both_sides_are_beyond_the_margin():
    assert hinge_loss(torch.tensor([1.5]), torch.tensor([-2.0])) == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1


def test_adaptive_weight_balances_the_gradients():
    """Scaled by it, the adversary's gradient at the last layer is as long as the reconstruction's."""
    last = torch.nn.Parameter(torch.randn(3, 4))
    x = torch.randn(4)
    reconstruction, adversarial = (last @ x).abs().mean(), 7 * (last @ x).square().mean()
    weight = adaptive_weight(gradients_at(last, reconstruction, adversarial))
    lengths = [
        torch.autograd.grad(v, last, retain_graph=True)[0].norm() for v in (reconstruction, weight * adversarial)
    ]
    assert lengths[0].item() == pytest.approx(lengths[1].item(), rel=1e-3)


def test_the_discriminator_gives_one_logit_per_patch():
    assert PatchDiscriminator()(torch.zeros(2, 3, 64, 32)).shape == (2, 1, 8, 4)


@pytest.fixture(scope="module")
def text() -> TextFeatures:
    return encode_prompts(["a red apple", "a blue car", ""], load_text_encoders(), 8)


def test_text_features_have_a_zero_null_condition(text):
    assert text.tokens_BLD.shape[:2] == (3, 8)
    assert text.pooled_BD[2].abs().max() == 0
    assert text.pooled_BD[0].square().mean().item() == pytest.approx(1, rel=1e-4)
    assert text.tokens_BLD[~text.mask_BL].abs().max() == 0


def test_dropping_captions_changes_only_the_dropped(text):
    null = text.select(torch.tensor([2]))
    dropped = text.select(torch.arange(3)).drop_(torch.tensor([True, False, False]), null)
    assert torch.equal(dropped.pooled_BD[0], null.pooled_BD[0])
    assert torch.equal(dropped.tokens_BLD[1], text.tokens_BLD[1])


@pytest.mark.parametrize("middle", ["full", "joint"])
def test_the_text_changes_what_the_denoiser_predicts(text, middle):
    torch.manual_seed(0)
    config = DenoiserConfig(widths=(32, 64), attention=(False, middle == "full"), layers_per_level=1, middle=middle)
    denoiser = build_denoiser(config, 4, text.tokens_BLD.shape[-1]).eval()
    z = torch.randn(1, 4, 4, 4).expand(3, -1, -1, -1)
    with torch.no_grad():
        out = denoise(denoiser, z, torch.full((3,), 500), text)
    assert out.shape == z.shape
    assert not torch.allclose(out[0], out[1], atol=1e-5)


def test_a_network_with_size_conditioning_sees_sizes_and_takes_a_drawing_for_uncropped(text):
    torch.manual_seed(0)
    z, t_B = torch.randn(1, 4, 4, 4).expand(3, -1, -1, -1), torch.full((3,), 500)
    uncropped = torch.tensor([32.0, 32, 0, 0, 32, 32]).expand(3, -1)
    cropped = torch.tensor([32.0, 64, 0, 16, 32, 32]).expand(3, -1)
    for conditioned in (True, False):
        config = DenoiserConfig((32, 64), (False, True), 1, size_conditioning=conditioned)
        denoiser = build_denoiser(config, 4, text.tokens_BLD.shape[-1]).eval()
        assert takes_sizes(denoiser, text.pooled_BD.shape[1]) == conditioned
        with torch.no_grad():
            plain, same, other = (denoise(denoiser, z, t_B, text, 8, sizes) for sizes in (None, uncropped, cropped))
        assert torch.equal(plain, same)
        assert torch.equal(plain, other) != conditioned


def test_unknown_middle_and_unequal_levels_are_refused():
    with pytest.raises(ValueError, match="middle"):
        DenoiserConfig((32,), (False,), 1, middle="none")  # pyrefly: ignore
    with pytest.raises(ValueError, match="widths"):
        DenoiserConfig((32, 64), (False,), 1)
    with pytest.raises(ValueError, match="multiple of head_width 64"):
        DenoiserConfig((32, 32), (False, False), 1)


def test_pixels_converted_there_and_back_are_unchanged():
    from emu_models.training.cache import to_images, to_tensor

    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    assert np.array_equal(to_images(to_tensor(images)), images)
