"""A project root of its own in which the smoke profile was run once, for all end-to-end tests."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from emu_dagster.machine.environment import QUIET

TOP = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Project:
    """A project root outside the repository, and how commands run in it."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), str(TOP / ".venv-dvc" / "bin"), os.environ["PATH"]])
        home = {"EMU_ROOT": str(self.root), "DAGSTER_HOME": str(self.root / "dagster_home")}
        return {**os.environ, **QUIET, **home, "PATH": path}

    def run(self, *command: str, timeout: float = 240, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env={**self.environment, **changes},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def must(self, *command: str, **options) -> str:
        done = self.run(*command, **options)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def make_project(root: Path) -> Project:
    """Return an empty project: the repository's files that a project has, with git and DVC as in a clone."""
    (root / "dagster_home").mkdir(parents=True)
    for name in ("dvc.yaml", "workspace.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(TOP / name, root)
    shutil.copytree(TOP / "profiles", root / "profiles")
    shutil.copytree(TOP / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    shutil.copy(TOP / "dagster_home" / "dagster.yaml", root / "dagster_home")
    packages = TOP / "data" / "cache" / "packages"
    if packages.is_dir():  # what `make demo` has already fetched; fetched again if it has not
        shutil.copytree(packages, root / "data" / "cache" / "packages")
    project = Project(root)
    project.must("git", "init", "-q")
    return project


@pytest.fixture(scope="session")
def empty_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("empty") / "project")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """The project after `emu demo --profile smoke`, and what the command printed."""
    project = make_project(tmp_path_factory.mktemp("demo") / "project")
    return project, project.must("emu", "demo", "--profile", "smoke", timeout=1200)
