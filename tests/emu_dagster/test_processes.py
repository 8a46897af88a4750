"""Processes by name, and the lock that waits for a live process but not for a dead one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from emu_dagster.machine.processes import describe_process, is_alive, one_at_a_time

HOLD = """
import sys, time
from pathlib import Path
from emu_dagster.machine.processes import one_at_a_time
with one_at_a_time(Path(sys.argv[1]), "making raw_corpus"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_later_one_says_which_is_at_work_and_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = hold(tmp_path / "lock", 1.0)
    with one_at_a_time(tmp_path / "lock", "making it too"):
        assert other.wait() == 0  # the other had let go
    said = capsys.readouterr().err
    assert f"process {other.pid} (" in said and "making raw_corpus since" in said
    with one_at_a_time(tmp_path / "lock", "making it again"):
        pass
    assert capsys.readouterr().err == ""


def test_a_killed_one_stops_nobody(tmp_path: Path) -> None:
    other = hold(tmp_path / "lock", 300)
    other.send_signal(signal.SIGKILL)
    other.wait()
    with one_at_a_time(tmp_path / "lock", "going on"):
        pass


def test_a_process_is_known_by_its_start() -> None:
    child = subprocess.Popen(["sleep", "100"])
    described = describe_process(psutil.Process(child.pid))
    host, pid, started = described.rsplit(":", 2)
    assert is_alive(describe_process()) and is_alive(described)
    assert not is_alive(f"{host}:{pid}:{float(started) - 100:.0f}")  # another process had its id before
    assert is_alive(f"elsewhere:{pid}:0")  # unknown here
    child.kill()
    time.sleep(0.2)
    assert not is_alive(described)  # not yet waited for
    child.wait()
    assert not is_alive(described)
    assert not is_alive("123:456.0") and not is_alive("")  # as older versions wrote it
