"""Networks and how they learn (Emu paper, sections 3.1, 3.2, 3.4 and 4)."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import the classes that model_index.json names when diffusers looks for them here: importing them takes
    seconds."""
    if name == "Autoencoder":
        from emu_models.latent.autoencoder.network import Autoencoder

        return Autoencoder
    if name == "EmuPipeline":
        from emu_models.latent.pipeline import EmuPipeline

        return EmuPipeline
    if name == "PictureTokenizer":
        from emu_models.masked.tokenizer import PictureTokenizer

        return PictureTokenizer
    if name == "EmuMaskedPipeline":
        from emu_models.masked.pipeline import EmuMaskedPipeline

        return EmuMaskedPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
