"""Tiny checkpoints of random weights in the layouts of Stable Diffusion 1.x, 2.x and XL."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32  # of the text features
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}  # Stable Diffusion's own


def make_tokenizer(folder: Path, max_length: int = 16) -> CLIPTokenizer:
    """Return CLIP's tokenizer with letters and a few merged words."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    merges = ["r e", "re d</w>", "b l", "bl u", "blu e</w>"]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>", "bl", "blu", "blue</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=max_length)


def make_text_encoder(tokenizer: CLIPTokenizer, model_class: type = CLIPTextModel) -> Any:
    ends: dict[str, Any] = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=24,
        **ends,
    )
    return model_class(config).eval()


def make_checkpoint(kind: str, folder: Path) -> Path:
    """Save a checkpoint of `kind` ("sd1", "sd2" with v-prediction, "sdxl") for pictures of 32 px; return `folder`."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder.with_name(f"{folder.name}-tokenizer"))
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    channels = {"in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64), "norm_num_groups": 8}
    extra: dict[str, Any] = {}
    if kind == "sdxl":
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
            "use_linear_projection": True,
        }
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        cross_attention_dim=2 * WIDTH if kind == "sdxl" else WIDTH,
        attention_head_dim=4,
        **channels,
        **extra,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * 2,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 2,  # type: ignore[arg-type]
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )
    if kind == "sdxl":
        pipeline: Any = StableDiffusionXLPipeline(
            vae=vae,
            unet=unet,
            scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1),  # type: ignore[arg-type]
            text_encoder=make_text_encoder(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=make_text_encoder(tokenizer, CLIPTextModelWithProjection),
            tokenizer_2=tokenizer,
            add_watermarker=False,
        )
    else:
        v_prediction = {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False}
        scheduler: Any = PNDMScheduler if kind == "sd1" else DDIMScheduler
        pipeline = StableDiffusionPipeline(
            vae=vae,
            unet=unet,
            scheduler=scheduler(
                **BETAS, steps_offset=1, **(v_prediction if kind == "sd2" else {"skip_prk_steps": True})
            ),
            text_encoder=make_text_encoder(tokenizer),
            tokenizer=tokenizer,
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder
