"""Several processes that train as one: what each takes of a batch, how weights lie over them, what they agree on.

Whatever starts the processes (torchrun, `accelerate launch`, Ray) says so in the environment as torchrun does: RANK,
WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. Alone, no group is made and nothing here costs time.

Every strategy is torch's fully_shard (FSDP2) over a mesh of N processes, (copies, shards of a copy): `ddp` (N, 1),
`fsdp` (1, N), `hsdp` (machines, processes a machine). So there is one way to average gradients and one to gather
weights. Only the process that leads writes files; the others read them, so all must see the project's folder.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from emu_models.device import choose_device

Strategy = Literal["ddp", "fsdp", "hsdp"]
PATIENCE = timedelta(hours=2)  # how long one waits for another that encodes or saves; chosen here
UNIT_SHARE = 0.01  # of the weights: a child module of at least that is gathered by itself; chosen here


@dataclass(frozen=True)
class World:
    """This process among `size`; alone by default."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, num: int) -> tuple[np.ndarray, Tensor]:
        """The positions of a batch of `num` that are ours, int64 (n,), and their weights, float (n,).

        n is the same everywhere, since all must take part in every exchange: where `num` does not divide by the number
        of processes, the last ones repeat the last position with weight 0.
        """
        n = -(-num // self.size)
        positions = np.arange(self.rank * n, (self.rank + 1) * n)
        return positions.clip(max=num - 1), torch.from_numpy(positions < num).float()

    def spread(self, network: nn.Module) -> None:
        """Lays the weights over the processes, in place. To be done before an optimiser or a copy takes hold of them.

        A large child (or item of a child list) is a unit that is gathered when its turn comes; the rest is the root's.
        """
        if self.mesh is None:
            return
        options: Any = {"mesh": self.mesh, "reshard_after_forward": self.mesh.size(1) > 1}
        total = sum(p.numel() for p in network.parameters())
        children = [item for c in network.children() for item in (c if isinstance(c, nn.ModuleList) else [c])]
        for child in children:
            if sum(p.numel() for p in child.parameters()) >= UNIT_SHARE * total:
                fully_shard(child, **options)
        fully_shard(network, **options)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the processes, which must bring the same names."""
        if self.size == 1:
            return dict(values)
        names = sorted(values)
        tensor = torch.tensor([values[name] for name in names], dtype=torch.float64)
        dist.all_reduce(tensor)
        return dict(zip(names, (tensor / self.size).tolist(), strict=True))

    def wait(self) -> None:
        """Returns when all have come here."""
        self.mean({"here": 1.0})


ALONE = World()


@contextmanager
def join_world(strategy: Strategy = "ddp") -> Iterator[World]:
    """The world that the environment describes; once a process. ValueError where the strategy does not fit it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    on_cuda = choose_device().type == "cuda"
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), size, make_mesh(strategy, size))
    finally:
        dist.destroy_process_group()


def make_mesh(strategy: Strategy, size: int) -> DeviceMesh:
    """`size` processes as copies of the weights by shards of a copy."""
    num_shards = {"ddp": 1, "fsdp": size, "hsdp": int(os.environ.get("LOCAL_WORLD_SIZE", size))}[strategy]
    if size % num_shards:
        raise ValueError(f"hsdp: {size} processes are not whole machines of {num_shards}; start as many on each")
    shape, names = (size // num_shards, num_shards), ("copies", "shards")
    return init_device_mesh(choose_device().type, shape, mesh_dim_names=names)


def exchange_gradients(network: nn.Module, now: bool) -> None:
    """Whether the next backward pass averages gradients over the processes or only adds them up (accumulation)."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)


def put_back(network: nn.Module) -> None:
    """Lets go of what forward passes without a backward one have gathered: weights lie as they were spread."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_as(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor laid out as `target` is; each process takes its part of its own copy."""
    if not isinstance(target, DTensor):
        return tensor
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)


def gather_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, whole and on the CPU; all processes must ask for it."""
    return {name: whole(value.detach()).cpu().contiguous() for name, value in module.state_dict().items()}
