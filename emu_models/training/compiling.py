"""torch.compile for the blocks that a network repeats ("regional compilation"), where the machine has a compiler."""

import logging
from typing import Any

import torch
from torch import nn
from torch.compiler import config

BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")  # diffusers' classes that a U-Net repeats
logger = logging.getLogger(__name__)


def compile_blocks(network: nn.Module, device: torch.device) -> bool:
    """Compile the repeated blocks of `network` in place, when they are first run, and return True; names and values of
    its weights stay. If that is not possible, say why in the log and return False.

    Blocks rather than the whole network, since equal blocks share a compiled kernel: diffusers'
    ModelMixin.compile_repeated_blocks, which knows only the transformer blocks of a U-Net.
    """
    named: Any = getattr(network, "_repeated_blocks", None)  # by diffusers, for its transformers
    kinds = (*BLOCKS, *(named or ()))
    blocks = [module for module in network.modules() if type(module).__name__ in kinds]
    fault = find_fault(device) if blocks else f"it has no {' and no '.join(kinds)}"
    if fault:
        logger.warning("compile: the network cannot be compiled here and runs as it is: %s", fault)
        return False
    for block in blocks:
        block.compile()
    return True


def find_fault(device: torch.device) -> str:
    """Return why torch.compile does not work on `device`, in one line; "" if it does (a tiny function is compiled)."""
    try:
        # without caches, which may hold what a compiler made that is gone
        with config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # anything: each compiler has errors of its own
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""
