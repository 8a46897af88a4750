"""Losses of the autoencoder against their formulas; the perceptual distance: gradients, precision, clear refusals."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emu_models.alignment_learner import AlignmentConfig, build_network, save_network
from emu_models.latent.autoencoder.fourier import FourierFeatures
from emu_models.latent.autoencoder.losses import (
    PatchDiscriminator,
    adaptive_weight,
    adversarial_share,
    gradients_at,
    hinge_loss,
)
from emu_models.latent.autoencoder.network import Moments
from emu_models.latent.autoencoder.perceptual import (
    EncoderDistance,
    LpipsDistance,
    build_perceptual,
    describe_perceptual,
)
from emu_models.latent.jobs import AutoencoderLossConfig, PerceptualConfig


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """An open_clip folder with random weights, saved like the alignment models."""
    torch.manual_seed(0)
    config, folder = AlignmentConfig(), tmp_path_factory.mktemp("encoder")
    save_network(build_network(config, 32, 8), config, folder)
    return folder


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    """Random weights of torchvision's VGG-16, without the classifier, which is half a gigabyte and not read."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    with torch.device("meta"):
        shapes = vgg16(weights=None).features.state_dict()
    torch.save({f"features.{n}": torch.randn(t.shape) * (0 if "bias" in n else 0.05) for n, t in shapes.items()}, path)
    return path


@pytest.fixture(scope="module", params=["encoder", "lpips"])
def distance(request) -> EncoderDistance | LpipsDistance:
    kind = request.param
    found = build_perceptual(
        PerceptualConfig(kind, str(request.getfixturevalue("vgg" if kind == "lpips" else kind)), 1)
    )
    assert found is not None
    return found


def pictures(num: int = 2, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_distance_is_zero_to_itself_and_grows_with_the_damage(distance):
    x, noise = pictures(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert distance(x, x).abs().max() < 1e-6
    near, far = distance(x + 0.05 * noise, x), distance(x + 0.5 * noise, x)
    assert near.shape == (2,) and (near > 0).all() and (far > near).all()
    assert torch.allclose(distance(x, x + 0.5 * noise), far, rtol=1e-4)


def test_gradients_flow_to_the_picture_and_to_nothing_else(distance):
    x = pictures()
    y = (x + 0.1).requires_grad_()
    distance(y, x.requires_grad_()).sum().backward()
    assert y.grad is not None and y.grad.isfinite().all() and y.grad.abs().max() > 0
    assert x.grad is None
    assert not [name for name, parameter in distance.named_parameters() if parameter.requires_grad]


def test_following_the_gradient_makes_the_picture_more_similar(distance):
    x = pictures()
    y = (x + 0.3 * pictures(seed=5)).requires_grad_()
    before = distance(y, x).sum()
    (gradient,) = torch.autograd.grad(before, y)
    step = 0.05 * before.detach() / gradient.square().sum()
    assert distance(y - step * gradient, x).sum() < before


def test_none_of_its_weights_change_when_the_learner_trains(distance):
    state = {name: value.clone() for name, value in distance.state_dict().items()}
    distance.train()
    x = pictures()
    first = distance(x, pictures(seed=1))
    assert torch.equal(distance(x, pictures(seed=1)), first)  # no dropout
    assert all(torch.equal(value, state[name]) for name, value in distance.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_around_it_changes_nothing(distance, dtype):
    x, y = pictures(), pictures(seed=1).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        inside = distance(y, x)
    assert inside.dtype == torch.float32 and torch.equal(inside, distance(y, x))
    flat = torch.full(
        (1, 3, 32, 32), -1.0, dtype=dtype
    ).requires_grad_()  # where no channel is active, the norm is zero
    distance(flat, pictures(1)).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_a_position_counts_by_its_direction_and_not_its_length(encoder):
    """Each position at each depth has unit length, so two opposite ones are at most 4 apart."""
    distance = EncoderDistance(encoder)
    for features in distance.features(pictures()):
        length = features.square().sum(1)
        assert ((length - 1).abs() < 1e-3).logical_or(length < 1e-3).all()
    assert (distance(pictures(), -pictures()) <= 4 * 5).all()


def test_pictures_of_any_size_are_accepted(encoder):
    distance = EncoderDistance(encoder)
    assert distance(pictures(1, 64), pictures(1, 64, 1)).isfinite().all()
    assert distance(pictures(1, 48), pictures(1, 48, 1)).isfinite().all()


def test_what_is_missing_is_named(tmp_path, encoder):
    with pytest.raises(ValueError, match="perceptual.path is missing"):
        PerceptualConfig("lpips", None, 1.0)
    with pytest.raises(ValueError, match="perceptual.weight"):
        PerceptualConfig("encoder", str(encoder), -1.0)
    with pytest.raises(ValueError, match="not an open_clip model folder"):
        EncoderDistance(tmp_path)
    with pytest.raises(ValueError, match="is not a file"):
        LpipsDistance.load(tmp_path / "vgg16.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="lacks features"):
        LpipsDistance.load(tmp_path / "other.pth")


def test_the_report_says_which_features_were_used():
    assert "LPIPS" in describe_perceptual(PerceptualConfig("lpips", "x", 0.5))
    assert "not LPIPS" in describe_perceptual(PerceptualConfig("encoder", "x", 0.5))
    assert describe_perceptual(PerceptualConfig()) == describe_perceptual(PerceptualConfig("encoder", "x", 0.0))
    assert build_perceptual(PerceptualConfig("encoder", "no such folder", 0.0)) is None


@given(mean=st.floats(-3, 3), logvar=st.floats(-6, 3))
def test_kl_is_the_textbook_formula(mean, logvar):
    shape = (2, 3, 4, 4)
    ours = Moments(torch.full(shape, mean), torch.full(shape, logvar)).kl()
    posterior = torch.distributions.Normal(mean, math.exp(0.5 * logvar))
    each = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    assert ours.item() == pytest.approx(each.item() * 3 * 4 * 4, rel=1e-4, abs=1e-4)


def test_kl_is_finite_in_half_precision():
    kl = Moments(torch.full((1, 16, 8, 8), 3.0).half(), torch.full((1, 16, 8, 8), 15.0).half()).kl()
    assert kl.dtype == torch.float32 and kl.isfinite()


@given(real=st.lists(st.floats(-3, 3), min_size=1, max_size=8), fake=st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_hinge_is_its_formula(real, fake):
    expected = 0.5 * (sum(max(0.0, 1 - r) for r in real) / len(real) + sum(max(0.0, 1 + f) for f in fake) / len(fake))
    assert hinge_loss(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(expected, abs=1e-5)


def test_adaptive_weight_is_the_ratio_of_the_gradients_lengths():
    last = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    reconstruction, adversarial = 2 * last.sum(), last.square().sum()  # gradients (2, 2) and (6, 8)
    weight = adaptive_weight(gradients_at(last, reconstruction, adversarial))
    assert weight.item() == pytest.approx(8**0.5 / 10, rel=1e-4)
    assert not weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_adaptive_weight_is_finite_if_gradients_are_tiny_or_zero(dtype):
    """In fp16 the squares of 1e-4 underflow, so a norm computed there would be zero."""
    last = torch.nn.Parameter(torch.ones(64, dtype=dtype))
    tiny = adaptive_weight(gradients_at(last, 1e-4 * last.sum(), 1e-4 * last.sum()))
    assert tiny.dtype == torch.float32 and tiny.item() == pytest.approx(8e-4 / (8e-4 + 1e-4), rel=0.02)
    assert adaptive_weight(gradients_at(last, last.sum(), 0 * last.sum())).item() <= 1e4


@given(step=st.integers(0, 99), start=st.floats(0, 1))
def test_the_adversary_starts_gently(step, start):
    share = adversarial_share(step, 100, start)
    assert 0 <= share <= 1
    assert share == 0 if step / 100 <= start else share > 0
    if start < 0.9:  # no jump anywhere
        assert adversarial_share(step + 1, 100, start) - share <= 0.01 / (1 - start) + 1e-9


def test_the_discriminator_is_finite_in_half_precision():
    discriminator = PatchDiscriminator()
    x = pictures(2, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = hinge_loss(discriminator(x), discriminator(-x))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in discriminator.parameters() if p.grad is not None)


@given(bands=st.integers(1, 4))
def test_fourier_features_are_sines_and_cosines_that_determine_the_values(bands):
    x = torch.linspace(-1, 1, 75).reshape(1, 3, 5, 5) * 0.999
    lifted = FourierFeatures(bands)(x)
    sine, cosine = lifted[:, 3:6], lifted[:, 6:9]
    assert torch.allclose(torch.atan2(sine, cosine) / math.pi, x, atol=1e-5)
    for k in range(bands):
        part = lifted[:, 3 + 6 * k : 9 + 6 * k]
        expected = torch.cat([(x * 2**k * math.pi).sin(), (x * 2**k * math.pi).cos()], 1)
        assert torch.allclose(part, expected, atol=1e-6)


def test_no_perceptual_loss_is_the_default():
    assert not AutoencoderLossConfig(1e-6, 0.1, 0.8).perceptual.is_on
