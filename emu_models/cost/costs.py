"""What networks take: measured by measuring.py on first use and kept in a file, so that repeating a plan needs neither
torch nor the seconds of measuring."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from emu_data.files import write_json

if TYPE_CHECKING:
    from emu_models.cost.measuring import Networks

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
    """Bytes that autograd keeps until the backward pass: for any batch (half-precision weights), and per sample."""

    fixed: int
    per_sample: int


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
        return self._figure("denoiser", tuple[int, int], lambda m: m.count_denoiser(self._networks))

    def text(self) -> tuple[TextCost, ...]:
        """Return the cost of each text encoder, in their order."""
        return self._figure("text", tuple[TextCost, ...], lambda m: m.measure_text(self._networks))

    def flops(self, resolution: int) -> Flops:
        """Return the FLOPs for one picture of `resolution` px per side, with its caption."""
        return self._figure(f"flops {resolution}", Flops, lambda m: m.count_flops(self._networks, resolution))

    def activations(self, resolution: int, checkpointing: bool) -> Activations:
        """Return the denoiser's activations at `resolution` px per side. checkpointing: blocks are recomputed in the
        backward pass."""
        name = f"activations {resolution}" + (", again" if checkpointing else "")
        return self._figure(
            name, Activations, lambda m: m.measure_activations(self._networks, resolution, checkpointing)
        )

    def latents(self, resolution: int) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of the latents of a picture of `resolution` px per side."""
        shape = tuple[int, int, int]
        return self._figure(f"latents {resolution}", shape, lambda _: tuple(self._networks.latents(1, resolution)[1:]))

    def _figure(self, name: str, kind: Any, measure: Callable[[Any], Any]) -> Any:
        """Return the figure called `name`, of type `kind`; `measure` receives the module measuring.py."""
        adapter = TypeAdapter(kind)
        with suppress(KeyError, ValidationError):
            return adapter.validate_python(self._figures[name])
        from emu_models.cost import measuring  # imports torch, diffusers and transformers, which takes seconds

        figure = measure(measuring)
        self._figures[name] = adapter.dump_python(figure, mode="json")
        if self._file:
            with suppress(OSError):
                write_json(self._file, self._figures)
        return figure
