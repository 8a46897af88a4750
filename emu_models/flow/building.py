"""New transformers of rectified flow, sized by a config: as in Stable Diffusion 3 on latents, as in PRX on pixels.

On latents: joint attention over text and picture, the pooled text vector added to the time's embedding (Esser et al.,
arXiv 2403.03206, sec. 4). On pixels: the clean picture is predicted, since noise and velocity of a patch of many pixels
do not pass through a narrow network (Li and He, arXiv 2511.13720); diffusers' PRX has such a network.
"""

import re

from diffusers import FlowMatchEulerDiscreteScheduler, PRXTransformer2DModel, SD3Transformer2DModel
from torch import nn

from emu_models.flow.jobs import TransformerConfig

MAX_POSITIONS = 192  # per side, in patches, whose embedding is kept: as many as Stable Diffusion 3.5 has
COLOURS = 3
# The layers of both networks that modulate blocks, and their last ones.
ZEROED = r"(norm1|norm1_context|norm_out)\.linear$|^proj_out$|modulation\.lin$|^final_layer\."


def build_transformer(
    config: TransformerConfig, latent_channels: int | None, token_width: int, pooled_width: int
) -> SD3Transformer2DModel | PRXTransformer2DModel:
    """Return a network for latents of that many channels, or for pixels if it is None. token_width, pooled_width:
    channels of TextFeatures' tokens_BLD and pooled_BD. It starts by predicting zero. Raises ValueError if the config is
    for the other of the two."""
    if latent_channels is None:
        if config.bottleneck is None:
            raise ValueError("a transformer on pixels needs bottleneck, the channels to which a patch is projected")
        side = config.width // config.heads // 2
        on_pixels = PRXTransformer2DModel(
            in_channels=COLOURS,
            patch_size=config.patch,
            context_in_dim=token_width,
            hidden_size=config.width,
            num_heads=config.heads,
            depth=config.layers,
            axes_dim=[side, side],
            bottleneck_size=config.bottleneck,
        )
        _start_from_zero(on_pixels)
        return on_pixels
    if config.bottleneck is not None:
        raise ValueError("bottleneck is for transformers on pixels; this one works on latents")
    network = SD3Transformer2DModel(
        patch_size=config.patch,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=config.layers,
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        joint_attention_dim=token_width,
        caption_projection_dim=config.width,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=MAX_POSITIONS,
        sample_size=MAX_POSITIONS,
        qk_norm="rms_norm",  # as Stable Diffusion 3.5; without it bf16 trainings diverge (ibid., sec. 5.3.2)
    )
    _start_from_zero(network)
    return network


def _start_from_zero(network: nn.Module) -> None:
    """Let every block start as the identity, and the network by predicting zero (DiT, arXiv 2212.09748, sec. 3.2)."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and re.search(ZEROED, name):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def build_flow_scheduler(noise_shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Return a schedule of rectified flow. noise_shift: see learner.noise_shift."""
    return FlowMatchEulerDiscreteScheduler(shift=noise_shift)
