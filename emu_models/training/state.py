"""States of a training on disk: folders that appear whole; every process writes its own part, while training goes on.

STATES/000000600/                     the state after step 600
    meta.json                         step, early stopping, fingerprint of the configuration, number of files
    00003-of-00008.safetensors        what process 3 holds of weights, averaged weights and optimiser state

Tensors are named MODULE/NAME and MODULE.optimizer/NAME/exp_avg. A file says in its header where each of its tensors
begins in the whole one, as torch's HuggingFaceStorageWriter does, so torch's reader can read a state, and a process
reads only its own slices: a training can continue with another number of processes, or another strategy. Why torch's
writer is not used: docs/decisions/0021.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from emu_data.files import TEMPORARY_MARK
from emu_models.training.distributed import World

NAME = re.compile(r"\d{9}")  # of a state's folder: the number of steps
OFFSETS = "DCP_SHARDING_INFO"  # name -> {"saved_offsets": [...]}, in the header of a file (torch's name)


class States:
    """The states of one training; a context manager that ends the thread which writes.

    A save takes two acts: `begin` copies this process's part to host memory, and a thread writes it; once all processes
    have written (`is_written`), `publish` renames the folder. All processes must call both at the same steps.

    folder: all processes see it. modules, optimizers: what is saved; an optimiser is named like the module that it
    trains. keep: how many of the newest states are kept; keep_every: those of multiples of so many steps are kept for
    good, 0 for none. Raises ValueError if `folder` lies beside a state of an earlier version.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        world: World,
        keep: int,
        keep_every: int,
    ) -> None:
        self._folder, self._fingerprint, self._world = folder, fingerprint, world
        self._modules, self._optimizers = modules, optimizers
        self._keep, self._keep_every = keep, keep_every
        self._thread = ThreadPoolExecutor(1, "state")
        self._pending: tuple[int, Future[None]] | None = None
        self.newest = 0  # the step of the newest whole state
        if (old := folder.with_name("state")).is_dir():
            raise ValueError(
                f"{old} was saved by an earlier version and cannot be continued: move it away to start this training "
                "from the beginning, or finish it with that version"
            )
        if world.leads:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f".*{TEMPORARY_MARK}*"):  # by a save that was killed
                shutil.rmtree(left)
        world.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def load(self) -> dict[str, Any] | None:
        """Restore modules and optimisers in place from the newest state, and return the meta; None if there is none.

        Each process reads its own slices. Learning rates and other settings of optimisers are not restored: they come
        from the configuration and the step. Raises ValueError if the state is of another configuration or of other data
        (another fingerprint; it is neither used nor overwritten), if it lacks a file, or if a process does not see it.
        """
        seen = self._whole()[-1:] if self._world.leads else []
        step = round(self._world.mean({"step": float(sum(seen))})["step"] * self._world.size)  # as rank 0 sees it
        if not step:
            return None
        folder = self._place(step)
        if not (folder / "meta.json").is_file():
            raise ValueError(f"a process does not see {folder}; all processes must share that folder")
        meta = json.loads((folder / "meta.json").read_text())
        if meta["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"{folder} is the state of another training; move it away to start this one from the beginning"
            )
        missing = [name for name in _file_names(meta["num_files"]) if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {missing[0]}: bring it back, or move the folder away to continue from the state before"
            )
        reader = HuggingFaceStorageReader(str(folder))
        found = reader.read_metadata().state_dict_metadata
        slots = {name: _slots_for(self._modules[name], name, found) for name in self._optimizers}
        targets = self._weights()
        for name, of_one in slots.items():
            targets |= {f"{name}.optimizer/{key}": tensor for key, tensor in of_one.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # no exchange is needed
            dcp.load(targets, storage_reader=reader, no_dist=True)
        for name, optimizer in self._optimizers.items():
            _give_slots(self._modules[name], optimizer, slots[name])
        self.newest = step
        return meta

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun and is not yet published."""
        return self._pending is not None

    @property
    def is_written(self) -> bool:
        """Whether this process has written its part of the save in flight; raises what the writing raised."""
        if self._pending is None or not self._pending[1].done():
            return False
        self._pending[1].result()
        return True

    def begin(self, step: int, meta: Mapping[str, Any]) -> None:
        """Copy this process's part to host memory and let the thread write it. meta: JSON values. No other save may be
        in flight."""
        assert self._pending is None
        whole_meta = {"fingerprint": self._fingerprint, "step": step, "num_files": self._world.size, **meta}
        parts, offsets = {}, {}
        for name, part, offset in self._own_parts():
            parts[name] = part.detach().to("cpu", copy=True).contiguous()
            offsets[name] = {"saved_offsets": offset}
        self._pending = (step, self._thread.submit(self._write, step, parts, offsets, whole_meta))

    def publish(self) -> None:
        """Make the save in flight a state, by one rename, now that all processes have written; then remove states that
        are no longer kept."""
        assert self._pending is not None
        step, _ = self._pending
        self._pending, self.newest = None, step
        if not self._world.leads:
            return
        os.replace(self._partial(step), self._place(step))
        _flush(self._folder)
        for old in self._whole()[: -self._keep]:
            if not self._keep_every or old % self._keep_every:
                self._remove(self._place(old))

    def save(self, step: int, meta: Mapping[str, Any]) -> None:
        """Return once the state after `step` is on disk."""
        self.finish()
        if self.newest != step:
            self.begin(step, meta)
            self.finish()

    def finish(self) -> None:
        """Wait until all processes have written the save in flight, if there is one, and publish it."""
        if self._pending is None:
            return
        self._pending[1].result()
        self._world.wait()
        self.publish()
        self._world.wait()

    def _place(self, step: int) -> Path:
        return self._folder / f"{step:09d}"

    def _partial(self, step: int) -> Path:
        """Return the folder of a save in flight, which must be the same for all processes."""
        return self._folder / f".{step:09d}{TEMPORARY_MARK}{step:08x}"

    def _whole(self) -> list[int]:
        """Return the steps of the states on disk, in ascending order."""
        return sorted(int(path.name) for path in self._folder.iterdir() if NAME.fullmatch(path.name))

    def _remove(self, place: Path) -> None:
        """Remove a state; a half-removed one must not look like a state."""
        aside = place.with_name(f".{place.name}{TEMPORARY_MARK}00000000-old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(place, aside)
        shutil.rmtree(aside)

    def _write(self, step: int, parts: dict[str, Tensor], offsets: dict[str, Any], meta: dict[str, Any]) -> None:
        partial = self._partial(step)
        partial.mkdir(parents=True, exist_ok=True)
        file = partial / _file_names(self._world.size)[self._world.rank]
        save_file(parts, file, {OFFSETS: json.dumps(offsets)})
        _flush(file)
        if self._world.leads:
            (partial / "meta.json").write_text(json.dumps(meta, indent=2))
            _flush(partial / "meta.json")
        _flush(partial)

    def _weights(self) -> dict[str, Tensor]:
        """Return the tensors of all modules, which share memory with them, by their names in a state."""
        states = {name: module.state_dict() for name, module in self._modules.items()}
        return {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}

    def _own_parts(self) -> Iterator[tuple[str, Tensor, list[int]]]:
        """Yield what this process writes: name, tensor, and where that begins in the whole tensor.

        Copies of the weights share the work: each writes about as many values. What is not sharded is written by the
        first process of a copy.
        """
        tensors = self._weights()
        for name, optimizer in self._optimizers.items():
            for key, parameter in self._modules[name].named_parameters():
                for kind, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{name}.optimizer/{key}/{kind}"] = value
        mesh = self._world.mesh
        copy, shard = (0, 0) if mesh is None else (mesh.get_local_rank(0), mesh.get_local_rank(1))
        written = [0] * (1 if mesh is None else mesh.size(0))  # values, by copy
        for name, tensor in tensors.items():
            writer = written.index(min(written))
            written[writer] += tensor.numel()
            if writer != copy:
                continue
            if isinstance(tensor, DTensor):
                (chunk,) = tensor.__create_chunk_list__()
                if tensor.to_local().numel():
                    yield name, tensor.to_local(), list(chunk.offsets)
            elif shard == 0:
                yield name, tensor, [0] * tensor.ndim


def _file_names(num: int) -> list[str]:
    return [f"{rank:05d}-of-{num:05d}.safetensors" for rank in range(num)]


def _slots_for(module: nn.Module, name: str, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return empty tensors for an optimiser's state, PARAMETER/KIND -> tensor, for what a state holds of it."""
    parameters, slots, start = dict(module.named_parameters()), {}, f"{name}.optimizer/"
    for full, stored in found.items():
        if full.startswith(start):
            assert isinstance(stored, TensorStorageMetadata)
            key = full.removeprefix(start)
            parameter = parameters[key.rsplit("/", 1)[0]].detach()
            is_like_it = stored.size == parameter.shape  # otherwise Adam's `step`
            slots[key] = torch.zeros_like(parameter) if is_like_it else torch.zeros(stored.size)
    return slots


def _give_slots(module: nn.Module, optimizer: torch.optim.Optimizer, slots: Mapping[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    places = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in slots.items():
        name, kind = key.rsplit("/", 1)
        state.setdefault(places[id(parameters[name])], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some network file systems cannot flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
