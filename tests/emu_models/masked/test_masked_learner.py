"""The transformer, and how it learns: from masked tokens alone, by draws of seed, step and position alone."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from emu_models.latent.autoencoder.network import Moments
from emu_models.latent.denoiser_learner import LatentRows
from emu_models.masked import learner as learner_module
from emu_models.masked.building import build_transformer
from emu_models.masked.jobs import MaskedTrainingConfig, MaskedTransformerConfig
from emu_models.masked.learner import MaskedLearner
from emu_models.masked.network import halton_order, lowest, mask_token, predict_logits, share_masked
from emu_models.masked.tokenizer import PictureTokenizer
from emu_models.text import TextFeatures
from emu_models.training.distributed import ALONE, World
from tests.toy_masked import SMALL

LEVELS, SIDE, NUM_ROWS = (3, 4), 4, 12
NUM_CODES = math.prod(LEVELS)
# aMUSEd for 256 px has 603 M parameters (arXiv 2401.01808, sec. 3): 22 layers of 1024 channels, CLIP ViT-L's text.
PUBLISHED = MaskedTransformerConfig(
    width=1024, layers=22, heads=16, inner_width=2816, outer_width=768, outer_heads=12, code_width=768, blocks=3
)


def text(num: int, seed: int = 0) -> TextFeatures:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(5).expand(num, -1) < 3
    tokens = torch.randn(num, 5, 8, generator=generator) * mask[..., None]
    return TextFeatures(tokens, mask, torch.randn(num, 8, generator=generator))


@pytest.fixture
def tokenizer() -> PictureTokenizer:
    torch.manual_seed(0)
    return PictureTokenizer(LEVELS, widths=(16, 32)).eval()


def rows(tokenizer: PictureTokenizer, num: int = NUM_ROWS) -> LatentRows:
    """Rows in which each of four captions has its own code at every position, but for a few."""
    generator = torch.Generator().manual_seed(0)
    captions = torch.arange(num) % 4
    tokens = captions[:, None, None].expand(-1, SIDE, SIDE).clone()
    others = torch.rand(tokens.shape, generator=generator) < 0.1
    tokens[others] = torch.randint(NUM_CODES, tokens.shape, generator=generator)[others]
    mean = tokenizer.latents_of(tokens)
    return LatentRows(
        [str(i) for i in range(num)], Moments(mean, torch.full_like(mean, -30.0)), text(4).select(captions)
    )


def make_learner(tokenizer: PictureTokenizer, world: World = ALONE, held: int = 4, **changes: Any) -> MaskedLearner:
    torch.manual_seed(0)
    network = build_transformer(SMALL, NUM_CODES, 8, 8)
    config = replace(MaskedTrainingConfig(10, 8, 1e-3, caption_dropout=0.2, seed=0), **changes)
    null = TextFeatures(torch.zeros(1, 5, 8), torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 8))
    return MaskedLearner(network, tokenizer, None, rows(tokenizer), rows(tokenizer, held), null, config, world)


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = build_transformer(PUBLISHED, 8192, 768, 768)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(603e6, rel=0.01)


def test_a_new_network_finds_all_codes_equally_likely(tokenizer):
    learner = make_learner(tokenizer)
    assert learner.learn(0, learner.prepare(0))["loss"] == pytest.approx(math.log(NUM_CODES), rel=1e-5)
    assert learner.validate(learner.averaged)["val_loss"] == pytest.approx(math.log(NUM_CODES), rel=1e-5)


def test_the_contents_of_padding_do_not_exist_for_the_network():
    """Padding is zero wherever it is, so that an order of the text in which it comes first draws the same."""
    network = build_transformer(SMALL, NUM_CODES, 8, 8)
    torch.nn.init.normal_(network.mlm_layer.conv2.weight)
    tokens, given = torch.randint(NUM_CODES, (2, SIDE, SIDE)), text(2)
    turned = replace(given, tokens_BLD=given.tokens_BLD.roll(2, dims=1))
    found, other = (predict_logits(network, tokens, some, 8) for some in (given, turned))
    assert torch.allclose(found, other, atol=1e-5)
    words = replace(given, tokens_BLD=given.tokens_BLD.flip(0))
    assert not torch.allclose(found, predict_logits(network, tokens, words, 8), atol=1e-5)


@given(num_rows=st.integers(1, 4), num=st.integers(1, 40))
@settings(max_examples=20)
def test_so_many_positions_are_masked_as_asked(num_rows, num):
    scores = torch.rand(num_rows, num, generator=torch.Generator().manual_seed(num))
    asked = torch.arange(num_rows) * num // num_rows
    chosen = lowest(scores, asked)
    assert torch.equal(chosen.sum(1), asked)
    for row, some in zip(scores, chosen, strict=True):
        assert not some.any() or some.all() or row[some].max() <= row[~some].min()


def test_shares_of_masked_positions_have_the_density_of_muse():
    """Of 2 / (pi sqrt(1 - r^2)), the mean is 2 / pi and the distribution function 2 / pi arcsin(r)."""
    share = share_masked((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    assert share.mean().item() == pytest.approx(2 / math.pi, abs=1e-4)
    for r in (0.1, 0.5, 0.9):
        assert (share < r).double().mean().item() == pytest.approx(2 / math.pi * math.asin(r), abs=1e-3)


@given(height=st.integers(1, 17), width=st.integers(1, 17))
@settings(max_examples=20)
def test_haltons_order_visits_every_position_once(height, width):
    order = halton_order(height, width)
    assert torch.equal(order.flatten().sort().values, torch.arange(height * width))


def test_haltons_order_covers_the_picture_evenly_from_the_first_quarter_on():
    order = halton_order(16, 16)
    for num in (64, 128, 192):
        quarters = F.avg_pool2d((order < num)[None, None].float(), 8) * 64
        assert (quarters - num / 4).abs().max() <= 3


def test_a_step_depends_only_on_seed_and_number(tokenizer):
    one, two = (make_learner(tokenizer).prepare(3) for _ in range(2))
    assert torch.equal(one.z0, two.z0) and torch.equal(one.noise, two.noise) and torch.equal(one.t_B, two.t_B)
    for other in (make_learner(tokenizer).prepare(4), make_learner(tokenizer, seed=1).prepare(3)):
        assert not torch.equal(one.t_B, other.t_B) and not torch.equal(one.noise, other.noise)
    assert one.t_B.min() > 0 and one.t_B.max() <= 1 and one.t_B.unique().numel() > 1


def test_tokens_of_masked_positions_are_hidden_and_only_they_count(tokenizer, monkeypatch):
    """A network that knows the masked tokens and errs about the others has no loss; the opposite has a large one."""
    seen = []

    def predict(network, shown, text, factor, right=True):
        seen.append(shown)
        hidden = shown == mask_token(network)
        known = F.one_hot(tokens, NUM_CODES).permute(0, 3, 1, 2)
        wrong = F.one_hot((tokens + 1) % NUM_CODES, NUM_CODES).permute(0, 3, 1, 2)
        return 50.0 * torch.where((hidden == right)[:, None], known, wrong)

    learner = make_learner(tokenizer)
    batch = learner.prepare(0)
    tokens = tokenizer.tokens_of(batch.z0)
    monkeypatch.setattr(learner_module, "predict_logits", predict)
    assert learner.weighted_loss(learner.network, batch).item() < 1e-6
    hidden = seen[0] == NUM_CODES
    assert torch.equal(hidden.flatten(1).sum(1), (batch.t_B * SIDE**2).ceil().long())
    assert torch.equal(seen[0][~hidden], tokens[~hidden])
    monkeypatch.setattr(learner_module, "predict_logits", lambda *given: predict(*given, right=False))
    assert learner.weighted_loss(learner.network, batch).item() == pytest.approx(50 * len(tokens), rel=1e-3)


def test_parts_of_a_batch_have_the_loss_of_the_whole(tokenizer):
    """However many processes share it, and however many rows each computes at a time."""
    whole = make_learner(tokenizer)
    torch.nn.init.normal_(whole.network.mlm_layer.conv2.weight)
    wanted = whole.weighted_loss(whole.network, whole.prepare(1))
    shares = [make_learner(tokenizer, World(rank, 3)).prepare(1) for rank in range(3)]
    parts = [part for share in shares for part in share.split(2)]
    found = torch.stack([whole.weighted_loss(whole.network, part) for part in parts]).sum()
    assert torch.allclose(found, wanted, rtol=1e-4)


def test_it_learns_to_beat_the_frequencies_of_the_codes(tokenizer):
    learner = make_learner(tokenizer, num_steps=40, learning_rate=5e-3)
    for step in range(40):
        learner.learn(step, learner.prepare(step))
        learner.optimizers["network"].step()
    found = learner.validate(learner.network)
    assert 0 < found["val_loss"] < 0.7 * found["code_entropy"] < 0.7 * math.log(NUM_CODES)
    assert learner.validate(learner.network) == found
    assert make_learner(tokenizer, held=0).validate(learner.network) == {}


def test_settings_that_the_network_cannot_have_are_refused(tokenizer):
    with pytest.raises(ValueError, match="no noise"):
        make_learner(tokenizer, noise_offset=0.1)
    with pytest.raises(ValueError, match="micro_batch_size"):
        make_learner(tokenizer, gradient_checkpointing=True)
    with pytest.raises(ValueError, match="multiple of outer_heads 3"):
        replace(SMALL, outer_heads=3)
