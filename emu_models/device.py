"""The device on which tensors are, and the precision of arithmetic."""

import contextlib
import resource
import sys

import torch


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


def peak_memory(device: torch.device) -> int:
    """Return the most memory, in bytes, that this process has held so far: tensors on CUDA, otherwise all that is
    resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): KiB, on macOS bytes
