"""How the transformer learns to fill in masked tokens (MaskGIT, arXiv 2202.04200, sec. 3.2; Muse, arXiv 2301.00704).

It learns as a denoiser, with its own "noise": z0 are the tokenizer's rounded latents, which stand for tokens; the time
is the share of masked positions, and those with the lowest noise are masked.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emu_models.device import autocast
from emu_models.latent.denoiser_learner import MAX_VALIDATED, Batch, DenoiserLearner
from emu_models.masked.network import lowest, mask_token, predict_logits, share_masked
from emu_models.masked.tokenizer import PictureTokenizer, count_codes

NUM_VALIDATION_SHARES = 8  # as many as DenoiserLearner's timesteps
CODES_AT_ONCE = 64  # rows whose tokens are counted at a time; chosen here


class MaskedLearner(DenoiserLearner):
    """A transformer that learns the tokens of captioned pictures; a `loop.Learner`. The autoencoder is a
    PictureTokenizer, and there is no scheduler.

    The loss of a row is the cross entropy of its masked tokens, in nats per masked token; the others do not count,
    since the network sees them.

    Raises ValueError for an offset of the noise, and for gradient_checkpointing, which UVit2DModel only declares: its
    blocks fail with it in diffusers 0.42.1.
    """

    autoencoder: PictureTokenizer

    def read_schedule(self, scheduler: Any) -> None:
        """Refuse what such a network cannot have; the share of masked positions has no settings."""
        if self.config.noise_offset:
            raise ValueError(f"noise_offset is {self.config.noise_offset}; tokens have no noise, so set it to 0")
        if self.config.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing does not work with diffusers' UVit2DModel; set micro_batch_size instead"
            )
        self._takes_sizes = False
        self._code_entropy: float | None = None

    def draw_times(self, uniform_B: Tensor, z0: Tensor) -> Tensor:
        """Return the share of masked positions, 0..1, for each draw in [0, 1)."""
        return share_masked(uniform_B)

    def validation_times(self, z0: Tensor) -> list[float]:
        """Return evenly spread shares of masked positions."""
        return [(i + 0.5) / NUM_VALIDATION_SHARES for i in range(NUM_VALIDATION_SHARES)]

    def weighted_loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over the rows of weight times loss."""
        z0, scores, share_B = (x.to(self.device, non_blocking=True) for x in (batch.z0, batch.noise[:, 0], batch.t_B))
        tokens, num = self.autoencoder.tokens_of(z0), z0[0, 0].numel()
        masked = lowest(scores.flatten(1), (share_B * num).ceil().clamp(min=1)).view_as(tokens)
        with autocast(self.device):
            shown, text = tokens.masked_fill(masked, mask_token(network)), batch.text.to(self.device)
            logits = predict_logits(network, shown, text, self.autoencoder.factor)
        nats = F.cross_entropy(logits.float(), tokens, reduction="none")
        loss_B = (nats * masked).flatten(1).sum(1) / masked.flatten(1).sum(1)
        return (loss_B * batch.weights_B.to(self.device)).sum()

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Return val_loss, nats per masked token of held-out rows, averaged over fixed shares of fixed masked
        positions, and code_entropy, the loss of a guess that knows only how frequent each code is among the rows
        to train on."""
        found = super().validate(network)
        return {**found, "code_entropy": self._measure_entropy()} if found else found

    def _measure_entropy(self) -> float:
        """Return the entropy of the codes of at most MAX_VALIDATED rows, evenly spread over those to train on."""
        if self._code_entropy is None:
            part, space = self.trained.part, self.autoencoder
            rows = part.rows(np.linspace(0, len(part) - 1, min(len(part), MAX_VALIDATED)).round().astype(int))
            buckets, tokens = part.buckets_of(rows), []
            for bucket in np.unique(buckets):
                for index in torch.from_numpy(rows[buckets == bucket]).split(CODES_AT_ONCE):
                    tokens.append(space.tokens_of(self.trained.moments.select(index).mean).flatten())
            self._code_entropy = count_codes(torch.cat(tokens), space.num_codes)["code_entropy"]
        return self._code_entropy
