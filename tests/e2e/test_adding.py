"""docs/adding.md: its diffs apply to the current repository, and what they add works."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import TOP, Project, make_project

pytestmark = [pytest.mark.slow]
DIFFS = re.findall(r"```diff\n(.*?)```", (TOP / "docs" / "adding.md").read_text(), re.DOTALL)


def files_of(diff: str) -> list[str]:
    return re.findall(r"^diff --git a/(\S+)", diff, re.MULTILINE)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's code and profiles, with all diffs applied."""
    folder = tmp_path_factory.mktemp("adding") / "code"
    for name in ("emu_data", "emu_models", "emu_reports", "emu_steps", "emu_studio", "emu_dagster", "profiles"):
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for number, diff in enumerate(DIFFS):
        path = folder.parent / f"{number}.diff"
        path.write_text(diff)
        done = subprocess.run(["git", "apply", str(path)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def project(changed: Path, tmp_path_factory: pytest.TempPathFactory):
    """A project with the changed code; PYTHONPATH comes before what is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(changed))
        project = make_project(tmp_path_factory.mktemp("project") / "project")
        shutil.rmtree(project.root / "profiles")
        shutil.copytree(changed / "profiles", project.root / "profiles")
        project.must("python", "-m", "emu_dagster.cli", "profile", "smoke", "--overwrite")
        yield project


def test_an_asset_with_params_is_four_files_and_runs(project: Project):
    assert len(files_of(DIFFS[0])) == 4
    project.must("python", "-m", "emu_dagster.cli", "materialize", "raw_corpus", "picture_sizes")
    sizes = json.loads((project.root / "data/picture_sizes/sizes.json").read_text())
    assert sum(sizes.values()) > 50 and all(int(side) % 32 == 0 for side in sizes)
    assert "  picture_sizes:\n" in (project.root / "dvc.yaml").read_text()
    assert "picture_sizes:\n" in (project.root / "dvc.lock").read_text()


def test_a_signal_is_measured_and_its_gate_decides(project: Project):
    assert len(files_of(DIFFS[1])) == 6
    script = """
import json, pandas as pd
from PIL import Image
from emu_data.ledger import GATES, LIMITS
from emu_data.samples import Sample
from emu_data.signals import LazySample
from emu_data.signals.brightness import BrightnessSignal
from emu_steps.params import Policy
from tests.shards import encode
white = LazySample(Sample("0", encode(Image.new("RGB", (32, 32), "white")), ""))
print(json.dumps([BrightnessSignal().measure([white]), "brightness" in GATES, "min_brightness" in Policy.model_fields]))
"""
    environment = os.pathsep.join([os.environ["PYTHONPATH"], str(TOP)])
    reported = json.loads(project.must("python", "-c", script, PYTHONPATH=environment).splitlines()[-1])
    assert reported == [{"brightness": [1.0]}, True, True]


def test_a_report_puts_its_card_on_the_front_page(project: Project):
    assert len(files_of(DIFFS[2])) == 5
    project.must("python", "-m", "emu_dagster.cli", "materialize", "raw_corpus", "caption_lengths")
    report = project.root / "data/reports/caption_lengths"
    numbers = json.loads((report / "report.json").read_text())
    assert numbers["num_captions"] > 50 and "words or fewer" in (report / "index.html").read_text()
    script = """
from emu_dagster.declarations.loading import load_declarations
from emu_reports.index import write_index
from emu_reports.page import Run
from emu_steps.layout import Layout, project_root
from emu_steps.params import read_params
root = project_root()
reports = root / "data/reports"
write_index(reports / "index.html", reports / "front_page", [reports / "caption_lengths"], Run("smoke", True), {})
read = load_declarations()["front_page"].inputs(read_params(root / "params.yaml"), Layout(root))
print("caption_lengths" in read, "Median: " in (reports / "index.html").read_text())
"""
    assert project.must("python", "-c", script).splitlines()[-1] == "True True"


@pytest.mark.campaign
def test_a_training_of_another_family_runs_in_the_child_and_is_not_repeated(project: Project):
    assert len(files_of(DIFFS[3])) == 3
    project.must("python", "-m", "emu_dagster.cli", "materialize", "raw_corpus", "mean_picture")
    state = project.root / "data/states/mean_picture"
    (training,) = state.iterdir()
    mean = project.root / "data/models/mean_picture/mean.safetensors"
    first, curve = mean.read_bytes(), (training / "metrics.jsonl").read_text().splitlines()
    assert json.loads(curve[-1])["step"] == 20 and json.loads(curve[-1])["val_loss"] < json.loads(curve[0])["loss"]
    shutil.rmtree(mean.parent)
    project.must("python", "-m", "emu_dagster.cli", "materialize", "mean_picture")
    assert mean.read_bytes() == first and (training / "metrics.jsonl").read_text().splitlines() == curve
