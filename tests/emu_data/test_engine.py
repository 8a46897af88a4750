"""A record that raises, crashes or hangs is lost alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from emu_data.engine import Engine, Failure, Guard, run_shards
from tests.poison import poison
from tests.processes import runs

LEAKS: list[bytes] = []


def make_squarer(log: str = "") -> Callable[[list[object]], list[object]]:
    if log:
        Path(log, str(os.getpid())).touch()

    def square(batch: list[object]) -> list[object]:
        for item in batch:
            poison(item)
            if item == "leak":
                LEAKS.append(b"x" * 2**27)
                time.sleep(0.2)
        return [item * item if isinstance(item, int) else item for item in batch]

    return square


def make_nothing() -> Callable[[list[object]], list[object]]:
    raise ValueError("the weights are missing")


def make_corpse() -> Callable[[list[object]], list[object]]:
    os._exit(7)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "raised"),
        ("crash", "crashed"),
        ("exit", "crashed"),
        ("segfault", "crashed"),
        ("sticky", "crashed"),
        ("hang", "timeout"),
        ("hoard", "memory"),
    ],
)
def test_a_poisoned_record_loses_only_itself(how: str, reason: str) -> None:
    items: list[object] = [1, 2, how, 4, 5]
    with Guard(make_squarer, base_timeout=2, item_timeout=0, max_memory=2**29) as guard:
        results = guard.map(items, batch_size=3)
    assert results[:2] + results[3:] == [1, 4, 16, 25]
    assert isinstance(results[2], Failure)
    assert results[2].reason == reason


def test_child_is_started_once_and_ends(tmp_path: Path) -> None:
    with Guard(partial(make_squarer, str(tmp_path))) as guard:
        assert guard.map(list(range(20)), batch_size=4) == [i * i for i in range(20)]
    (pid,) = os.listdir(tmp_path)
    assert not runs(int(pid))


def test_a_leak_loses_no_record() -> None:
    """Eight batches that leak 128 MiB each, in a child that may hold 512: another child takes over."""
    with Guard(make_squarer, max_memory=2**29) as guard:
        assert guard.map(["leak"] * 8, batch_size=1) == ["leak"] * 8


def make_thread_counter() -> Callable[[list[object]], list[object]]:
    import threadpoolctl
    import torch

    counts = [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpoolctl.threadpool_info())]
    return lambda batch: [max(counts) for _ in batch]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_child_computes_with_as_many_threads_as_it_was_given(num_threads: int) -> None:
    with Guard(make_thread_counter, num_threads=num_threads) as guard:
        assert guard.map(["how many"], batch_size=1) == [num_threads]


def test_the_factory_must_be_importable() -> None:
    def local() -> Callable[[list[object]], list[object]]:
        return lambda batch: batch

    for factory in (local, partial(local), lambda: local()):
        with pytest.raises(ValueError, match="top level of a module"):
            Guard(factory)
        with pytest.raises(ValueError, match="top level of a module"):
            run_shards(square_shard, [[1]], factory)


def test_without_work_there_is_no_child(tmp_path: Path) -> None:
    with Guard(partial(make_squarer, str(tmp_path))) as guard:
        assert guard.map([], batch_size=4) == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("factory", "reported"), [(make_nothing, "weights are missing"), (make_corpse, "exit code 7")])
def test_a_faulty_set_up_ends_the_run(factory: Callable, reported: str) -> None:
    with pytest.raises(RuntimeError, match=reported), Guard(factory) as guard:
        guard.map([1], batch_size=1)


def square_shard(shard: list[int], guard: Guard) -> list[object]:
    if shard == [13]:
        raise ValueError("shard 13")
    return guard.map(shard, batch_size=2)


def test_shards_come_back_in_order_for_any_number_of_workers(tmp_path: Path) -> None:
    shards = [list(range(i, i + 3)) for i in range(5)]
    for num_workers in (1, 2):
        results = run_shards(square_shard, shards, make_squarer, Engine(num_workers=num_workers))
        assert results == [[i * i for i in shard] for shard in shards]
    with pytest.raises(ValueError, match="shard 13"):
        run_shards(square_shard, [[1], [13], [2]], make_squarer, Engine(num_workers=2))


def test_each_finished_shard_is_reported() -> None:
    heard: list[tuple[int, int]] = []
    shards = [[n] for n in range(9)]
    run_shards(
        square_shard, shards, make_squarer, Engine(num_workers=3), on_progress=lambda done, of: heard.append((done, of))
    )
    assert sorted(heard) == [(done, 9) for done in range(1, 10)]


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_hung_child_does_not_outlive_its_killed_parent(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from functools import partial\n"
        "from emu_data.engine import Guard\n"
        "from test_engine import make_squarer\n"
        "Guard(partial(make_squarer, sys.argv[2])).map(['hang'], batch_size=1)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    log = tmp_path / "log"
    log.mkdir()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, script, Path(__file__).parent, log], env=env)
    deadline = time.monotonic() + 60
    while not os.listdir(log):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (pid,) = os.listdir(log)
    time.sleep(0.3)  # the child has begun to hang
    parent.kill()
    parent.wait()
    while runs(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupt_ends_the_run_and_its_children(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from functools import partial\n"
        "from emu_data.engine import Engine, run_shards\n"
        "from test_engine import make_squarer, square_shard\n"
        "factory = partial(make_squarer, sys.argv[2])\n"
        "try:\n"
        "    run_shards(square_shard, [['hang']] * 3, factory, Engine(num_workers=2))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    parent = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=30)[0] == "interrupted\n"
    deadline = time.monotonic() + 20
    while left := [pid for pid in os.listdir(tmp_path) if runs(int(pid))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
