"""Curated pictures that are too small are enlarged by a pipeline of diffusers, or by Lanczos, which says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    LDMSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image

from emu_models.upsampling import LANCZOS, load_upsampler
from tests.checkpoints import WIDTH, make_checkpoint, make_text_encoder, make_tokenizer

UNET = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
AUTOENCODER = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}  # halved twice, so it enlarges fourfold
AUTOENCODER |= {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}


def save_upscaler(folder: Path) -> Path:
    """A tiny StableDiffusionUpscalePipeline with random weights, which enlarges fourfold."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder.with_name("tokenizer"))
    pipeline = StableDiffusionUpscalePipeline(
        vae=AutoencoderKL(3, 3, latent_channels=4, **AUTOENCODER),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            in_channels=7,
            out_channels=4,
            cross_attention_dim=WIDTH,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=1000,
            **UNET,
        ),
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(),
        max_noise_level=350,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_super_resolution(folder: Path) -> Path:
    """A tiny LDMSuperResolutionPipeline, which takes no prompt."""
    torch.manual_seed(0)
    pipeline = LDMSuperResolutionPipeline(
        vqvae=VQModel(3, 3, latent_channels=3, **AUTOENCODER),
        unet=UNet2DModel(
            in_channels=6,
            out_channels=3,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **UNET,
        ),
        scheduler=DDIMScheduler(),
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_upscaler, save_super_resolution])
def test_any_pipeline_enlarges_to_the_side_and_keeps_the_shape(tmp_path: Path, save, monkeypatch) -> None:
    folder = save(tmp_path / "upscaler")
    enlarge, by = load_upsampler(folder, 200)
    assert by.endswith("in upscaler")
    image = Image.effect_noise((90, 60), 60).convert("RGB")
    for name in (StableDiffusionUpscalePipeline, LDMSuperResolutionPipeline):
        call = name.__call__
        monkeypatch.setattr(
            name, "__call__", lambda self, *a, call=call, **k: call(self, *a, num_inference_steps=2, **k)
        )
    first, again, other = (enlarge(image, "a red square", key) for key in ("one", "one", "two"))
    assert first.size == (300, 200) and first.mode == "RGB"
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert not np.array_equal(np.asarray(first), np.asarray(other))


def test_without_a_pipeline_it_is_lanczos() -> None:
    enlarge, by = load_upsampler(None, 128)
    image = Image.effect_noise((64, 96), 60).convert("RGB")
    larger = enlarge(image, "", "key")
    assert by == LANCZOS and larger.size == (128, 192)
    assert larger.tobytes() == image.resize((128, 192), Image.Resampling.LANCZOS).tobytes()


def test_what_enlarges_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="curated_set.upsampler .* cannot be loaded"):
        load_upsampler(tmp_path / "nothing", 128)
    with pytest.raises(ValueError, match="StableDiffusionPipeline, which takes no picture"):
        load_upsampler(make_checkpoint("sd1", tmp_path / "sd"), 128)
