"""Several processes that train as one: their shares of a batch, how weights are distributed, and what they agree on.

Whatever starts the processes (torchrun, `accelerate launch`, Ray) sets torchrun's variables: RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. For a single process no group is made, and nothing here takes
time.

Every strategy is torch's fully_shard (FSDP2) on a mesh of N processes, (copies, shards of a copy): `ddp` (N, 1),
`fsdp` (1, N), `hsdp` (machines, processes per machine). So there is one way to average gradients and one to gather
weights. Each process writes its part of a state, rank 0 everything else; so all must see the project's folder.

Nothing waits for ever: a process that is killed breaks the exchanges of the others at once, and one that hangs does so
after PATIENCE, or after LONG_PATIENCE where the others work by themselves for long (World.wait). Either way they end
with one sentence (ConnectionError), and whatever started them can start them again.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
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
from torch.distributed.tensor import DTensor

from emu_models.device import choose_device

Strategy = Literal["ddp", "fsdp", "hsdp"]
PATIENCE = timedelta(minutes=10)  # for the others at a start, and in each exchange of a step; chosen here
LONG_PATIENCE = timedelta(hours=2)  # for others that encode, save or export; chosen here
UNIT_SHARE = 0.01  # of the weights: a child module with at least that share is gathered by itself; chosen here


@dataclass(frozen=True)
class World:
    """This process, number `rank` of `size`; by default the only one. mesh: see `make_mesh`. patient: a group for long
    waits."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    patient: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process reports, and writes what all have in common."""
        return self.rank == 0

    def share(self, num: int) -> tuple[np.ndarray, Tensor]:
        """Return this process's positions in a batch of `num`, int64 (n,), and their weights, float (n,).

        n is the same for all processes, since all must take part in every exchange: if `num` is not a multiple of their
        number, the last ones repeat the last position with weight 0.
        """
        n = -(-num // self.size)
        positions = np.arange(self.rank * n, (self.rank + 1) * n)
        return positions.clip(max=num - 1), torch.from_numpy(positions < num).float()

    def portion(self, num: int) -> tuple[np.ndarray, float]:
        """Return this process's positions in a batch of `num`, int64 (n,) with n >= 1, for networks that are not
        spread, and a factor for the mean over them: the mean over the processes of factor times mean is that over the
        batch.

        n differs by at most 1 between processes; one that would have no position takes the first, with factor 0.
        """
        positions = np.array_split(np.arange(num), self.size)[self.rank]
        return (positions, len(positions) * self.size / num) if len(positions) else (np.zeros(1, int), 0.0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, which have the same shapes in all processes, by their means over the processes."""
        if self.size == 1 or not tensors:
            return
        together = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        dist.all_reduce(together)
        for tensor, mean in zip(tensors, (together / self.size).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def equalise(self, module: nn.Module) -> None:
        """Give all processes the weights of the first, in place; for networks that are not spread."""
        for tensor in module.state_dict().values() if self.size > 1 else ():
            dist.broadcast(tensor, 0)

    def spread(self, network: nn.Module) -> None:
        """Distribute the weights over the processes, in place, before an optimiser or a copy uses them.

        A large child (or item of a child list) is a unit that is gathered when it runs; the rest belongs to the root.
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
        """Return the mean of each value over the processes, which must have the same names."""
        if self.size == 1:
            return dict(values)
        names = sorted(values)
        tensor = torch.tensor([values[name] for name in names], dtype=torch.float64)
        dist.all_reduce(tensor)
        means = dict(zip(names, (tensor / self.size).tolist(), strict=True))
        return {name: means[name] for name in values}  # in the given order, so that the log's bytes are those of one

    def wait(self) -> None:
        """Return once all processes have called this, however long they encode or save before: up to LONG_PATIENCE."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1), group=self.patient)


ALONE = World()


@contextmanager
def join_world(strategy: Strategy = "ddp") -> Iterator[World]:
    """Yield the world that the environment describes; at most once per process.

    Raises ValueError if the strategy does not fit the number of processes, and ConnectionError if the processes do not
    meet within PATIENCE or if contact with one is lost later.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    on_cuda = choose_device().type == "cuda"
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)
    except RuntimeError as error:
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ConnectionError(
            f"process {os.environ.get('RANK')} of {size} did not meet the others at {place} within "
            f"{PATIENCE.total_seconds() / 60:g} minutes: see that as many were started and that they reach that address"
        ) from error
    is_lost = False
    try:
        patient = dist.new_group(backend="gloo", timeout=LONG_PATIENCE)
        assert isinstance(patient, dist.ProcessGroup)
        yield World(dist.get_rank(), size, make_mesh(strategy, size), patient)
    except RuntimeError as error:
        is_lost = _is_of_an_exchange(error)
        if not is_lost:
            raise
        raise ConnectionError(
            f"process {os.environ['RANK']} of {size} lost contact with another one, which was ended, failed or hangs"
        ) from error
    finally:
        if not is_lost:  # it would wait for processes that are gone
            dist.destroy_process_group()


def _is_of_an_exchange(error: RuntimeError) -> bool:
    """Whether an exchange between processes raised this: gloo has no exception of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def make_mesh(strategy: Strategy, size: int) -> DeviceMesh:
    """Return the mesh of `size` processes: copies of the weights x shards of a copy. Raises ValueError if hsdp's
    machines have different numbers of processes."""
    num_shards = {"ddp": 1, "fsdp": size, "hsdp": int(os.environ.get("LOCAL_WORLD_SIZE", size))}[strategy]
    if size % num_shards:
        raise ValueError(
            f"hsdp: {size} processes cannot be divided into machines with {num_shards} each; start equally many on each"
        )
    shape, names = (size // num_shards, num_shards), ("copies", "shards")
    return init_device_mesh(choose_device().type, shape, mesh_dim_names=names)


def exchange_gradients(network: nn.Module, now: bool) -> None:
    """Set whether the next backward pass averages gradients over the processes, or only adds them up (accumulation)."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)


def put_back(network: nn.Module) -> None:
    """Free the weights that forward passes without a backward pass have gathered: each process keeps its part again."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be distributed; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(module: nn.Module, world: World) -> dict[str, Tensor]:
    """Return the whole state of a module, on the CPU, in the process that leads, and nothing in the others; all must
    call this. They gather one tensor at a time."""
    gathered = {}
    for name, value in module.state_dict().items():
        tensor = whole(value.detach())
        if world.leads:
            gathered[name] = tensor.cpu().contiguous()
    return gathered
