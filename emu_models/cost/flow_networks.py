"""The networks of a checkpoint of rectified flow, from the configs in its folder; weights are not read."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from emu_models.flow.layouts import LAYOUTS, Layout
from emu_models.flow.learner import FlowLearner
from emu_models.flow.network import predict_velocity
from emu_models.latent.autoencoder.scaled import ScaledAutoencoder
from emu_models.latent.denoiser_learner import DenoiserLearner
from emu_models.text import TextFeatures

# Entries of a transformer's config: channels of the token features, and of the pooled vector.
TOKEN_WIDTH, POOLED_WIDTH = ("joint_attention_dim", "caption_channels"), "pooled_projection_dim"
BLOCKS = ("transformer_blocks", "single_transformer_blocks")


@dataclass(frozen=True, eq=False)
class FlowNetworks:
    """As `networks.Networks`. folder: of a checkpoint that folders.inspect_checkpoint lets pass. scheduler: its own."""

    folder: Path
    scheduler: Any = field(init=False)

    def __post_init__(self) -> None:
        config = self._config("scheduler", "scheduler_config.json")
        # now, since schedulers read numbers from tensors, which those without data do not have
        object.__setattr__(self, "scheduler", getattr(diffusers, config["_class_name"]).from_config(config))

    def _config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        return json.loads((self.folder / part / name).read_text(encoding="utf-8"))

    @cached_property
    def _layout(self) -> Layout:
        index = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        return next(layout for pipeline, layout in LAYOUTS.items() if pipeline.__name__ == index["_class_name"])

    @property
    def text(self) -> tuple[tuple[Any, int], ...]:
        """The text encoders' configs, each with the tokens that the pipeline lets it read."""
        numbers = zip(("", "_2", "_3"), self._layout.num_tokens, strict=False)
        parts = [(f"text_encoder{i}", n) for i, n in numbers if (self.folder / f"text_encoder{i}").is_dir()]
        configs = [(AutoConfig.for_model(**self._config(part)), n) for part, n in parts]
        texts = [(getattr(config, "text_config", config), n) for config, n in configs]
        return tuple((config, min(n, getattr(config, "max_position_embeddings", n))) for config, n in texts)

    @cached_property
    def widths(self) -> tuple[int, int]:
        """Channels of the token features and of the pooled vector, 1 where there is none."""
        with torch.device("meta"):
            config: Any = self.build_denoiser().config  # with all defaults
        return next(config[name] for name in TOKEN_WIDTH if name in config), config.get(POOLED_WIDTH, 1)

    @property
    def num_positions(self) -> int:
        """The positions of text that the transformer attends to: SD3's two CLIP encoders share theirs."""
        numbers = self._layout.num_tokens
        return sum(numbers[1:]) if len(numbers) == 3 else numbers[-1]

    def build_denoiser(self) -> Any:
        """Return the transformer."""
        config = self._config("transformer")
        return getattr(diffusers, config["_class_name"]).from_config(config)

    def build_autoencoder(self) -> ScaledAutoencoder:
        """Return the autoencoder; what it scales by needs no memory and is left out."""
        config = self._config("vae")
        return ScaledAutoencoder(getattr(diffusers, config["_class_name"]).from_config(config), [0.0], [1.0])

    def latents(self, batch: int, resolution: int) -> torch.Size:
        """Return the shape of the latents of pictures of `resolution` px per side."""
        channels, factor = self._shrinking
        return torch.Size((batch, channels, resolution // factor, resolution // factor))

    @cached_property
    def _shrinking(self) -> tuple[int, int]:
        """Channels of the latents, and pixels per side of a position."""
        with torch.device("meta"):
            autoencoder = self.build_autoencoder()
        config = autoencoder.vae.config
        return config.get("latent_channels") or config["z_dim"], autoencoder.factor

    def blocks(self, denoiser: Any) -> list[nn.Module]:
        """Return the blocks that are recomputed, and gathered by fsdp, one at a time."""
        return [block for name in BLOCKS for block in getattr(denoiser, name, ())]

    def predict(self, denoiser: Any, z_BChw: Tensor, uniform_B: Tensor, text: TextFeatures) -> Tensor:
        """Return the transformer's prediction for noisy latents. uniform_B: times in [0, 1)."""
        return predict_velocity(denoiser, z_BChw, uniform_B, text)

    def make_learner(self, *given: Any) -> DenoiserLearner:
        """Return a learner. given: the arguments of DenoiserLearner without the scheduler."""
        network, autoencoder, *others = given
        return FlowLearner(network, autoencoder, self.scheduler, *others)
