"""The settings of a rectified-flow transformer that is trained from scratch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TransformerConfig:
    """The network. patch: side of a patch in latent positions, or in px if it works on pixels. width: channels, of
    `heads` attention heads together. layers: transformer blocks.

    bottleneck: channels to which a patch of pixels is projected before it is embedded (Li and He, "Back to Basics: Let
    Denoising Generative Models Denoise", arXiv 2511.13720, sec. 4.3); such a network predicts the clean picture. None
    for latents, of which the velocity is predicted. Raises ValueError for values that do not fit together.
    """

    patch: int
    width: int
    heads: int
    layers: int
    bottleneck: int | None = None

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            raise ValueError(
                f"transformer width {self.width} must be a multiple of 4 x heads ({4 * self.heads}): a head has as "
                "many channels for rows as for columns, in pairs"
            )
