"""Shards on a Ray cluster that is running already: core actors, each with a guard.

Assumed: every node has the same Python, Ray and packages as this machine, and sees the shards' folders under the
same paths. The code of emu_data itself is sent along. What travels through Ray is a function, a factory, shard names
and counts. Start the nodes with RAY_worker_niceness=0, or all work runs at niceness 15.
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

NUM_TRIES = 3  # of a shard whose workers die, and of starting a worker; chosen here
CONNECT_TIMEOUT = 10.0  # seconds
# Ray's workers have the environment of the node, not of the driver; these decide whether a model hub is asked.
CARRIED_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class ShardWorker:
    """The actor: runs shards one after another with a guard of its own."""

    def __init__(self, function: Callable[[Any, Guard[Any]], Any], make_guard: Callable[[], Guard[Any]]):
        self.function = function
        self.guard = make_guard()

    def ready(self) -> None:
        """Return when the actor has found its place on the cluster."""

    def run(self, shard: Any) -> Any:
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
    """See run_shards. Raises RuntimeError naming the shard whose workers died NUM_TRIES times."""
    import ray

    _connect(address)
    try:
        num_workers = num_workers or _num_places(ray.cluster_resources(), num_cpus, num_gpus)
        # No restarts by Ray: a restarted actor keeps its shard while it waits for a place on a smaller cluster, where
        # a living one could take it.
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
    """One shard at a time to each worker; a shard goes to a worker only when that one has started."""
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
                raise RuntimeError(f"no worker found a place on the cluster in {START_TIMEOUT:.0f} s: {_describe()}")
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
                                f"{NUM_TRIES} workers could not be started, the last: {error}"
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
                            f"shard {shards[index]!r}: {NUM_TRIES} workers died of it or with it, the last: {error}"
                        ) from error
                    waiting.appendleft(index)
                    ray.kill(worker)  # one that only cannot be reached might still write
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
        "one that wants a token needs RAY_AUTH_MODE=token here too"
    )
    target = address.removeprefix("ray://")
    if target != "auto":
        host, _, port = target.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"Ray address {address!r} is none of auto, HOST:PORT and ray://HOST:PORT")
        try:  # Ray itself tries for two minutes and then ends the process
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
    """How many workers fit on the cluster, one at least."""
    places = resources.get("CPU", 0) // num_cpus
    if num_gpus:
        places = min(places, resources.get("GPU", 0) // num_gpus)
    return max(1, int(places))


def _describe() -> str:
    import ray

    return f"it has {ray.cluster_resources()}, free are {ray.available_resources()}"
