"""Where tensors live and how precise the arithmetic is."""

import contextlib

import torch


def choose_device() -> torch.device:
    """CUDA where there is one, else the CPU. (CUDA is not run on the machines that test this.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision_pays(device: torch.device) -> bool:
    """bf16 autocast: on CUDA, and on CPUs with AMX; without AMX fp32 was faster (docs/log.md, 2026-11-23)."""
    return device.type == "cuda" or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bf16 autocast where it pays; weights stay in fp32."""
    if half_precision_pays(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
