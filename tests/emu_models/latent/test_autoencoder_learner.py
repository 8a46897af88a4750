"""Parts of a batch that an autoencoder's step computes one after another add up to the whole batch."""

import numpy as np
import pytest
import torch

from emu_models.latent import autoencoder_learner
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.autoencoder.perceptual import LpipsDistance
from emu_models.latent.autoencoder_learner import AutoencoderLearner
from emu_models.latent.jobs import AutoencoderLossConfig, AutoencoderTrainingConfig, PerceptualConfig
from emu_models.training.rows import Rows
from tests.toy_training import keep_single_precision

START, NUM_STEPS = 0.5, 8  # of the adversary, as a share of the steps


@pytest.fixture(scope="module")
def rows() -> Rows:
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3)).astype(np.uint8)
    return Rows([str(i) for i in range(10)], [""] * 10, images, np.arange(10) < 3)


@pytest.fixture(scope="module")
def perceptual() -> LpipsDistance:
    torch.manual_seed(0)
    return LpipsDistance()


@pytest.fixture
def make(rows: Rows, perceptual: LpipsDistance, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes the same learner, with LPIPS, for any number of pictures at a time."""
    keep_single_precision()

    def made(micro_batch_size: int | None) -> AutoencoderLearner:
        torch.manual_seed(0)
        monkeypatch.setattr(autoencoder_learner, "build_perceptual", lambda config: perceptual)
        losses = AutoencoderLossConfig(1e-2, 0.5, START, PerceptualConfig("lpips", "made above", 1.0))
        config = AutoencoderTrainingConfig(NUM_STEPS, 5, 1e-3, losses, 0, micro_batch_size)
        return AutoencoderLearner(Autoencoder(4, widths=(16, 32), fourier_bands=1), rows, config)

    return made


def gradients(learner: AutoencoderLearner) -> torch.Tensor:
    """Return all gradients, also the adversary's if it has any, as one vector."""
    modules = learner.modules.values()
    return torch.cat([p.grad.flatten() for module in modules for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("step", [0, 3, 6, 7], ids=["full size", "half size", "adversary", "adversary, smaller"])
def test_parts_add_up_to_the_gradients_and_losses_of_the_whole_batch(make, step):
    whole = make(None)
    expected = whole.learn(step, whole.prepare(step))
    assert ("adversary_loss" in expected) == (step / NUM_STEPS > START)
    for size in (1, 2):
        parts = make(size)
        assert parts.learn(step, parts.prepare(step)) == pytest.approx(expected, rel=1e-5)
        apart = (gradients(parts) - gradients(whole)).norm() / gradients(whole).norm()
        # a ReLU that is nearly zero may fall on either side: 1e-4 was seen with several threads, below 1e-5 with one
        assert apart < 1e-3, size


def test_held_out_pictures_are_measured_in_parts(make):
    whole, parts = make(None), make(2)
    assert parts.validate(parts.network) == pytest.approx(whole.validate(whole.network), rel=1e-5)


def test_a_step_that_does_not_fit_is_halved_and_has_the_same_gradients(make, monkeypatch, caplog):
    """Also in the middle of a step, when some parts have been added up already."""
    whole = make(None)
    expected = whole.learn(6, whole.prepare(6))
    decode, seen = Autoencoder.decode, []

    def fits(network: Autoencoder, z: torch.Tensor) -> torch.Tensor:
        seen.append(len(z))
        if len(z) > 2 or seen == [5, 2, 2, 1, 2]:  # the last: the first part of the second pass
            raise torch.OutOfMemoryError
        return decode(network, z)

    monkeypatch.setattr(Autoencoder, "decode", fits)
    parts = make(None)
    assert parts.learn(6, parts.prepare(6)) == pytest.approx(expected, rel=1e-5)
    assert (gradients(parts) - gradients(whole)).norm() / gradients(whole).norm() < 1e-5
    assert "5 rows at a time; 2 from here on" in caplog.text and "2 rows at a time; 1 from here on" in caplog.text


def test_one_picture_that_does_not_fit_ends_the_training_with_a_sentence(make, monkeypatch):
    def refuse(network: Autoencoder, z: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Autoencoder, "decode", refuse)
    learner = make(1)
    with pytest.raises(torch.OutOfMemoryError, match=r"1 rows at a time; set more GPUs \(launch\.trainings"):
        learner.learn(0, learner.prepare(0))
