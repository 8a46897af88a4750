"""The tests' own questions about processes are answered even if one has ended and nobody has waited for it."""

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import find_child, runs

PARENT = (
    "import subprocess, sys, time\n"
    "first = subprocess.Popen(['sleep', '0'])\n"  # never waited for: a zombie
    "second = subprocess.Popen(['sleep', '300.5'])\n"
    "print(first.pid, second.pid, flush=True)\n"
    "time.sleep(300)\n"
)


def test_a_zombie_beside_it_hides_no_child() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout
        zombie, child = map(int, parent.stdout.readline().split())
        deadline = time.monotonic() + 30
        while runs(zombie) or (found := find_child(parent, "sleep 300.5")) is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert found.pid == child and runs(child)
        assert find_child(parent, "sleep 0") is None
        found.kill()
    finally:
        parent.kill()
        parent.wait()
    assert find_child(parent, "sleep") is None


def test_no_test_asks_in_another_way() -> None:
    """`psutil.pid_exists(p) and psutil.Process(p).status()` and `child.cmdline()` fail if the process ends in
    between."""
    asks = re.compile(r"pid_exists\(|\.cmdline\(\)|STATUS_ZOMBIE")
    here = Path(__file__).parent
    own = {here / "processes.py", Path(__file__)}
    assert not [path for path in here.rglob("*.py") if path not in own and asks.search(path.read_text())]
