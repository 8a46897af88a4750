"""What measuring pictures costs, counted in one way: by the pilot of a run, by `emu plan filters`, and by
benchmarks/estimate.py.

The work on a picture has pieces: reading it, decoding it, the shared embedding, and each signal. A piece costs seconds
of a core and, where it has a network, seconds of that network on its device. They are counted apart: on a GPU the
second are the GPU's, while the first are what its machine's cores have to do besides. CPU time and not the clock's is
counted on cores, so that other programs on the machine change nothing.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from emu_data.files import write_json

READING = "reading"  # the piece beside decoding, embedding and signals: from the tar to the child, and writing values


class Spent(NamedTuple):
    """Seconds: of cores outside networks, and in networks (of cores on a CPU, of the clock on a GPU)."""

    core: float = 0.0
    network: float = 0.0

    def plus(self, other: "Spent", times: float = 1.0) -> "Spent":
        """Return the sum of this and `times` the other."""
        return Spent(self.core + times * other.core, self.network + times * other.network)


_in_networks = {"process": 0.0, "network": 0.0}  # seconds so far, in this process


def spent_so_far() -> Spent:
    """Return what this process has spent since it began; the difference of two is what was spent between them."""
    return Spent(time.process_time() - _in_networks["process"], _in_networks["network"])


def spent_since(before: Spent) -> Spent:
    """Return what this process has spent since `before`, a spent_so_far()."""
    return spent_so_far().plus(before, -1.0)


@contextmanager
def in_network(device: str) -> Iterator[None]:
    """Count the block as work of a network on `device` ("cpu" or "cuda"). It must end with its results in the memory of
    the CPU, since a GPU works on after a call has returned.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    process, began = time.process_time(), clock()
    try:
        yield
    finally:
        _in_networks["process"] += time.process_time() - process
        _in_networks["network"] += clock() - began


@dataclass(frozen=True)
class Cost:
    """What a piece costs per picture that is asked about, in milliseconds (as in Spent), as a mean over `num_pictures`.

    device: where the networks ran, "cpu" or the GPU's name.
    """

    core: float
    network: float
    num_pictures: int
    device: str = "cpu"

    @property
    def total(self) -> float:
        """Milliseconds of a worker, which waits while its network runs."""
        return self.core + self.network


def mean_cost(spent: Sequence[Spent], device: str) -> Cost:
    """Return the cost per picture of what was spent on each of some pictures, at least one."""
    core, network = (1000 * sum(each) / len(spent) for each in zip(*spent, strict=True))
    return Cost(core, network, len(spent), device)


def note_costs(path: Path, found: Mapping[str, Cost]) -> None:
    """Add costs to the file `path`, by name. A cost of fewer pictures on the same device replaces none."""
    noted = read_costs(path)
    for name, cost in found.items():
        old = noted.get(name)
        if old is None or old.device != cost.device or old.num_pictures <= cost.num_pictures:
            noted[name] = cost
    write_json(path, {name: asdict(cost) for name, cost in noted.items()})


def read_costs(path: Path) -> dict[str, Cost]:
    """Return the costs that `note_costs` wrote, by name; none if there is no file."""
    if not path.is_file():
        return {}
    return {name: Cost(**cost) for name, cost in json.loads(path.read_text(encoding="utf-8")).items()}


@dataclass(frozen=True)
class Machines:
    """Where pictures are measured.

    num_workers: processes that measure, one core each. dollars_per_hour: of all of it. time_lost: share of the time
    that is spent on starts, retries and waiting, beside the time of the work.
    """

    num_workers: int
    num_gpus: int
    dollars_per_hour: float
    time_lost: float


@dataclass(frozen=True)
class PlannedPiece:
    """A piece of the work on all pictures. share: of the pictures, 0..1, that it is asked about."""

    name: str
    share: float
    cost: Cost
    core_hours: float
    network_hours: float


@dataclass(frozen=True)
class FilterPlan:
    """What measuring takes. hours, dollars: with the time lost. bound: what sets the pace, in words."""

    pieces: tuple[PlannedPiece, ...]
    core_hours: float
    network_hours: float
    hours: float
    dollars: float
    bound: str


def plan_filters(pieces: Iterable[tuple[str, float, Cost]], num_pictures: float, machines: Machines) -> FilterPlan:
    """Return what measuring `num_pictures` takes. pieces: (name, share of the pictures that it is asked about, cost).

    A worker's core waits while its network runs, on a GPU too, so that the pace is that of the workers, or of the GPUs
    if they are the slower ones. Raises ValueError if there are GPUs but networks were measured on a CPU.
    """
    planned = []
    for name, share, cost in pieces:
        if machines.num_gpus and cost.network and cost.device == "cpu":
            raise ValueError(
                f"the networks of {name} were measured on a CPU, which says nothing about GPUs: measure the pilot on a "
                "machine that has such a GPU (emu plan filters --measure), or plan without GPUs"
            )
        hours = share * num_pictures / 3.6e6  # per millisecond
        planned.append(PlannedPiece(name, share, cost, hours * cost.core, hours * cost.network))
    core_hours, network_hours = sum(p.core_hours for p in planned), sum(p.network_hours for p in planned)
    paces = {"workers": (core_hours + network_hours) / machines.num_workers}
    if machines.num_gpus:
        paces["GPUs"] = network_hours / machines.num_gpus
    bound = max(paces, key=lambda name: paces[name])
    hours = paces[bound] * (1 + machines.time_lost)
    return FilterPlan(tuple(planned), core_hours, network_hours, hours, hours * machines.dollars_per_hour, bound)
