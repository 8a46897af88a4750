"""The tokenizer's codes: each stands for one point of a grid, comes back from it, and is saved with the model."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_models.latent.jobs import AutoencoderLossConfig, AutoencoderTrainingConfig
from emu_models.masked.tokenizer import PictureTokenizer, count_codes
from emu_models.masked.tokenizer_learner import TokenizerLearner
from emu_models.training.rows import Rows

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4)


def build(levels: list[int] | tuple[int, ...] = (5, 4), **network) -> PictureTokenizer:
    torch.manual_seed(0)
    return PictureTokenizer(tuple(levels), widths=(16, 32), **network).eval()


@given(levels=LEVELS, half=st.booleans())
@settings(max_examples=20)
def test_every_code_comes_back_from_its_latents_also_in_half_precision(levels, half):
    """The cache keeps latents in half precision."""
    tokenizer = build(levels)
    tokens = torch.arange(math.prod(levels)).view(-1, 1, 1)
    latents = tokenizer.latents_of(tokens)
    assert latents.unique(dim=0).shape[0] == len(tokens) and latents.abs().max() < 1
    assert torch.equal(tokenizer.tokens_of(latents.half().float() if half else latents), tokens)


@given(levels=LEVELS, scale=st.floats(0.01, 100))
@settings(max_examples=20)
def test_rounding_moves_a_bounded_latent_by_half_a_part_at_most(levels, scale):
    tokenizer = build(levels)
    z = scale * torch.randn(64, len(levels), 2, 2, generator=torch.Generator().manual_seed(0))
    rounded = tokenizer.round(z)
    half_parts = 1 / torch.tensor(levels)[:, None, None]
    assert ((rounded - z.tanh()).abs() <= half_parts + 1e-6).all()
    tokens = tokenizer.tokens_of(rounded)
    assert tokens.min() >= 0 and tokens.max() < tokenizer.num_codes
    assert torch.allclose(tokenizer.latents_of(tokens), rounded, atol=1e-6)


def test_gradients_pass_the_rounding_as_if_it_were_not_there():
    z = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    found, wanted = (torch.autograd.grad((weight * y).sum(), z)[0] for y in (build().round(z), z.tanh()))
    assert torch.allclose(found, wanted)


def test_a_picture_is_decoded_from_its_tokens_alone():
    tokenizer, x = build(), torch.rand(2, 3, 32, 16) * 2 - 1
    moments = tokenizer.encode(x)
    tokens = tokenizer.tokens_of(moments.mean)
    assert tokens.shape == (2, 4, 2)
    noise = torch.randn(moments.mean.shape)
    assert torch.equal(tokenizer.tokens_of(moments.at(noise)), tokens)  # a drawn latent is the same code
    assert torch.allclose(tokenizer.decode(tokenizer.latents_of(tokens)), tokenizer.decode(moments.mean), atol=1e-5)


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path, caplog):
    tokenizer, x = build((3, 4, 5), fourier_bands=1), torch.rand(1, 3, 16, 16) * 2 - 1
    tokenizer.save_pretrained(tmp_path)
    loaded = PictureTokenizer.from_pretrained(tmp_path)
    assert loaded.levels == (3, 4, 5) and loaded.num_codes == 60
    assert torch.equal(loaded.encode(x).mean, tokenizer.encode(x).mean)
    assert json.loads((tmp_path / "config.json").read_text())["levels"] == [3, 4, 5]
    assert not [r for r in caplog.records if "not expected" in r.message]


def test_the_use_of_codes_is_between_that_of_one_and_that_of_all_alike():
    assert count_codes(torch.full((3, 4, 4), 7), 10) == {"codes_used": 0.1, "code_entropy": 0.0}
    even = count_codes(torch.arange(10).repeat(3), 10)
    assert even["codes_used"] == 1 and even["code_entropy"] == pytest.approx(math.log(10))


def test_levels_and_weights_that_make_no_sense_are_refused():
    for levels in ((), (5, 1)):
        with pytest.raises(ValueError, match="each 2 or more"):
            PictureTokenizer(levels)
    rows = Rows(["a", "b"], ["", ""], np.zeros((2, 16, 16, 3), np.uint8), np.array([False, True]))
    config = AutoencoderTrainingConfig(1, 1, 1e-3, AutoencoderLossConfig(1e-6, 0.0, 0.5), 0)
    with pytest.raises(ValueError, match="has no KL"):
        TokenizerLearner(build(), rows, config)
