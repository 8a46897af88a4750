"""The whole graph with the smoke profile, seen from outside: files, Dagster, MLflow, DVC, the commands."""

import json
import shutil
import signal
import subprocess
import time

import pandas as pd
import psutil
import pytest
import yaml
from PIL import Image

from tests.e2e.conftest import Project, make_project
from tests.processes import find_child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_the_summary_tells_the_story(demo):
    _, printed = demo
    for word in ("funnel", "autoencoder", "PSNR", "appeal", "faithfulness", "verdict", "data/reports/index.html"):
        assert word in printed
    assert "a toy scale" in printed and "not people" in printed


def test_every_raw_row_is_in_the_ledger_once(demo):
    project, _ = demo
    raw = pd.concat(pd.read_parquet(p) for p in (project.root / "data/raw").glob("*.parquet"))
    ledger = pd.concat(pd.read_parquet(p) for p in (project.root / "data/filtered/ledger").glob("*.parquet"))
    assert sorted(raw["key"]) == sorted(ledger["key"])
    assert (ledger["kept"] == (ledger["first_failed_gate"] == "")).all()
    manifest = pd.read_parquet(project.root / "data/filtered/manifest.parquet")
    assert sorted(manifest["key"]) == sorted(ledger.loc[ledger["kept"], "key"])


def test_no_unfinished_file_is_left(demo):
    project, _ = demo
    assert not [p for p in (project.root / "data").rglob("*") if ".tmp-" in p.name]


def test_dagster_mlflow_and_dvc_have_the_same_md5(demo):
    """dvc.lock, Dagster's data version and MLflow's digest are the same number."""
    project, _ = demo
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
    md5 = lock["autoencoder"]["outs"][0]["md5"]
    script = """
import dagster as dg, mlflow
from emu_dagster.resources.mlflow import MlflowTracking
instance = dg.DagsterInstance.get()
event = instance.get_latest_materialization_event(dg.AssetKey("autoencoder")).asset_materialization
print(event.tags["dagster/data_version"], event.metadata["md5"].value)
MlflowTracking().connect()
client = mlflow.MlflowClient()
run = client.get_run(event.metadata["mlflow_run"].value.rstrip(")").rpartition("/")[2])
print(run.data.tags["emu.md5"])
runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
(low,) = [run for run in runs if run.data.tags.get("dagster.asset") == "pretrained_low"]
print({i.dataset.name: i.dataset.digest for i in low.inputs.dataset_inputs}["autoencoder"])
"""
    printed = project.must("python", "-c", script).split()
    assert printed == [md5] * 4


def test_dvc_is_clean_and_a_clone_needs_nothing(demo, tmp_path):
    project, _ = demo
    assert json.loads(project.must("dvc", "status", "--json")) == {}
    remote, clone = tmp_path / "remote", Project(tmp_path / "clone")
    project.must("dvc", "remote", "add", "-f", "-d", "here", str(remote))
    project.must("dvc", "push")
    project.must("git", "add", "-A")
    project.must("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "demo")
    subprocess.run(["git", "clone", "-q", str(project.root), str(clone.root)], check=True)
    clone.must("dvc", "pull")
    printed = clone.must("dvc", "repro")
    assert "up to date" in printed
    assert "Running stage" not in printed


def test_a_second_demo_makes_nothing(demo):
    project, _ = demo
    before = {p: p.stat().st_mtime_ns for p in (project.root / "data/models").rglob("*.safetensors")}
    printed = project.must("emu", "demo", "--profile", "smoke")
    assert "nothing was done" in printed
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_the_registry_says_why(demo):
    project, _ = demo
    registered = json.loads((project.root / "data/registered_model.json").read_text())
    assert registered["alias"] in ("champion", "challenger")
    refusing = [verdict["reason"] for verdict in registered["verdicts"].values() if not verdict["passed"]]
    assert (registered["alias"] == "challenger") == bool(refusing)
    assert len(registered["tags"]["md5.curated_set"]) >= 32
    assert "not people" in registered["tags"]["judged_by"]


def test_generate_writes_pictures(demo, tmp_path):
    project, _ = demo
    registered = json.loads((project.root / "data/registered_model.json").read_text())
    address = f"models:/{registered['name']}@{registered['alias']}"
    printed = project.must("emu", "generate", "a red apple", "--num", "2", "--model", address, "--steps", "2")
    paths = [project.root / line for line in printed.split()]
    assert len(paths) == 2
    assert {Image.open(path).size for path in paths} == {(64, 64)}


def test_a_registered_version_draws_what_its_source_model_draws(demo, tmp_path):
    """The same weights under two names: once by their folder, once by their address in the registry."""
    finished, _ = demo
    project = Project(tmp_path / "project")
    shutil.copytree(finished.root, project.root, symlinks=True)
    name = json.loads((project.root / "data/registered_model.json").read_text())["name"]
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["evaluation_images"] |= {
        "num_prompts": 8,
        "fixed_prompts": params["evaluation_images"]["fixed_prompts"][:4],
        "contestants": {"folder": "data/models/quality_tuned", "registered": f"models:/{name}/1"},
    }
    params["comparison"] = ["registered", "folder"]
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    project.must("emu", "materialize", "evaluation_images")
    pictures = project.root / "data/evaluation_images"
    drawn = {path.name: path.read_bytes() for path in (pictures / "registered").iterdir()}
    assert len(drawn) == 8
    assert drawn == {path.name: path.read_bytes() for path in (pictures / "folder").iterdir()}


def test_an_unknown_model_is_one_line(demo):
    project, _ = demo
    done = project.run("emu", "generate", "a cat", "--model", "models:/nobody@champion")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert "nobody" in line and "models:/emu-smoke/1 (@ch" in line  # champion or challenger


def test_votes_are_labelled_and_chained(demo):
    project, _ = demo
    for name in ("generalist", "specialist", "appeal", "faithfulness"):
        votes = pd.read_parquet(project.root / "data/votes" / name / "votes.parquet")
        assert set(votes["rater_kind"]) == {"rubric"} and set(votes["time"]) == {""}, name
        assert votes["seen"].str.len().eq(64).all(), name
    assert len(project.must("emu", "votes", "verify").splitlines()) == 4
    curated = pd.read_parquet(project.root / "data/curated/manifest.parquet")
    assert (curated["chosen_by"] == "5 votes of the rubric panel, not people").all()
    assert curated["caption"].str.len().min() > 2
    report = json.loads((project.root / "data/reports/appeal_report/report.json").read_text())
    head = json.loads((project.root / "data/votes/appeal/votes.jsonl.head.json").read_text())["head"]
    assert report["votes_head"] == head and report["num_votes_of_people"] == 0


def test_no_curated_picture_was_voted_down(demo):
    """Twelve are wanted; the set has as many as most specialists kept."""
    project, _ = demo
    votes = pd.read_parquet(project.root / "data/votes/specialist/votes.parquet")
    keeps = votes["decision"].eq("keep").groupby(votes["key"]).mean()
    curated = pd.read_parquet(project.root / "data/curated/manifest.parquet")["key"]
    assert keeps[curated].gt(0.5).all()
    assert len(curated) == min(12, keeps.gt(0.5).sum())


def test_votes_of_people_survive_the_graph_and_decide(demo, tmp_path):
    """Twenty votes, appended with the documented call while nothing runs."""
    finished, _ = demo
    project = Project(tmp_path / "project")
    shutil.copytree(finished.root, project.root, symlinks=True)
    script = """
from pathlib import Path
import pandas as pd
from emu_dagster.commands.driver import stale_now
from emu_steps.layout import Layout, project_root
from emu_steps.voting import digest_pictures, shown_to_specialists
from emu_data.votes.rounds import open_log
from emu_data.votes.vote import Vote
import dagster as dg
layout = Layout(project_root())
keys = shown_to_specialists(layout)[:5]
seen = digest_pictures(layout, keys)
open_log(layout.votes("specialist")).append(
    Vote("specialist", rater, "person", key, "drop" if n < 4 else "keep", seen=seen[key])
    for n, key in enumerate(keys) for rater in ("anna", "ben", "cem", "dora")
)
print(*keys)
print(*[f"{stale.key}: {stale.reason}" for stale in stale_now(dg.DagsterInstance.get())], sep=", ")
"""
    keys, stale = project.must("python", "-c", script).splitlines()[-2:]
    assert stale == "specialist_votes: 20 new votes"
    before = pd.read_parquet(project.root / "data/votes/specialist/votes.parquet")
    project.must("emu", "materialize", "curated_set")  # of what was recorded: the new votes wait to be recorded
    project.must("emu", "materialize", "generalist_votes", "generalist_selection", "specialist_votes", "curated_set")
    votes = pd.read_parquet(project.root / "data/votes/specialist/votes.parquet")
    pd.testing.assert_frame_equal(votes.head(len(before)), before)
    assert votes["rater_kind"].iloc[len(before) :].tolist() == ["person"] * 20
    curated = pd.read_parquet(project.root / "data/curated/manifest.parquet").set_index("key")
    *dropped, kept = keys.split()
    assert not set(dropped) & set(curated.index)
    assert curated.loc[kept, "chosen_by"] == "4 votes of 4 people"
    status = json.loads(project.must("dvc", "status", "--json", "curated_set", "specialist_votes"))
    assert status == {}
    log = project.root / "data/votes/specialist/votes.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"rater":"anna"', b'"rater":"anne"', 1))
    done = project.run("emu", "votes", "verify", "specialist")
    assert done.returncode == 1 and f"line {len(before) + 1}" in done.stdout and "edited" in done.stdout
    assert project.run("emu", "votes", "verify", "appeal").returncode == 0


def test_a_head_is_fitted_to_the_votes(demo, tmp_path):
    project, _ = demo
    printed = project.must("emu", "aesthetics-head", "--out", str(tmp_path / "head.safetensors"))
    assert "votes of the rubric panel, not people" in printed and (tmp_path / "head.safetensors").is_file()


def test_the_funnel_is_decided_again_without_a_model(demo):
    project, _ = demo
    before = {p: p.read_bytes() for p in (project.root / "data/filtered/ledger").glob("*.parquet")}
    assert "geometry" in project.must("emu", "funnel")
    printed = project.must("emu", "funnel", "--set", "min_side=4000")
    assert "filter_ledger.policy.min_side" in " ".join(printed.split())
    assert before == {p: p.read_bytes() for p in before}


def test_an_unknown_profile_is_one_line(empty_project):
    done = empty_project.run("emu", "demo", "--profile", "nonsense")
    assert done.returncode == 1
    assert "emoji" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_an_unreachable_registry_is_one_line(tmp_path):
    """npm is given a port of this machine at which nothing listens."""
    project = make_project(tmp_path / "project")
    shutil.rmtree(project.root / "data", ignore_errors=True)
    done = project.run(
        "emu", "demo", "--profile", "smoke", npm_config_registry="http://127.0.0.1:9", npm_config_fetch_retries="0"
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("emu: raw_corpus:") and "emoji-datasource" in last
    assert not (project.root / "data/raw").exists()


def test_a_demo_killed_three_times_continues(demo, tmp_path):
    """kill -9 of the training child, kill -9 of the command, Ctrl-C: nothing that was finished is made again."""
    finished, _ = demo
    project = Project(tmp_path / "project")
    shutil.copytree(finished.root, project.root, symlinks=True)
    shutil.rmtree(project.root / "data/models/autoencoder")
    study = {p: p.stat().st_mtime_ns for p in (project.root / "data/models/autoencoder_study").rglob("*.safetensors")}
    for victim in ("trainer", "command", "interrupt"):
        errors = kill_in_training(project, victim)
        assert "resumes" in errors or victim != "trainer"
        assert not (project.root / "data/models/autoencoder").exists()
    project.must("emu", "materialize", "autoencoder")  # the next asset of the demo; all of them would take minutes
    assert (project.root / "data/models/autoencoder/config.json").is_file()
    assert study == {p: p.stat().st_mtime_ns for p in study}


def kill_in_training(project: Project, victim: str) -> str:
    """Start the demo, end `victim` once a training has started, and return what the command printed when it ended."""
    process = subprocess.Popen(
        ["emu", "demo", "--profile", "smoke"],
        cwd=project.root,
        env=project.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while (trainer := find_child(process)) is None:
        assert process.poll() is None and time.monotonic() < deadline, "no training started"
        time.sleep(0.05)
    if victim == "trainer":
        trainer.kill()
    else:
        process.send_signal(signal.SIGKILL if victim == "command" else signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    psutil.wait_procs([trainer], timeout=90)
    assert not trainer.is_running()
    return errors


def test_a_folder_that_is_not_writable_is_a_clear_error(demo, tmp_path):
    """A file is where a folder must be: root cannot write there, either."""
    finished, _ = demo
    project = Project(tmp_path / "project")
    shutil.copytree(finished.root, project.root, symlinks=True)
    shutil.rmtree(project.root / "data/filtered")
    shutil.rmtree(project.root / "data/curation")
    (project.root / "data/curation").write_text("in the way")
    done = project.run("emu", "materialize", "filtered_corpus", "generalist_selection")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("emu: generalist_selection:")
    assert (project.root / "data/filtered/manifest.parquet").is_file()
