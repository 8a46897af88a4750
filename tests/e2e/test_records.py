"""Records of the whole graph if they are lost, if the project is moved, and if MLflow's server goes away."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.conftest import Project
from tests.emu_dagster.test_mlflow_store import Server
from tests.processes import find_child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def copy_of(finished: Project, root) -> Project:
    shutil.copytree(finished.root, root, symlinks=True)
    return Project(root)


def changes(project: Project) -> dict:
    """Return when each file was written, without caches and the index, which every demo writes."""
    data = project.root / "data"
    files = [p for p in data.rglob("*") if p.is_file() and "cache" not in p.parts]
    return {p: p.stat().st_mtime_ns for p in files if p != data / "reports" / "index.html"}


@pytest.mark.parametrize("how", ["emptied", pytest.param("removed", marks=pytest.mark.campaign)])
def test_a_lost_lock_is_recorded_again_and_nothing_is_made(demo, tmp_path, how):
    project = copy_of(demo[0], tmp_path / "project")
    lock = project.root / "dvc.lock"
    recorded, before = lock.read_bytes(), changes(project)
    lock.unlink() if how == "removed" else lock.write_bytes(b"")
    printed = project.must("emu", "demo", "--profile", "smoke")
    assert "recorded in dvc.lock again" in printed and "nothing was done" in printed
    assert lock.read_bytes() == recorded
    assert changes(project) == before


def test_no_record_contains_the_place_of_the_project_or_its_packages(demo):
    """Otherwise two clones of a project would have different md5s for the same thing."""
    project, _ = demo
    outs = [
        line.split("path: ")[1] for line in (project.root / "dvc.lock").read_text().splitlines() if "path: " in line
    ]
    assert len(outs) > 20
    for out in sorted(set(outs)):
        path = project.root / out
        for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
            content = file.read_bytes()
            assert str(project.root).encode() not in content and sys.prefix.encode() not in content, file


def test_a_copy_without_git_and_home_continues_by_itself(demo, tmp_path):
    finished, _ = demo
    project = copy_of(finished, tmp_path / "elsewhere")
    shutil.rmtree(project.root / ".git")
    (project.root / "data").rename(tmp_path / "disk")
    (project.root / "data").symlink_to(tmp_path / "disk")
    before = {p: p.read_bytes() for p in (finished.root / "mlflow").rglob("*.db")}
    home = {"HOME": "/proc/nobody"}
    assert "nothing was done" in project.must("emu", "demo", "--profile", "smoke", **home)
    code = (
        "from emu_dagster.registering import list_versions, find_model;"
        "from emu_dagster.resources.mlflow import MlflowTracking; MlflowTracking().connect();"
        "print(find_model(list_versions()[0].split()[0]))"
    )
    assert project.must("python", "-c", code, **home).splitlines()[-1].startswith(str(project.root))
    project.must("emu", "materialize", "automatic_report", **home)
    assert {p: p.read_bytes() for p in before} == before
    assert project.must("dvc", "status", **home).strip().endswith("up to date.")


@pytest.mark.campaign
def test_a_training_survives_its_tracking_server(demo, tmp_path):
    """The model is kept when its asset reports that the server is gone, and the next materialisation uses it."""
    project = copy_of(demo[0], tmp_path / "project")
    shutil.rmtree(project.root / "data/models/autoencoder")
    server = Server(tmp_path)
    environment = {**project.environment, "MLFLOW_TRACKING_URI": server.uri}
    command = ["emu", "materialize", "autoencoder"]
    process = subprocess.Popen(command, cwd=project.root, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while find_child(process) is None:
            assert process.poll() is None and time.monotonic() < deadline, "no training started"
            time.sleep(0.1)
        os.killpg(server.process.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
            server.kill()
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("emu: autoencoder:") and server.uri in last and "does not answer" in last
    weights = project.root / "data/models/autoencoder/diffusion_pytorch_model.safetensors"
    made = weights.stat().st_mtime_ns
    project.must(*command)
    assert weights.stat().st_mtime_ns == made
