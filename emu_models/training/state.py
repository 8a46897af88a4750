"""Training state on disk: one folder, replaced atomically, readable without unpickling.

state/
  meta.json                   step, early-stopping state, fingerprint of the configuration
  NAME.safetensors            weights of each module (including the averaged ones)
  NAME.optimizer.safetensors  optimiser state, PARAMETER/exp_avg and so on

Tensors are stored whole, however they were distributed: a training can continue with another number of processes, or
another strategy.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emu_data.files import atomic_dir
from emu_models.training.distributed import World, gather_weights, laid_out_as, whole


def save_state(
    folder: Path,
    meta: dict[str, Any],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    world: World,
) -> None:
    """Write the state beside `folder` and put it in its place; an interrupted write leaves the old state.

    meta: JSON values, including `fingerprint`. optimizers: named like the module that each trains. All processes must
    call this; rank 0 writes.
    """
    files = {f"{name}.safetensors": gather_weights(module) for name, module in modules.items()}
    for name, optimizer in optimizers.items():
        files[f"{name}.optimizer.safetensors"] = _gather_optimizer(modules[name], optimizer)
    if world.leads:
        with atomic_dir(folder) as partial:
            for name, tensors in files.items():
                save_file(tensors, partial / name)
            (partial / "meta.json").write_text(json.dumps(meta, indent=2))
    world.wait()


def load_state(
    folder: Path,
    fingerprint: str,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, Any] | None:
    """Restore modules and optimisers in place and return the meta; None if there is no state.

    Raises ValueError if it is the state of another configuration or of other data (another fingerprint); it is then
    neither used nor overwritten.
    """
    meta_path = folder / "meta.json"
    if not meta_path.is_file():
        return None
    meta = json.loads(meta_path.read_text())
    if meta["fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder} is the state of another training; move it away to start this one from the beginning"
        )
    for name, module in modules.items():
        saved, now = load_file(folder / f"{name}.safetensors"), module.state_dict()
        module.load_state_dict({key: laid_out_as(value, now[key]) for key, value in saved.items()})
    for name, optimizer in optimizers.items():
        _load_optimizer(folder / f"{name}.optimizer.safetensors", modules[name], optimizer)
    return meta


def _gather_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{kind}": whole(value).cpu().contiguous()
        for name, parameter in module.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore an optimiser, except for learning rates and other settings: those come from the configuration and the
    step."""
    parameters = dict(module.named_parameters())
    places = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        name, kind = key.rsplit("/", 1)
        parameter = parameters[name]
        value = laid_out_as(value, parameter) if value.shape == parameter.shape else value  # else Adam's `step`
        state.setdefault(places[id(parameter)], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
