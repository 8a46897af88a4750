"""How the tokenizer learns: as the autoencoder, without the KL, since its latents have no noise."""

import torch
from torch import Tensor

from emu_models.latent.autoencoder_learner import AutoencoderLearner, PartLosses
from emu_models.latent.jobs import AutoencoderTrainingConfig
from emu_models.masked.tokenizer import PictureTokenizer
from emu_models.training.distributed import ALONE, World
from emu_models.training.rows import Rows


class TokenizerLearner(AutoencoderLearner):
    """A tokenizer that learns to reconstruct pictures; a `loop.Learner`. The network is a PictureTokenizer. Raises
    ValueError for a weight of the KL, which it does not have."""

    def __init__(
        self, network: PictureTokenizer, rows: Rows, config: AutoencoderTrainingConfig, world: World = ALONE
    ) -> None:
        if config.losses.kl_weight:
            raise ValueError(f"losses.kl_weight is {config.losses.kl_weight}; a tokenizer has no KL: set it to 0")
        super().__init__(network, rows, config, world)

    def resize(self, step: int, x: Tensor) -> Tensor:
        """Return the pictures at full size: tokens are made of no other."""
        return x

    def _noise(self, step: int, batch: Tensor) -> Tensor:
        return torch.zeros((), device=self.device).expand(len(batch), 1, 1, 1)

    def _add_gradients(self, losses: PartLosses, scale: Tensor | None) -> dict[str, float]:
        metrics = super()._add_gradients(losses, scale)
        return {name: value for name, value in metrics.items() if name != "kl"}
