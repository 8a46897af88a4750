"""The device on which tensors are, and the precision of arithmetic."""

import contextlib
import resource
import sys
from collections.abc import Iterator

import torch
from torch import nn


def choose_device() -> torch.device:
    """Return the CUDA device if there is one, otherwise the CPU. (The machines that test this have no CUDA.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision_pays(device: torch.device) -> bool:
    """Whether bf16 autocast is faster: on CUDA, and on CPUs with AMX; without AMX, fp32 was (docs/log.md,
    2026-11-23)."""
    return device.type == "cuda" or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Return bf16 autocast if it is faster, otherwise nothing; weights stay in fp32."""
    if half_precision_pays(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def autocast_on_gpu(device: torch.device) -> contextlib.AbstractContextManager:
    """Return bf16 autocast on CUDA, otherwise nothing: what is encoded or drawn on a CPU must not depend on whether it
    has AMX."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def lend(device: torch.device, *modules: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Have frozen modules on the device for a while, perhaps in another precision, so that large encoders take the
    GPU's memory only while they encode. Afterwards they have the tensors that they had before."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            if (tensor.device.type, tensor.dtype) != (device.type, wanted):
                tensor.data = tensor.data.to(device, wanted)
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            if tensor.data is not data:
                tensor.data = data


def precision_on(device: torch.device) -> torch.dtype | None:
    """Return the precision of lent text encoders, whose weights may be most of a GPU's memory: bf16 on CUDA, otherwise
    None, their own."""
    return torch.bfloat16 if device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """Return the most memory, in bytes, that this process has held so far: tensors on CUDA, otherwise all that is
    resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): KiB, on macOS bytes
