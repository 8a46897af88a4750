"""Networks and how they learn (Emu paper, sections 3.1, 3.2, 3.4 and 4)."""

from typing import Any


def __getattr__(name: str) -> Any:
    """The classes that model_index.json names, which diffusers looks for here; imported late: they take seconds."""
    if name == "Autoencoder":
        from emu_models.latent.autoencoder.network import Autoencoder

        return Autoencoder
    if name == "EmuPipeline":
        from emu_models.latent.pipeline import EmuPipeline

        return EmuPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
