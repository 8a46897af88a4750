"""The published sizes of the networks of Stable Diffusion XL (CreativeML Open RAIL++-M) and of FLUX.1-dev (FLUX.1
[dev] Non-Commercial License), from the configs of their checkpoints, as folders without weights."""

import json
from pathlib import Path
from typing import Any

from emu_models.cost.costs import PUBLISHED

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
TEXT: dict[str, Any] = {
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
TEXT_2: dict[str, Any] = {
    "model_type": "clip_text_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


def write_sdxl_configs(folder: Path) -> Path:
    """Write the configs of SDXL's networks; return `folder`."""
    for part, config in {"unet": UNET, "vae": VAE, "text_encoder": TEXT, "text_encoder_2": TEXT_2}.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


# Ours at the paper's scale, as in profiles/paper.yaml (tests/emu_models/cost/test_peaks.py compares them).
PAPER_DENOISER: dict[str, Any] = {
    "widths": (448, 896, 1792, 1792),
    "attention": (False, True, True, True),
    "layers_per_level": 3,
    "middle": "full",
    "cross_attention_width": 2560,
}
PAPER_AUTOENCODER: dict[str, Any] = {
    "latent_channels": 16,
    "fourier_bands": 3,
    "fold": 1,
    "widths": [128, 256, 512, 512],
    "encoder_blocks": 2,
    "decoder_blocks": 3,
    "linear_shortcut": False,
}


def paper_text() -> tuple[tuple[Any, int], ...]:
    """Return the text encoders of profiles/paper.yaml, each with its tokens."""
    from emu_models.cost.networks import describe_text

    return describe_text(["openai/clip-vit-large-patch14", "google/t5-v1_1-xxl"], 77)


# FLUX.1-dev: the defaults of diffusers' class, which are FLUX.1-schnell's, and the embedding of guidance.
FLUX: dict[str, Any] = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}
FLUX_VAE: dict[str, Any] = {**VAE, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
FLUX_SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


def write_flux_configs(folder: Path) -> Path:
    """Write the configs of FLUX.1-dev's networks; return `folder`."""
    parts = {
        "transformer": FLUX,
        "vae": FLUX_VAE,
        "text_encoder": TEXT,
        "text_encoder_2": PUBLISHED["google/t5-v1_1-xxl"],
    }
    for part, config in parts.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(FLUX_SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    return folder
