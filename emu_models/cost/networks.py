"""The networks of a training as descriptions from which measuring.py builds them without weights: those of a profile,
or those of a checkpoint's folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from emu_models.checkpoints import AnyAutoencoder
from emu_models.cost.costs import PUBLISHED
from emu_models.diffusion.schedule import NUM_TIMESTEPS, build_scheduler
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.autoencoder.scaled import ScaledAutoencoder
from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import choose_attention, denoise
from emu_models.latent.denoiser_learner import DenoiserLearner
from emu_models.latent.jobs import DenoiserConfig
from emu_models.text import TEXT_HALVES, TextFeatures, list_text_encoders


class Networks(Protocol):
    """All networks of a denoiser's training. They are built on the current default device (meta, to count without
    memory). Objects are equal only to themselves, so that lru_cache can use them as keys."""

    @property
    def text(self) -> tuple[tuple[Any, int], ...]:
        """The text encoders' configs (transformers), each with its number of tokens."""
        ...

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of the token features and of the pooled vector."""
        ...

    @property
    def num_positions(self) -> int:
        """The positions of text that the denoiser attends to."""
        ...

    def build_denoiser(self) -> Any:
        """Return the denoiser."""
        ...

    def build_autoencoder(self) -> AnyAutoencoder:
        """Return the autoencoder, with the methods that training calls."""
        ...

    def latents(self, batch: int, resolution: int) -> torch.Size:
        """Return the shape of the latents of pictures of `resolution` px per side."""
        ...

    def blocks(self, denoiser: Any) -> list[nn.Module]:
        """Return the blocks that are recomputed, and gathered by fsdp, one at a time."""
        ...

    def predict(self, denoiser: Any, z_BChw: Tensor, uniform_B: Tensor, text: TextFeatures) -> Tensor:
        """Return the denoiser's prediction for noisy latents. uniform_B: times in [0, 1)."""
        ...

    def make_learner(self, *given: Any) -> DenoiserLearner:
        """Return a learner. given: the arguments of DenoiserLearner without the scheduler."""
        ...


class GaussianNetworks:
    """What networks have in common whose denoiser is a U-Net of Gaussian diffusion."""

    def blocks(self, denoiser: Any) -> list[nn.Module]:
        """Return the U-Net's levels."""
        return [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]

    def predict(self, denoiser: Any, z_BChw: Tensor, uniform_B: Tensor, text: TextFeatures) -> Tensor:
        """Return the U-Net's prediction for noisy latents."""
        return denoise(denoiser, z_BChw, (uniform_B * NUM_TIMESTEPS).long(), text)

    def make_learner(self, *given: Any) -> DenoiserLearner:
        """Return a learner with this project's schedule, which takes no memory that another would not."""
        network, autoencoder, *others = given
        return DenoiserLearner(network, autoencoder, build_scheduler(), *others)


@dataclass(frozen=True, eq=False)
class ProfileNetworks(GaussianNetworks):
    """The networks of a profile. autoencoder: arguments of Autoencoder; text: see describe_text."""

    denoiser: DenoiserConfig
    autoencoder: dict[str, Any]
    text: tuple[tuple[Any, int], ...]

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of the token features, summed over the encoders, and of the pooled vector, the first encoder's."""
        return sum(config.hidden_size for config, _ in self.text), self.text[0][0].hidden_size

    @property
    def num_positions(self) -> int:
        """The tokens of all encoders, which follow each other."""
        return sum(length for _, length in self.text)

    def build_denoiser(self) -> UNet2DConditionModel:
        """Return the U-Net."""
        return build_denoiser(self.denoiser, self.autoencoder["latent_channels"], *self.widths)

    def build_autoencoder(self) -> AnyAutoencoder:
        """Return the autoencoder."""
        return Autoencoder(**self.autoencoder)

    def latents(self, batch: int, resolution: int) -> torch.Size:
        """Return the shape of the latents of pictures of `resolution` px per side."""
        side = resolution // (self.autoencoder["fold"] * 2 ** (len(self.autoencoder["widths"]) - 1))
        return torch.Size((batch, self.autoencoder["latent_channels"], side, side))


@dataclass(frozen=True, eq=False)
class CheckpointNetworks(GaussianNetworks):
    """The networks of a checkpoint in Stable Diffusion's or SDXL's layout, from the configs in its folder; weights are
    not read."""

    folder: Path

    def _config(self, part: str) -> dict[str, Any]:
        return json.loads((self.folder / part / "config.json").read_text(encoding="utf-8"))

    @property
    def text(self) -> tuple[tuple[Any, int], ...]:
        """The text encoders' configs, each with all its positions, which such pipelines always fill."""
        parts = [part for part in ("text_encoder", "text_encoder_2") if (self.folder / part).is_dir()]
        configs = [AutoConfig.for_model(**self._config(part)) for part in parts]
        return tuple((config, config.max_position_embeddings) for config in configs)

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of the token features that the U-Net attends to, and of the pooled vector: SDXL's second encoder's,
        1 where there is none (checkpoints.PipelineCaptions)."""
        config, text = self._config("unet"), self.text
        return config["cross_attention_dim"], text[1][0].projection_dim if len(text) == 2 else 1

    @property
    def num_positions(self) -> int:
        """The tokens of one encoder: SDXL's two share their positions."""
        return max(length for _, length in self.text)

    def build_denoiser(self) -> UNet2DConditionModel:
        """Return the U-Net."""
        network: Any = UNet2DConditionModel.from_config(self._config("unet"))
        choose_attention(network)
        return network

    def build_autoencoder(self) -> AnyAutoencoder:
        """Return the autoencoder."""
        autoencoder: Any = AutoencoderKL.from_config(self._config("vae"))
        return ScaledAutoencoder(autoencoder, [0.0], [1.0 / autoencoder.config.scaling_factor])

    def latents(self, batch: int, resolution: int) -> torch.Size:
        """Return the shape of the latents of pictures of `resolution` px per side."""
        config = self._config("vae")
        side = resolution // 2 ** (len(config["block_out_channels"]) - 1)
        return torch.Size((batch, config["latent_channels"], side, side))


def make_text(networks: Networks, batch: int, device: str) -> TextFeatures:
    """Return uninitialised text features of `batch` captions."""
    (tokens, pooled), length = networks.widths, networks.num_positions
    return TextFeatures(
        torch.empty(batch, length, tokens, device=device),
        torch.empty(batch, length, dtype=torch.bool, device=device),
        torch.empty(batch, pooled, device=device),
    )


def build_text_encoders(networks: Networks) -> torch.nn.ModuleList:
    """Return the text encoders on the current default device, in their order."""
    halves = [(config, TEXT_HALVES.get(config.model_type)) for config, _ in networks.text]
    return torch.nn.ModuleList([half(config) if half else AutoModel.from_config(config) for config, half in halves])


def describe_text(names: str | Sequence[str] | None, num_tokens: int) -> tuple[tuple[Any, int], ...]:
    """Return the config and number of tokens of each encoder in params' text_encoder; the paper's two need no file."""
    described = []
    for name in list_text_encoders(names):
        known = PUBLISHED.get(name)
        config = AutoConfig.for_model(**known) if known else AutoConfig.from_pretrained(name)
        config = getattr(config, "text_config", config)
        described.append((config, min(num_tokens, getattr(config, "max_position_embeddings", num_tokens))))
    return tuple(described)
