"""Runs shards on a Ray cluster that is already running, by actors that each have a guard.

Every node must have the same Python, Ray and packages as this machine, and see the shards' folders under the same
paths. The code of emu_data is sent to the nodes. Only a function, a factory, shard names and counts pass through Ray.
Start the nodes with RAY_worker_niceness=0, or all work runs at niceness 15.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from emu_data.engine.guard import START_TIMEOUT, Guard

NUM_TRIES = 3  # for a shard whose workers die, and for starting a worker; chosen here
CONNECT_TIMEOUT = 10.0  # seconds; chosen here
# Ray's workers have the environment of their node, not of the driver; these variables keep them off model hubs.
CARRIED_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class ShardWorker:
    """The actor: runs shards one after another with its own guard."""

    def __init__(self, function: Callable[[Any, Guard[Any]], Any], make_guard: Callable[[], Guard[Any]]):
        self.function = function
        self.guard = make_guard()

    def ready(self) -> None:
        """Return once the actor has its place on the cluster."""

    def run(self, shard: Any) -> Any:
        """Return `function(shard, guard)`; raises whatever that raises."""
        return self.function(shard, self.guard)


def run_on_ray(
    function: Callable[[Any, Guard[Any]], Any],
    shards: Sequence[Any],
    make_guard: Callable[[], Guard[Any]],
    address: str,
    num_workers: int | None,
    num_cpus: int,
    num_gpus: float,
    report: Callable[[], object],
) -> list[Any]:
    """See run_shards. Raises RuntimeError, which names the shard, if a shard's workers died NUM_TRIES times."""
    import ray

    _connect(address)
    try:
        num_workers = num_workers or _num_places(ray.cluster_resources(), num_cpus, num_gpus)
        # No restarts by Ray: if nodes were lost, a restarted actor waits for a place and keeps its shard, although a
        # living actor could take it.
        actors = ray.remote(ShardWorker).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        start = partial(actors.remote, ray.put(function), ray.put(make_guard))
        return _dispatch(start, shards, min(num_workers, len(shards)), report)
    finally:
        ray.shutdown()


def _dispatch(
    start: Callable[[], Any], shards: Sequence[Any], num_workers: int, report: Callable[[], object]
) -> list[Any]:
    """Send one shard at a time to each worker, and only to workers that have started."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    results: list[Any] = [None] * len(shards)
    num_deaths: dict[int, int] = {}
    waiting = deque(range(len(shards)))
    starting: dict[Any, Any] = {}  # reference of ready() -> worker
    running: dict[Any, tuple[Any, int]] = {}  # reference of run() -> worker, index of the shard
    num_failed_starts, last_event = 0, time.monotonic()

    def start_worker() -> None:
        worker = start()
        starting[worker.ready.remote()] = worker

    def send(worker: Any) -> None:
        if waiting:
            index = waiting.popleft()
            running[worker.run.remote(shards[index])] = worker, index
        else:
            ray.kill(worker)

    try:
        for _ in range(num_workers):
            start_worker()
        while waiting or running:
            done, _ = ray.wait([*running, *starting], num_returns=1, timeout=START_TIMEOUT)
            if not done and not running and time.monotonic() - last_event > START_TIMEOUT:
                raise RuntimeError(
                    f"no worker got a place on the cluster within {START_TIMEOUT:.0f} s: {_describe()}; free some "
                    "resources, or ask for fewer workers, threads or GPUs"
                )
            for reference in done:
                last_event = time.monotonic()
                if reference in starting:
                    worker = starting.pop(reference)
                    try:
                        ray.get(reference)
                    except RayError as error:
                        num_failed_starts += 1
                        if num_failed_starts >= NUM_TRIES:
                            raise RuntimeError(
                                f"{NUM_TRIES} workers could not be started; the last error: {error}"
                            ) from error
                        start_worker()
                    else:
                        send(worker)
                    continue
                worker, index = running.pop(reference)
                try:
                    results[index] = ray.get(reference)
                except RayTaskError as error:  # an exception in `function`
                    raise (error.cause or error) from error
                except RayError as error:  # the worker or its node is gone, or cannot be reached
                    num_deaths[index] = num_deaths.get(index, 0) + 1
                    if num_deaths[index] >= NUM_TRIES:
                        raise RuntimeError(
                            f"shard {shards[index]!r}: {NUM_TRIES} workers died while they ran it; the last error: "
                            f"{error}"
                        ) from error
                    waiting.appendleft(index)
                    ray.kill(worker)  # if it is only unreachable, it might still write
                    start_worker()
                else:
                    report()
                    send(worker)
    finally:
        for worker in [*starting.values(), *(worker for worker, _ in running.values())]:
            ray.kill(worker)  # whatever it is doing; its guard's child dies with it
    return results


def _connect(address: str) -> None:
    import ray

    import emu_data

    advice = (
        "start one with `ray start --head`, or run with engine local; "
        "if the cluster requires a token, set RAY_AUTH_MODE=token here too"
    )
    target = address.removeprefix("ray://")
    if target != "auto":
        host, _, port = target.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"Ray address {address!r} is none of auto, HOST:PORT and ray://HOST:PORT")
        try:  # Ray itself would try for two minutes and then end the process
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()
        except OSError as error:
            raise ValueError(f"no Ray cluster answers at {address} ({error}): {advice}") from error
    try:
        ray.init(
            address=address,
            logging_level=logging.WARNING,
            runtime_env={
                "py_modules": [str(Path(emu_data.__file__).parent)],
                "excludes": ["**/__pycache__"],
                "env_vars": {name: os.environ[name] for name in CARRIED_VARIABLES if name in os.environ},
            },
        )
    except (ConnectionError, SystemExit) as error:
        raise ValueError(f"no Ray cluster at {address} ({error}): {advice}") from error


def _num_places(resources: Mapping[str, float], num_cpus: int, num_gpus: float) -> int:
    """Return how many workers fit on the cluster, at least one."""
    places = resources.get("CPU", 0) // num_cpus
    if num_gpus:
        places = min(places, resources.get("GPU", 0) // num_gpus)
    return max(1, int(places))


def _describe() -> str:
    import ray

    return f"it has {ray.cluster_resources()}, of which are free {ray.available_resources()}"
