"""Kills a run of the graph again and again, resumes it with the same command, and compares the result with that of an
undisturbed run: the same bytes, and the same records.

    python -m scripts.kill_campaign --kills 50 --folder /tmp/campaign

All processes of the command are killed at once (-9), as if a machine goes down. Kills are random, or aimed: at `dvc
commit`, at dvc.lock while DVC writes it, at MLflow's database while a transaction is open, at a file or folder that is
about to be renamed to its name, once at a registered version that has no alias yet. FOLDER keeps the undisturbed
project (alone/) for further campaigns.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from emu_dagster.declarations.loading import load_declarations
from emu_data.files import TEMPORARY_MARK
from tests.e2e.conftest import Project, make_project

START_SECONDS = 12.0  # about how long the command takes to start working
MAX_PATIENCE = 60.0  # so that a random kill comes before half the graph is finished
WAIT_SECONDS = 90.0  # for the moment at which a kill is aimed; after that it is random
POLL_SECONDS = 0.002
LAST_STAGES = 4  # if no more stages are missing, the next kill is kept for the registration
# Run in the project itself: what Dagster, MLflow and DVC say about each asset.
RECORDS = """
import json, re, dagster as dg, mlflow
from emu_dagster.machine.environment import prepare_environment
prepare_environment()
from emu_dagster.declarations.loading import load_declarations
from emu_dagster.resources.dvc import DvcRepo, hash_path
from emu_dagster.resources.dvc_files import combine, read_ignored, read_yaml
from emu_dagster.resources.mlflow import MlflowTracking
dvc, instance, experiment = DvcRepo(), dg.DagsterInstance.get(), MlflowTracking().connect()
client = mlflow.MlflowClient()
runs = [(r.info.run_id, r.info.status, r.data.tags.get("dagster.asset"), r.data.tags.get("emu.md5"))
        for r in mlflow.search_runs([experiment], output_format="list", max_results=5000)]
assets = {}
for key, declaration in load_declarations().items():
    events = instance.fetch_materializations(dg.AssetKey(key), limit=1000).records
    made = [record.asset_materialization for record in events]
    assets[key] = {
        "versions": [(m.tags["dagster/data_version"], m.metadata["md5"].value,
                      re.search("[0-9a-f]{32}", m.metadata["mlflow_run"].value)[0]) for m in made],
        "on_disk": combine({out: hash_path(dvc.folder / out, read_ignored(dvc.folder)) for out in declaration.outs}),
        "recorded": dvc.digest_of(key),
    }
versions = []
for version in client.search_model_versions():
    mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{version.name}/{version.version}")
    aliases = sorted(client.get_model_version(version.name, version.version).aliases)
    versions.append((version.version, version.status, aliases))
unfinished = [run.run_id for run in instance.get_runs() if not run.is_finished]
print(json.dumps({"assets": assets, "runs": runs, "registry": versions, "unfinished": unfinished,
    "stages": read_yaml(dvc.folder / "dvc.lock")["stages"], "status": dvc.status()}))
"""


def main(
    folder: Annotated[Path, typer.Option(help="where both projects are made")],
    kills: Annotated[int, typer.Option(min=1)] = 50,
    seed: Annotated[int, typer.Option(help="decides the moments of the kills")] = 0,
    profile: str = "smoke",
) -> None:
    """Run the campaign. If the killed project differs from the undisturbed one, print how; the exit code is then 1."""
    faults = run_campaign(folder.resolve(), kills, seed, profile)
    print("\n".join(faults) or "the same bytes and the same records", flush=True)
    sys.exit(bool(faults))


def run_campaign(folder: Path, kills: int, seed: int, profile: str) -> list[str]:
    """Run the whole campaign; return what differs in the end, one line per difference."""
    command = ["emu", "demo", "--profile", profile]
    alone = Project(folder / "alone")
    if not (alone.root / "dvc.lock").is_file():
        alone = make_project(alone.root)
        alone.must(*command, timeout=3600)
    shutil.rmtree(folder / "killed", ignore_errors=True)
    killed = make_project(folder / "killed")
    draw, tally = random.Random(seed), Counter()
    aims = [aim for aim in AIMS if aim != "version"]
    patience = START_SECONDS
    while tally.total() < kills:
        before = count_stages(killed)
        is_last = before >= len(load_declarations()) - LAST_STAGES and count_versions(killed.root) == (0, 0)
        aim = "version" if is_last else aims[tally.total() % len(aims)]
        fell = kill_once(killed, command, aim, START_SECONDS + draw.uniform(0, patience), draw)
        if fell is None:  # the command ended: half of the outputs are removed, so that it has to make them again
            # (votes are an input, and registering again makes another version)
            assets = sorted(a for a in load_declarations() if not a.endswith("_votes") and a != "registered_model")
            victims = draw.sample(assets, len(assets) // 2)
            print(f"finished after {tally.total()} kills; removed: {', '.join(victims)}", flush=True)
            for victim in victims:
                remove_outs(killed, victim)
            patience = START_SECONDS
            continue
        tally[fell] += 1
        patience = START_SECONDS if count_stages(killed) > before else min(patience * 1.3, MAX_PATIENCE)
        print(f"kill {tally.total()}: {fell}; {count_stages(killed)} stages recorded", flush=True)
    print(killed.must(*command, timeout=3600).splitlines()[-1])
    print(f"kills: {dict(tally)}", flush=True)
    return compare(read_records(alone), read_records(killed)) + find_broken_objects(killed)


def kill_once(project: Project, command: list[str], aim: str, seconds: float, draw: random.Random) -> str | None:
    """Start the command and kill it at the moment of `aim`, otherwise after `seconds`. Return what was hit; None if the
    command ended first. Raises RuntimeError if it ended with an error: a killed run must always be resumable.
    """
    log = project.root.parent / "killed.log"
    with log.open("w") as file:
        process = psutil.Popen(
            command, cwd=project.root, env=project.environment, stdout=file, stderr=file, start_new_session=True
        )
        began = time.monotonic()
        skip = draw.randrange(3) if aim != "version" else 0  # so that it is not always the first such moment
        limit = seconds if aim == "random" else WAIT_SECONDS
        was_there = False
        while process.poll() is None and time.monotonic() - began < limit:
            is_there = aim != "random" and AIMS[aim](project.root, process)
            if is_there and not was_there:
                if skip == 0:
                    if aim != "version":  # which soon gets its alias
                        time.sleep(draw.choice([0.0, 0.01, 0.1, 0.3]))
                    break
                skip -= 1
            was_there = is_there
            time.sleep(POLL_SECONDS)
        if process.poll() is not None:
            if process.returncode:
                raise RuntimeError(f"the resumed command failed:\n{log.read_text()[-3000:]}")
            return None
        hit = aim if time.monotonic() - began < limit else "random"
        kill_all(process)
    return hit


def kill_all(process: psutil.Process) -> None:
    """Kill a whole tree of processes at once: all are stopped first, so that none reacts to the death of another."""
    family = [process, *process.children(recursive=True)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for member in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, number)
    psutil.wait_procs(family, timeout=30)


def is_committing(root: Path, process: psutil.Process) -> bool:
    for child in process.children():
        try:
            if "commit" in child.cmdline():
                return True
        except psutil.Error:
            continue
    return False


def is_lock_half_written(root: Path, process: psutil.Process) -> bool:
    try:
        return (root / "dvc.lock").stat().st_size == 0
    except FileNotFoundError:
        return False


def is_mlflow_writing(root: Path, process: psutil.Process) -> bool:
    return (root / "mlflow" / "mlflow.db-journal").exists()


def is_renaming(root: Path, process: psutil.Process) -> bool:
    data = root / "data"
    folders = [data, *(data / name for name in ("raw", "models", "reports", "filtered", "curation", "ledger", "cache"))]
    return any(TEMPORARY_MARK in name for folder in folders if folder.is_dir() for name in os.listdir(folder))


def count_versions(root: Path) -> tuple[int, int]:
    """Return how many versions are registered, and how many of them have an alias."""
    query = """SELECT count(*), count(a.version) FROM model_versions AS v
        LEFT JOIN registered_model_aliases AS a ON a.name = v.name AND a.version = v.version"""
    with contextlib.suppress(sqlite3.OperationalError):  # no database yet, or it is locked
        database = sqlite3.connect(f"file:{root}/mlflow/mlflow.db?mode=ro", uri=True, timeout=0.1)
        with contextlib.closing(database):
            return database.execute(query).fetchone()
    return 0, 0


def is_version_without_alias(root: Path, process: psutil.Process) -> bool:
    return count_versions(root) == (1, 0)


AIMS: dict[str, Callable[[Path, psutil.Process], bool]] = {
    "random": lambda root, process: False,
    "commit": is_committing,
    "dvc.lock": is_lock_half_written,
    "mlflow": is_mlflow_writing,
    "rename": is_renaming,
    "version": is_version_without_alias,
}


def count_stages(project: Project) -> int:
    path = project.root / "dvc.lock"
    return path.read_text().count("\n    cmd:") if path.is_file() else 0


def remove_outs(project: Project, asset: str) -> None:
    for out in load_declarations()[asset].outs:
        path = project.root / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_records(project: Project) -> dict[str, Any]:
    return json.loads(project.must("python", "-c", RECORDS, timeout=600).splitlines()[-1])


def compare(alone: dict[str, Any], killed: dict[str, Any]) -> list[str]:
    """Return what differs from the undisturbed project, or is inconsistent, one line each."""
    faults = []
    for stage in sorted({*alone["stages"], *killed["stages"]}):
        one, other = alone["stages"].get(stage, {}), killed["stages"].get(stage, {})
        differing = [
            f"{part} {name}"
            for part in ("outs", "deps", "params")
            for name in sorted({*by_name(one, part), *by_name(other, part)})
            if by_name(one, part).get(name) != by_name(other, part).get(name)
        ]
        faults += [f"dvc.lock: {stage}: {', '.join(differing)}"] if differing else []
    if killed["status"]:
        faults.append(f"dvc status: {killed['status']}")
    runs = {run_id: (status, asset, md5) for run_id, status, asset, md5 in killed["runs"]}
    named = Counter()
    for asset, found in killed["assets"].items():
        version, md5, _ = found["versions"][0]
        if asset.endswith("_votes"):  # its version is the head of the log's chain
            version = md5
        if not found["recorded"] == found["on_disk"] == version == md5:
            faults.append(f"{asset}: dvc.lock, disk and Dagster do not agree: {found}")
        for _, md5, run_id in found["versions"]:
            named[run_id] += 1
            if runs.get(run_id) != ("FINISHED", asset, md5):
                faults.append(f"{asset}: its MLflow run {run_id} is {runs.get(run_id)}, not finished with {md5}")
    faults += [f"MLflow run {run_id} belongs to {n} materialisations" for run_id, n in named.items() if n > 1]
    for run_id, (status, asset, _) in runs.items():
        if status == "RUNNING" or (status == "FINISHED" and run_id not in named):
            faults.append(f"{asset}: MLflow run {run_id} is {status}, but no materialisation names it")
    if killed["registry"] != alone["registry"]:
        faults.append(f"registry: {killed['registry']} instead of {alone['registry']}")
    if killed["unfinished"]:
        faults.append(f"Dagster runs that never ended: {killed['unfinished']}")
    return faults


def by_name(entry: dict[str, Any], part: str) -> dict[str, Any]:
    """Return path -> md5 of an entry's deps or outs, or name -> value of its params."""
    if part == "params":
        return entry.get(part, {}).get("params.yaml", {})
    return {item["path"]: item["md5"] for item in entry.get(part, [])}


def find_broken_objects(project: Project) -> list[str]:
    """Return, one line each, the files in DVC's cache whose bytes do not match their name."""
    cache = project.root / ".dvc" / "cache" / "files" / "md5"
    return [
        f"DVC's cache: {path.parent.name}{path.name} holds other bytes"
        for path in sorted(cache.glob("??/*"))
        if len(path.name.removesuffix(".dir")) == 30
        and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != path.parent.name + path.stem
    ]


if __name__ == "__main__":
    typer.run(main)
