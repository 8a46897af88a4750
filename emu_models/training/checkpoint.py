"""Training state on disk: one folder, replaced atomically, readable without unpickling.

state/
  meta.json            step, early-stopping state, fingerprint of the configuration
  NAME.safetensors     weights of each module (the averaged ones too)
  NAME.optimizer.pt    optimiser state; loaded with weights_only=True
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from emu_data.files import atomic_dir


def save_state(
    folder: Path,
    meta: dict[str, Any],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Writes the state beside `folder` and puts it in its place; an interrupted write leaves the old one."""
    with atomic_dir(folder) as partial:
        for name, module in modules.items():
            weights = {k: v.detach().contiguous().cpu() for k, v in module.state_dict().items()}
            save_file(weights, partial / f"{name}.safetensors")
        for name, optimizer in optimizers.items():
            torch.save(optimizer.state_dict(), partial / f"{name}.optimizer.pt")
        (partial / "meta.json").write_text(json.dumps(meta, indent=2))


def load_state(
    folder: Path,
    fingerprint: str,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, Any] | None:
    """Restores modules and optimisers in place and returns the meta; None where there is no state to go on from.

    A state of another configuration or other data (another fingerprint) is not gone on from: it is another run's.
    """
    meta_path = folder / "meta.json"
    if not meta_path.is_file():
        return None
    meta = json.loads(meta_path.read_text())
    if meta["fingerprint"] != fingerprint:
        return None
    for name, module in modules.items():
        module.load_state_dict(load_file(folder / f"{name}.safetensors"))
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(torch.load(folder / f"{name}.optimizer.pt", weights_only=True))
    return meta
