"""What all tests share: libraries that are quiet and off the network, skips for what a machine lacks, a project
root."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from emu_dagster.machine.environment import QUIET, collect_rarely

os.environ.update(QUIET)
collect_rarely()
# the time of an example depends on what else the machine does, and that of the first one on what it imports
settings.register_profile("emu", deadline=None)
settings.load_profile("emu")
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread per worker: two trainings with two threads each stall each other
    os.environ["OMP_NUM_THREADS"] = "1"
# A shell's background job ignores SIGINT, and so would everything that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A test that needs an instance, a project or a tracking server makes its own; the user's is never used.
for name in ("DAGSTER_HOME", "EMU_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DVC_STAGE"):
    os.environ.pop(name, None)


# Tests that train through Dagster wait for the device's lock, which the whole machine shares: one worker gets most of
# them, and another those that make their own project and train nothing.
TRAIN_THROUGH_DAGSTER = ("tests/e2e/", "tests/emu_dagster/test_gpu.py")
OWN_PROJECT = ("tests/e2e/test_many_shards.py", "tests/e2e/test_adding.py")


class DeviceInOneWorker(LoadScopeScheduling):
    """(--dist loadgroup of pytest-xdist 3.8 does nothing under pytest 9.2, whose items no longer have a `_nodeid`.)"""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(OWN_PROJECT):
            return "own project"
        return "device" if nodeid.startswith(TRAIN_THROUGH_DAGSTER) else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> DeviceInOneWorker:
    return DeviceInOneWorker(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` without a CUDA device and `browser` without a Chromium. Files with slow tests come first:
    no worker is left alone with one at the end."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    has_browser = any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("browser") and not has_browser:
            item.add_marker(pytest.mark.skip(reason="no Chromium: Debian's package `chromium`"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project root with its own absolute DAGSTER_HOME; the environment variables name both."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    monkeypatch.setenv("EMU_ROOT", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return tmp_path
