"""`emu generate` overwrites nothing and says which part of a long prompt is read."""

from pathlib import Path

import pytest
import torch

from emu_models.checkpoints import load_pipeline
from emu_models.diffusion.schedule import build_scheduler
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.building import build_denoiser
from emu_models.latent.jobs import DenoiserConfig
from emu_models.latent.pipeline import EmuPipeline
from emu_models.text import load_text_encoders
from emu_steps import generating
from emu_steps.generating import check_folder, describe_cut, write_pictures
from tests.checkpoints import make_checkpoint

NUM_TOKENS = 8


@pytest.fixture(scope="module")
def pipeline() -> EmuPipeline:
    torch.manual_seed(0)
    encoders = load_text_encoders()
    config = DenoiserConfig((32, 64), (False, False), 1, "joint")
    made = EmuPipeline(
        vae=Autoencoder(4, widths=(16, 32)).eval(),
        unet=build_denoiser(config, 4, encoders.token_width, encoders.pooled_width).eval(),
        scheduler=build_scheduler(),
        **encoders.components(),
        resolution=32,
        num_text_tokens=NUM_TOKENS,
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_nothing_is_overwritten_and_the_same_seed_draws_the_same(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "BATCH", 2)  # more pictures than one batch
    out = tmp_path / "pictures"
    first = list(write_pictures(pipeline, "A red apple!", 3, 5, out, 2, 1.0))
    assert [path.name for path in first] == [f"a-red-apple-{seed}.png" for seed in (5, 6, 7)]
    before = {path: path.read_bytes() for path in first}
    again = list(write_pictures(pipeline, "A red apple!", 3, 5, out, 2, 1.0))
    assert not set(first) & set(again)
    assert {path: path.read_bytes() for path in first} == before
    assert [path.read_bytes() for path in again] == list(before.values())
    assert len(set(before.values())) == 3
    (named,) = write_pictures(pipeline, "!!", 1, 0, out, 1, 1.0)
    assert named.name == "picture-0.png"


def test_a_prompt_that_is_cut_is_reported_with_what_is_left_of_it(pipeline, tmp_path, capsys):
    words = " ".join(["apple"] * 500)
    reported = describe_cut(pipeline, words)
    assert f"{500 + 2} tokens" in reported and f"first {NUM_TOKENS}" in reported  # with a begin and an end
    assert reported.count("apple") == NUM_TOKENS - 2
    list(write_pictures(pipeline, words, 1, 0, tmp_path, 1, 1.0))
    assert reported in capsys.readouterr().err
    for prompt in ("a red apple", " ".join(["apple"] * (NUM_TOKENS - 2))):
        assert describe_cut(pipeline, prompt) == ""


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_another_checkpoints_own_limit_counts(kind, tmp_path):
    other = load_pipeline(make_checkpoint(kind, tmp_path / kind))
    most = other.tokenizer.model_max_length
    assert f"reads the first {most}" in describe_cut(other, "red " * 500)
    assert describe_cut(other, "red blue") == ""


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file is a file; give a folder"):
            check_folder(out)
    check_folder(tmp_path / "new" / "below")
