"""Where a project can be: DVC works there, or one sentence says why not, before any work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emu_dagster.commands.doctor import examine
from emu_dagster.machine.surroundings import find_obstacles, refuse_surroundings
from emu_dagster.resources.dvc import DvcRepo

TOP = Path(__file__).parents[2]
RECORD = """
from emu_dagster.machine.environment import prepare_environment
prepare_environment()
import matplotlib.pyplot
from emu_dagster.resources.dvc import DvcRepo
from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.resources.instance import open_instance
open_instance()
MlflowTracking().connect()
record = DvcRepo()
print(record.record("raw", record.snapshot("raw")))
"""


@pytest.fixture
def unpacked(project: Path) -> Path:
    """A project as an archive of the repository leaves it, with an output of its only stage."""
    (project / "dvc.yaml").write_text("stages: {raw: {cmd: make raw, params: [raw], outs: [data/raw]}}")
    (project / "params.yaml").write_text("raw: 1")
    (project / ".gitignore").write_text("/data/\n")
    shutil.copytree(TOP / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    (project / "data" / "raw").mkdir(parents=True)
    (project / "data" / "raw" / "file").write_text("bytes")
    return project


def record_raw(root: Path) -> None:
    record = DvcRepo(root=str(root))
    assert record.record("raw", record.snapshot("raw")) == record.digest_of("raw")
    assert record.status() == {}


@pytest.mark.parametrize("has_git", [False, True])
@pytest.mark.parametrize("linked", [False, True])
def test_with_or_without_git_and_with_data_on_another_disk(
    unpacked: Path, has_git: bool, linked: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if has_git:
        subprocess.run(["git", "init", "-q"], cwd=unpacked, check=True)
    if linked:
        disk = tmp_path_factory.mktemp("disk") / "data"
        shutil.move(unpacked / "data", disk)
        (unpacked / "data").symlink_to(disk)
    record_raw(unpacked)
    # dvc called by a person works there, too
    done = subprocess.run([DvcRepo().find_program(), "status"], cwd=unpacked, capture_output=True, text=True)
    assert "up to date" in done.stdout, done.stderr
    assert (unpacked / ".dvc" / "config.local").exists() == (linked or not has_git)


def test_the_users_own_settings_stay(unpacked: Path) -> None:
    local = unpacked / ".dvc" / "config.local"
    local.write_text("[core]\n    checksum_jobs = 1\n['remote \"local\"']\n    url = ../elsewhere\n")
    record_raw(unpacked)
    listed = DvcRepo(root=str(unpacked)).run("config", "--list")
    assert "core.checksum_jobs=1" in listed and "core.no_scm=true" in listed and "elsewhere" in listed


# the whole graph without one: tests/e2e/test_records.py
@pytest.mark.parametrize("home", [None, "/proc/nobody"])
def test_without_a_home(unpacked: Path, home: str | None) -> None:
    """HOME is unset, or a place that is not writable (below /proc not even for root)."""
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment |= {"PYTHONPATH": str(TOP)} | ({"HOME": home} if home else {})
    done = subprocess.run([sys.executable, "-c", RECORD], cwd=unpacked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == DvcRepo(root=str(unpacked)).digest_of("raw")


def make_unfit(root: Path, how: str) -> str:
    """Break the project and return what the message must name. A file is where a folder must be: root cannot write
    there, either."""
    match how:
        case "no params":
            (root / "params.yaml").unlink()
            return "emu profile"
        case "no .dvc":
            shutil.rmtree(root / ".dvc")
            return "dvc init"
        case "read-only .dvc":
            (root / ".dvc" / "tmp").write_text("in the way")
            return "chmod"
        case "data in the way":
            shutil.rmtree(root / "data")
            (root / "data").write_text("in the way")
            return "chmod"
    shutil.rmtree(root / "data")
    (root / "data").symlink_to("/nowhere/data")
    return "/nowhere/data"


@pytest.mark.parametrize("how", ["no params", "no .dvc", "read-only .dvc", "data in the way", "no disk"])
def test_what_does_not_work_is_one_sentence_before_any_work(unpacked: Path, how: str) -> None:
    named = make_unfit(unpacked, how)
    before = sorted(unpacked.rglob("*"))
    (sentence,) = find_obstacles(unpacked)
    assert named in sentence and "\n" not in sentence
    with pytest.raises(ValueError, match=named):
        refuse_surroundings(unpacked)
    with pytest.raises(ValueError, match=named):
        DvcRepo(root=str(unpacked)).snapshot("raw")
    assert sorted(unpacked.rglob("*")) == before
    (finding,) = [finding for finding in examine() if finding.what == "project"]
    assert not finding.good and finding.found == sentence
