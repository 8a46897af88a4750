"""On a real Ray of several processes: the same bytes as here, whatever happens to records and workers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from emu_data.cascade import measure_group, read_values
from emu_data.engine import Engine, Guard, run_shards
from emu_data.files import file_sha256
from emu_data.samples import Sample, make_key
from emu_data.shards import write_shard
from emu_data.signals import Columns, LazySample, Measure, Signal
from emu_data.signals.caption import CaptionSignal
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.looks import LooksSignal
from tests.poison import poison
from tests.processes import runs
from tests.shards import encode

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
POISONS = {"raise": "raised", "exit": "crashed", "segfault": "crashed", "hang": "timeout", "hoard": "memory"}
LIMITS: dict[str, Any] = {"base_timeout": 3.0, "item_timeout": 0.0, "max_memory": 2**29}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield HOST:PORT of a Ray with two places, which is stopped at the end by the ids of its own processes."""
    temp = tmp_path_factory.mktemp("r")  # a short path: it holds sockets
    port, client_port = free_port(), free_port()
    program = str(Path(sys.executable).parent / "ray")
    command = [program, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    options = ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={temp}"]
    options += [f"--ray-client-server-port={client_port}", f"--object-store-memory={2**27}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_AUTH_MODE"] = "disabled"  # unset, it depends on whether this user has a token, and only on this machine
    log = open(temp / "log", "w")  # noqa: SIM115
    ray = subprocess.Popen([*command, *options], env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (temp / "log").read_text():
            assert ray.poll() is None and time.monotonic() < deadline, (temp / "log").read_text()
            time.sleep(0.2)
        (started,) = temp.glob("ray_current_cluster")
        yield started.read_text().strip()
    finally:
        family = psutil.Process(ray.pid).children(recursive=True) if ray.poll() is None else []
        ray.kill()  # first, because it would wait for the others in its own way
        ray.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, timeout=2)[1]:
            process.kill()
        log.close()


@dataclass(frozen=True)
class PoisonSignal(Signal):
    """Mean brightness, and what the caption demands; writes the id of its actor to `log`."""

    log: str = ""

    name: ClassVar = "poison"
    columns: ClassVar = {"brightness": "Float64"}

    def settings(self) -> str:
        return ""

    def describe(self) -> str:
        return "brightness"

    def load(self) -> Measure:
        Path(self.log, str(os.getppid())).touch()
        return self._measure

    def _measure(self, batch: Sequence[LazySample]) -> Columns:
        for record in batch:
            poison(record.caption)
        return {"brightness": [float(np.asarray(record.image).mean()) for record in batch]}


def write_corpus(folder: Path, captions: Sequence[str], num_pictures: int) -> list[str]:
    """Write as many shards as captions; the first picture of each has its caption."""
    rng = np.random.default_rng(0)
    for shard, odd in enumerate(captions):
        samples, rows = [], []
        for index in range(num_pictures):
            image = Image.fromarray(rng.integers(0, 255, (40, 40 + index, 3), np.uint8))
            caption = odd if index == 0 else f"picture {index}"
            samples.append(Sample(make_key(shard, index), encode(image), caption, {}))
            rows.append({"key": samples[-1].key, "caption": caption, "status": "success"})
        write_shard(folder, shard, samples, pd.DataFrame(rows))
    return [f"{shard:05d}" for shard in range(len(captions))]


def digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def signals(log: Path) -> tuple[Signal, ...]:
    log.mkdir(exist_ok=True)
    return (GeometrySignal(), CaptionSignal(), LooksSignal(), PoisonSignal(str(log)))


def test_poisoned_shards_give_the_same_bytes_on_any_engine(address: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    names = write_corpus(raw, list(POISONS), num_pictures=3)
    engines = {
        "here": Engine(num_workers=2, **LIMITS),
        "ray": Engine("ray", ray_address=address, **LIMITS),
    }
    made = {}
    for name, engine in engines.items():
        num_written = measure_group(raw, names, signals(tmp_path / "log"), tmp_path / name, engine=engine)
        assert num_written == 5 * len(names)  # of four signals, and of what no parquet lists
        made[name] = digests(tmp_path / name)
    assert made["here"] == made["ray"]
    assert len(made["here"]) == 5 * len(names)
    values = read_values(raw, names, signals(tmp_path / "log"), tmp_path / "ray")
    failed = values[values["error"].notna()].set_index("caption")["error"]
    assert sorted(failed.index) == sorted(POISONS)
    assert all(f": {reason}: " in failed[how] for how, reason in POISONS.items()), failed.to_dict()


def test_shards_of_a_killed_actor_run_elsewhere(address: str, tmp_path: Path) -> None:
    raw, log = tmp_path / "raw", tmp_path / "log"
    names = write_corpus(raw, ["linger"] * 4, num_pictures=12)
    killed: list[int] = []
    measured = signals(log)

    def kill_one() -> None:
        while not os.listdir(log):
            time.sleep(0.02)
        victim = psutil.Process(int(os.listdir(log)[0]))
        killed.append(victim.pid)
        victim.kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    measure_group(raw, names, measured, tmp_path / "ray", engine=Engine("ray", ray_address=address))
    killer.join(10)
    assert killed
    assert set(os.listdir(log)) - {str(killed[0])}
    for num_workers in (1, 2):
        here = tmp_path / f"here{num_workers}"
        measure_group(raw, names, measured, here, engine=Engine(num_workers=num_workers))
        assert digests(tmp_path / "ray") == digests(here)
    assert not list((tmp_path / "ray").rglob(".*")), "no temporary file of the killed one's is left"


def make_nothing() -> Callable[[list[Any]], list[Any]]:
    return lambda batch: batch


def run_one(shard: str, guard: Guard[Any]) -> str:
    if shard == "die":
        os._exit(1)
    if shard == "wrong":
        raise KeyError("the reason")
    return shard


@pytest.mark.parametrize(
    ("shard", "error", "reported"),
    [("die", RuntimeError, "shard 'die': 3 workers died"), ("wrong", KeyError, "the reason")],
)
def test_a_shard_that_cannot_be_run_ends_the_run(
    address: str, shard: str, error: type[Exception], reported: str
) -> None:
    with pytest.raises(error, match=reported):
        run_shards(run_one, ["a", shard, "b"], make_nothing, Engine("ray", num_workers=1, ray_address=address))


def test_more_workers_than_places_and_results_in_order(address: str) -> None:
    shards = [f"{index}" for index in range(20)]
    engine = Engine("ray", num_workers=6, ray_address=address)
    assert run_shards(run_one, shards, make_nothing, engine) == shards


def test_wrong_addresses_are_reported() -> None:
    silent = f"127.0.0.1:{free_port()}"
    for wrong, reported in (
        (silent, "no Ray cluster answers"),
        ("nowhere", "is none of"),
        (f"ray://{silent}", "answers"),
    ):
        with pytest.raises(ValueError, match=reported):
            run_shards(run_one, ["a"], make_nothing, Engine("ray", ray_address=wrong))


def test_an_interrupt_leaves_no_actor(address: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from emu_data.engine import Engine, run_shards\n"
        "from tests.emu_data.test_engine_ray import make_nothing, touch_and_sleep\n"
        "from functools import partial\n"
        "engine = Engine('ray', num_workers=2, ray_address=sys.argv[1])\n"
        "try:\n"
        "    run_shards(partial(touch_and_sleep, sys.argv[2]), ['a', 'b', 'c'], make_nothing, engine)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, address, str(tmp_path)]
    driver = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 2:
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    assert driver.communicate(timeout=60)[0].endswith("interrupted\n")
    while any(runs(int(pid)) for pid in os.listdir(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def touch_and_sleep(log: str, shard: str, guard: Guard[Any]) -> None:
    Path(log, str(os.getpid())).touch()
    time.sleep(600)
