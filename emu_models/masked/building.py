"""New transformers of the masked family, sized by a config."""

import torch
from diffusers import UVit2DModel

from emu_models.masked.jobs import MaskedTransformerConfig

SIZES = 2  # numbers that predict_logits tells the network: height and width
SIZE_CHANNELS = 256  # of each of them; UVit2DModel's default


def build_transformer(
    config: MaskedTransformerConfig, num_codes: int, token_width: int, pooled_width: int
) -> UVit2DModel:
    """Return a network for tokens of `num_codes` codes and a mask. token_width, pooled_width: channels of TextFeatures'
    tokens_BLD and pooled_BD. It starts by finding all codes equally likely."""
    network = UVit2DModel(
        hidden_size=config.width,
        cond_embed_dim=pooled_width,
        micro_cond_encode_dim=SIZE_CHANNELS,
        micro_cond_embed_dim=SIZES * SIZE_CHANNELS,
        encoder_hidden_size=token_width,
        vocab_size=num_codes + 1,
        codebook_size=num_codes,
        in_channels=config.code_width,
        block_out_channels=config.outer_width,
        num_res_blocks=config.blocks,
        downsample=config.halved,
        upsample=config.halved,
        block_num_heads=config.outer_heads,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.inner_width,
    )
    torch.nn.init.zeros_(network.mlm_layer.conv2.weight)
    return network
