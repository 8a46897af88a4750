"""Two text encoders together: tiny random ones of CLIP's and T5's kind, made and saved here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from emu_models.diffusion.schedule import build_scheduler
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import denoise
from emu_models.latent.jobs import DenoiserConfig
from emu_models.latent.pipeline import EmuPipeline
from emu_models.text import TextEncoders, encode_prompts, load_text_encoders
from emu_models.training.cache import encode_captions
from emu_models.training.row_file import open_rows
from emu_models.training.rows import PictureRows
from tests.checkpoints import make_tokenizer
from tests.shards import write_toy_shards

PROMPTS = ["a red apple", "a blue car at night", ""]
NUM_TOKENS = 12
CLIP_WIDTH, T5_WIDTH = 32, 48


def save_clip(folder: Path, seed: int) -> str:
    tokenizer = make_tokenizer(folder.with_name(f"{folder.name}-tokenizer"), max_length=8)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    ends: dict[str, Any] = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        **ends,
    )
    CLIPTextModel(config).save_pretrained(folder)
    return str(folder)


def save_t5(folder: Path, seed: int) -> str:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0).save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(pieces),
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    T5EncoderModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("text")
    return [save_clip(root / "clip", 0), save_t5(root / "t5", 0)]


@pytest.fixture(scope="module")
def encoders(folders) -> TextEncoders:
    return load_text_encoders(folders)


def test_tokens_of_two_encoders_follow_each_other_in_their_own_channels(folders, encoders):
    both = encode_prompts(PROMPTS, encoders, NUM_TOKENS)
    clip, t5 = (encode_prompts(PROMPTS, load_text_encoders(folder), NUM_TOKENS) for folder in folders)
    assert clip.tokens_BLD.shape == (3, 8, CLIP_WIDTH)  # CLIP takes no more than 8 here
    assert both.tokens_BLD.shape == (3, 8 + NUM_TOKENS, CLIP_WIDTH + T5_WIDTH)
    torch.testing.assert_close(both.tokens_BLD[:, :8, :CLIP_WIDTH], clip.tokens_BLD)
    torch.testing.assert_close(both.tokens_BLD[:, 8:, CLIP_WIDTH:], t5.tokens_BLD)
    assert both.tokens_BLD[:, :8, CLIP_WIDTH:].abs().max() == 0
    assert both.tokens_BLD[:, 8:, :CLIP_WIDTH].abs().max() == 0
    assert torch.equal(both.mask_BL, torch.cat([clip.mask_BL, t5.mask_BL], 1))


def test_t5_is_read_with_the_tokenizer_file_that_it_is_published_with(tmp_path):
    """google/t5-v1_1-xxl has a SentencePiece model but no tokenizer.json."""
    folder = Path(save_t5(tmp_path / "t5", 0))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    SentencePieceTrainer.train(
        sentence_iterator=iter(20 * PROMPTS[:2]), model_prefix=str(folder / "spiece"), vocab_size=30, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    (tokenizer,) = load_text_encoders(str(folder)).tokenizers
    for prompt in PROMPTS:
        assert tokenizer(prompt)["input_ids"] == [*pieces.encode(prompt), pieces.eos_id()]


def test_the_pooled_vector_is_the_first_encoders_and_zero_for_no_prompt(folders, encoders):
    both, clip = (encode_prompts(PROMPTS, e, NUM_TOKENS) for e in (encoders, load_text_encoders(folders[0])))
    torch.testing.assert_close(both.pooled_BD, clip.pooled_BD)
    assert both.pooled_BD[:2].square().mean(1).tolist() == pytest.approx([1, 1], rel=1e-4)
    assert both.pooled_BD[2].abs().max() == 0
    assert both.tokens_BLD[~both.mask_BL].abs().max() == 0


def test_a_prompts_features_do_not_depend_on_its_batch(encoders):
    together, alone = (encode_prompts(p, encoders, NUM_TOKENS) for p in (PROMPTS, PROMPTS[1:2]))
    torch.testing.assert_close(together.tokens_BLD[1:2], alone.tokens_BLD)
    torch.testing.assert_close(together.pooled_BD[1:2], alone.pooled_BD)


@pytest.mark.parametrize("changed", [0, 1])
def test_a_change_of_either_encoder_is_another_cache_entry(folders, encoders, tmp_path, changed):
    others = list(folders)
    others[changed] = (save_clip, save_t5)[changed](tmp_path / "other", 1)
    shards, table = write_toy_shards(tmp_path, num_images=4)
    rows = PictureRows(shards, open_rows(shards, table, tmp_path / "rows"), [(8, 8)], 1)
    every = torch.arange(len(rows))
    first, second, again = (
        encode_captions(rows, these, NUM_TOKENS, tmp_path / "cache")[0].select(every).tokens_BLD
        for these in (encoders, load_text_encoders(others), encoders)
    )
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def small_denoiser(encoders: TextEncoders):
    torch.manual_seed(0)
    config = DenoiserConfig((32, 64), (False, True), 1, cross_attention_width=64)
    return build_denoiser(config, 4, encoders.token_width, encoders.pooled_width).eval()


@pytest.mark.parametrize("encoder", [0, 1])
def test_the_denoiser_depends_on_both_encoders_through_attention(encoders, encoder):
    text = encode_prompts(PROMPTS[:1], encoders, NUM_TOKENS)
    channels = slice(0, CLIP_WIDTH) if encoder == 0 else slice(CLIP_WIDTH, None)
    other = encode_prompts(PROMPTS[:1], encoders, NUM_TOKENS)
    other.tokens_BLD[..., channels] *= -1
    denoiser, z, t_B = small_denoiser(encoders), torch.randn(1, 4, 4, 4), torch.tensor([500])
    with torch.no_grad():
        assert not torch.allclose(denoise(denoiser, z, t_B, text), denoise(denoiser, z, t_B, other), atol=1e-6)


def test_a_pipeline_with_two_encoders_is_saved_and_loaded_unchanged(encoders, tmp_path):
    torch.manual_seed(0)
    pipeline = EmuPipeline(
        vae=Autoencoder(latent_channels=4, widths=(16, 32)),
        unet=small_denoiser(encoders),
        scheduler=build_scheduler(),
        resolution=32,
        num_text_tokens=NUM_TOKENS,
        **encoders.components(),
    )
    pipeline.save_pretrained(tmp_path)
    loaded = EmuPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert isinstance(loaded.text_encoder_2, T5EncoderModel)
    expected, got = (encode_prompts(PROMPTS, p.text_encoders, NUM_TOKENS) for p in (pipeline, loaded))
    assert torch.equal(expected.tokens_BLD, got.tokens_BLD)
    options = {"seeds": [0], "num_inference_steps": 2, "output_type": "np", "return_dict": False}
    first, second = (p(["a red apple"], **options)[0] for p in (pipeline, loaded))
    assert np.array_equal(first, second)


def test_what_cannot_be_loaded_is_named(tmp_path, folders):
    with pytest.raises(ValueError, match="text_encoder .*nothing.* cannot be loaded"):
        load_text_encoders(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_text_encoders(str(tmp_path))
    with pytest.raises(ValueError, match="3 encoders"):
        load_text_encoders([*folders, folders[0]])
