"""open_clip models by folder or name, loaded in one way for the signals, the judge and the perceptual loss."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

FILES = ("open_clip_config.json", "open_clip_model.safetensors")


@dataclass(frozen=True)
class ClipModel:
    """network: in eval mode, on the CPU. transform: an RGB picture to float (3, H, W), as the network takes it.
    tokenize: N texts to int64 (N, L)."""

    network: Any
    transform: "Callable[[Image.Image], torch.Tensor]"
    tokenize: "Callable[[list[str]], torch.Tensor]"


def load_clip(source: str | Path) -> ClipModel:
    """Load a folder in open_clip's layout (FILES), or a name that open_clip knows: NAME@TAG, or "hf-hub:…".

    Raises ValueError where the folder lacks a file, or open_clip cannot load it.
    """
    import open_clip

    name, _, tag = str(source).partition("@")
    if Path(source).is_dir():
        if missing := [file for file in FILES if not (Path(source) / file).is_file()]:
            raise ValueError(f"{source} is no open_clip model folder: it lacks {' and '.join(missing)}")
        name, tag = f"local-dir:{source}", ""
    elif not tag and ":" not in name:
        raise ValueError(f"{source} is no open_clip model folder; give one, or a name with its tag as NAME@TAG")
    try:
        made: Any = open_clip.create_model_from_pretrained(name, pretrained=tag or None)
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"open_clip cannot load {source}: {error}") from error
    network, transform = made
    return ClipModel(network.eval(), transform, open_clip.get_tokenizer(name))
