"""How networks of signals run: where, in which batches, in what precision, and what that costs.

On a GPU they run in bfloat16 and in batches of a fixed shape, filled up with zeros, so that a value depends neither on
a picture's neighbours nor on their number. On a CPU a batch gains nothing with one thread, and what fills it is lost.
What concerns a GPU was not run on one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emu_data.costs import in_network

GPU_BATCH = 16  # inputs of a pass; chosen here: 2.6 TFLOP of ViT-L/14, several milliseconds, while a start takes micros


def find_device() -> str:
    """Return "cuda" if torch sees a GPU, otherwise "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def name_device() -> str:
    """Return the name of the device, for people; "cpu" without a GPU. Does not import torch if nothing else has."""
    import sys

    if "torch" not in sys.modules or find_device() == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def place(network: Any, device: str) -> Any:
    """Return a torch network in eval mode on the device; in bfloat16 on a GPU."""
    import torch

    network = network.eval().to(device)
    return network if device == "cpu" else network.to(torch.bfloat16)


def run_batches(
    forward: Callable[[np.ndarray], Any], inputs: Sequence[np.ndarray], size: int, device: str
) -> list[np.ndarray]:
    """Return a row for each input: `forward` of batches (size, ...) of inputs of one shape and type, filled up with
    zeros; `forward` returns a row per input, in the memory of the CPU.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(inputs):
        by_shape.setdefault(one.shape, []).append(i)
    found: dict[int, np.ndarray] = {}
    for shape, indices in by_shape.items():
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            batch = np.zeros((size, *shape), inputs[part[0]].dtype)
            for place_in_batch, i in enumerate(part):
                batch[place_in_batch] = inputs[i]
            with in_network(device):
                rows = forward(batch)
            found |= dict(zip(part, rows, strict=False))
    return [found[i] for i in range(len(inputs))]
