"""What networks take: measured by measuring.py on first use and kept in a file, so that repeating a plan needs neither
torch nor the seconds of measuring."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from emu_data.files import write_json

if TYPE_CHECKING:
    from emu_models.cost.networks import Networks

# Sizes of the paper's text encoders from their config.json on the hub, so that a plan needs no network access.
PUBLISHED: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": {
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "google/t5-v1_1-xxl": {
        "model_type": "t5",
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
}


@dataclass(frozen=True)
class Flops:
    """FLOPs per sample: the denoiser's forward pass and whole step (forward and backward), and the encoding that caches
    save after the first pass."""

    forward: int
    step: int
    encode_picture: int
    encode_caption: int


@dataclass(frozen=True)
class TextCost:
    """A text encoder: its kind, parameters, channels per token, tokens per caption, and FLOPs per caption."""

    kind: str
    num_parameters: int
    width: int
    num_tokens: int
    flops: int


@dataclass(frozen=True)
class Activations:
    """Bytes at the peak of a step beside the training's states: for any batch (half-precision weights, the
    autoencoder), and per sample."""

    fixed: int
    per_sample: int


@dataclass(frozen=True)
class Peak:
    """Bytes of work without gradients: the networks' weights, and what one item adds at its peak."""

    weights: int
    per_item: int


class Costs:
    """What some networks take. Each figure is measured once, on first use.

    describe: returns the networks' description; called only if something must be measured. file: keeps the figures
    (None: nothing is kept); its name must depend on everything that determines them. A file that cannot be read or
    written is ignored.
    """

    def __init__(self, describe: Callable[[], "Networks"], file: Path | None = None) -> None:
        self._describe = describe
        self._file = file

    @cached_property
    def _networks(self) -> "Networks":
        return self._describe()

    @cached_property
    def _figures(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8")) if self._file else {}
        except (OSError, ValueError):
            kept = {}
        return kept if isinstance(kept, dict) else {}

    def denoiser(self) -> tuple[int, int]:
        """Return the numbers of parameters of the denoiser and of its largest block."""
        return self._figure("denoiser", tuple[int, int], "measuring:count_denoiser")

    def text(self) -> tuple[TextCost, ...]:
        """Return the cost of each text encoder, in their order."""
        return self._figure("text", tuple[TextCost, ...], "measuring:measure_text")

    def flops(self, resolution: int) -> Flops:
        """Return the FLOPs for one picture of `resolution` px per side, with its caption."""
        return self._figure(f"flops {resolution}", Flops, "measuring:count_flops", resolution)

    def step(self, resolution: int, checkpointing: bool) -> Activations:
        """Return what a step of the denoiser takes at `resolution` px per side. checkpointing: blocks are recomputed in
        the backward pass."""
        name = f"step {resolution}" + (", recomputed" if checkpointing else "")
        return self._figure(name, Activations, "peaks:measure_step", resolution, checkpointing)

    def validation(self, resolution: int) -> int:
        """Return the bytes that a validated sample takes."""
        return self._figure(f"validation {resolution}", int, "peaks:measure_validation", resolution)

    def encoding(self, resolution: int) -> Peak:
        """Return what encoding pictures of `resolution` px per side takes."""
        return self._figure(f"encoding {resolution}", Peak, "peaks:measure_encoding", resolution)

    def captions(self) -> Peak:
        """Return what encoding captions takes."""
        return self._figure("captions", Peak, "peaks:measure_captions")

    def drawing(self, resolution: int) -> Peak:
        """Return what drawing pictures of `resolution` px per side takes."""
        return self._figure(f"drawing {resolution}", Peak, "peaks:measure_drawing", resolution)

    def autoencoder(self, resolution: int, micro_batch: int, with_lpips: bool) -> int:
        """Return the bytes of a step of the autoencoder's training, of `micro_batch` pictures at a time."""
        name = f"autoencoder {resolution} {micro_batch} {with_lpips}"
        return self._figure(name, int, "peaks:measure_autoencoder", resolution, micro_batch, with_lpips)

    def latents(self, resolution: int) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of the latents of a picture of `resolution` px per side."""
        shape = tuple[int, int, int]
        return self._figure(f"latents {resolution}", shape, "measuring:shape_of_latents", resolution)

    def _figure(self, name: str, kind: Any, measure: str, *arguments: Any) -> Any:
        """Return the figure called `name`, of type `kind`. measure: MODULE:FUNCTION of this package, called with the
        networks and the arguments."""
        adapter = TypeAdapter(kind)
        with suppress(KeyError, ValidationError):
            return adapter.validate_python(self._figures[name])
        # imports torch, diffusers and transformers, which takes seconds
        figure = resolve_name(f"{__package__}.{measure}")(self._networks, *arguments)
        self._figures[name] = adapter.dump_python(figure, mode="json")
        if self._file:
            with suppress(OSError):
                write_json(self._file, self._figures)
        return figure
