"""Runs one function over many shards, on this machine or on a Ray cluster, with the same bytes as a result.

A worker runs `function(shard, guard)`: it reads and writes files by path, and passes risky work to its guard's child
process, which may die (guard.py). Workers are local threads (local.py) or Ray actors (cluster.py). Of the designs
tried, only this one survived every poisoned item and wrote the same bytes twice. A child computes with a fixed number
of threads, and a shard is always cut into the same batches, so that no value depends on the engine or on the number of
workers.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from tqdm import tqdm

from emu_data.engine.cluster import run_on_ray
from emu_data.engine.guard import MAX_MEMORY, Factory, Failure, Guard, check_importable
from emu_data.engine.local import run_here

__all__ = ["Engine", "Failure", "Guard", "run_shards"]

Shard = TypeVar("Shard")


@dataclass(frozen=True)
class Engine:
    """Where shards are run, by how many workers, and what a worker's child may use.

    Args:
        num_workers: None for one per core (local), or as many as fit on the cluster (ray).
        threads_per_worker: compute threads of a child (BLAS, OpenMP, torch). Another number may change the last bits
            of an embedding, so it does not depend on the number of workers.
        max_memory: bytes that a child may hold; an item that needs more gets a Failure. The machine must have this
            much for each worker.
        base_timeout, item_timeout: a batch of n items may take base + n * item seconds.
        ray_address: of a running cluster: "auto", "HOST:PORT" or "ray://HOST:PORT".
        num_gpus_per_actor: GPUs that Ray reserves for each actor; with 0.5, two actors share one.
    """

    name: Literal["local", "ray"] = "local"
    num_workers: int | None = None
    threads_per_worker: int = 1
    max_memory: int = MAX_MEMORY
    base_timeout: float = 60.0
    item_timeout: float = 5.0
    ray_address: str = "auto"
    num_gpus_per_actor: float = 0.0


def run_shards(
    function: Callable[[Shard, Guard[Any]], Any],
    shards: Sequence[Shard],
    factory: Factory,
    engine: Engine | None = None,
    progress: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """Return `function(shard, guard)` for each shard, in order. The guard's child calls `factory` once.

    Shards and results are names and counts; pictures stay in files, which all nodes of a cluster must see under the
    same path. An exception in `function`, or KeyboardInterrupt, ends the run and is raised; finished shards stay
    finished. `progress` is the title of the bar on stderr; None shows no bar. `on_progress` is called after each shard,
    in any thread, with the numbers of finished shards and of all. Raises ValueError if no cluster answers, or if
    `function` or `factory` cannot be imported by name.
    """
    engine = engine or Engine()
    for called in (function, factory):
        check_importable(called)
    if not shards:
        return []
    make_guard = partial(
        Guard, factory, engine.base_timeout, engine.item_timeout, engine.max_memory, engine.threads_per_worker
    )
    with tqdm(total=len(shards), desc=progress, unit="shard", disable=progress is None, file=sys.stderr) as bar:
        done = itertools.count(1)

        def report() -> None:
            bar.update()
            if on_progress is not None:
                on_progress(next(done), len(shards))

        if engine.name == "local":
            return run_here(function, shards, make_guard, engine.num_workers, report)
        return run_on_ray(
            function,
            shards,
            make_guard,
            engine.ray_address,
            engine.num_workers,
            engine.threads_per_worker,
            engine.num_gpus_per_actor,
            report,
        )
