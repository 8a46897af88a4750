"""Tiny checkpoints of random weights in the layouts of rectified flow: SD3, FLUX.1, SANA and Qwen-Image."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from tests.checkpoints import WIDTH, make_text_encoder, make_tokenizer

KINDS = {
    "sd3": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
    "sana": SanaPipeline,
    "qwen": QwenImagePipeline,
}
PROJECTION = 24  # of tests.checkpoints' CLIP encoder with a projection


def make_word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of letters."""
    letters = [chr(c) for c in range(33, 127)]
    tokenizer = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", *letters])}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=2048
    )


def make_t5(vocabulary: int, width: int) -> T5EncoderModel:
    config = T5Config(vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()


def make_vae(**scaling: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **scaling,
    )


def make_flow_checkpoint(kind: str, folder: Path) -> Path:
    """Save a checkpoint of `kind`, one of KINDS, for pictures of 32 px; return `folder`."""
    torch.manual_seed(0)
    pipeline = {"sd3": _make_sd3, "flux": _make_flux, "sana": _make_sana, "qwen": _make_qwen}[kind](folder)
    pipeline.save_pretrained(folder)
    return folder


def _make_sd3(folder: Path) -> Any:
    clip, words = make_tokenizer(folder.with_name(f"{folder.name}-tokenizer")), make_word_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * PROJECTION + WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * PROJECTION,
        pos_embed_max_size=96,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=make_text_encoder(clip, CLIPTextModelWithProjection),
        tokenizer=clip,
        text_encoder_2=make_text_encoder(clip, CLIPTextModelWithProjection),
        tokenizer_2=clip,
        text_encoder_3=make_t5(len(words), 2 * PROJECTION + WIDTH),
        tokenizer_3=words,
    )


def _make_flux(folder: Path) -> Any:
    clip, words = make_tokenizer(folder.with_name(f"{folder.name}-tokenizer")), make_word_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=make_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=make_text_encoder(clip, CLIPTextModel),
        tokenizer=clip,
        text_encoder_2=make_t5(len(words), WIDTH),
        tokenizer_2=words,
    )


def _make_sana(folder: Path) -> Any:
    words = make_word_tokenizer()
    config = Gemma2Config(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=16,
    )
    return SanaPipeline(
        tokenizer=words,
        text_encoder=Gemma2Model(config).eval(),
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def _make_qwen(folder: Path) -> Any:
    words: Any = make_word_tokenizer()
    text = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.7, 0.1, 0.3, 0.0],
        latents_std=[2.8, 1.4, 2.3, 1.0],
    )
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02
        ),
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=words,
        transformer=transformer,
    )
