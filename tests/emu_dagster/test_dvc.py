"""What DVC records, with the real dvc program in a project that has no git."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emu_dagster.resources import dvc_files
from emu_dagster.resources.dvc import DvcError, DvcRepo, Snapshot, combine, hash_path
from emu_data.addresses import Store
from emu_data.refs import Reference

STAGES = {
    "raw": {"cmd": "python make.py raw", "params": ["raw"], "outs": [{"data/raw": {"persist": True}}]},
    "model": {
        "cmd": "python make.py model",
        "deps": ["data/raw", "code"],
        "params": ["model"],
        "outs": [{"data/model": {"persist": True}}, {"data/card.json": {"persist": True, "cache": False}}],
    },
}
# What an asset does, simplified: write, or under `dvc repro` write and print the digest.
MAKE = """
import os
import sys
from pathlib import Path
from emu_dagster.resources.dvc import DvcRepo
stage = sys.argv[1]
record = DvcRepo(root=".")
before = record.snapshot(stage)
for path in {"raw": ["data/raw/00000.tar"], "model": ["data/model/weights", "data/card.json"]}[stage]:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(stage + "'s new bytes")
if "CHANGE" in os.environ:
    Path("params.yaml").write_text(os.environ["CHANGE"])
Path("digest-" + stage).write_text(record.record(stage, before))
"""


@pytest.fixture
def record(project: Path) -> DvcRepo:
    """A project with two stages, the first of which has written its output."""
    record = DvcRepo(root=str(project))
    record.run("init", "--no-scm")
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    (project / "params.yaml").write_text("raw: {seed: 1}\nmodel: {width: 64, depth: {down: 2}}\nother: 1\n")
    (project / ".dvcignore").write_text("# comment\n__pycache__\n*.pyc\n")
    (project / "make.py").write_text(MAKE)
    write(project / "code" / "network.py", "width = 1")
    write(project / "data" / "raw" / "00000.tar", "some bytes")
    write(project / "data" / "raw" / "deep" / "Ünïcode name.parquet", "other bytes")
    return record


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read_stage(record: DvcRepo, stage: str) -> dict:
    return yaml.safe_load((record.folder / "dvc.lock").read_text())["stages"][stage]


def make_both(record: DvcRepo) -> None:
    record.record("raw", record.snapshot("raw"))
    before = record.snapshot("model")
    write(record.folder / "data" / "model" / "weights", "w")
    write(record.folder / "data" / "card.json", "{}")
    record.record("model", before)


def test_the_digest_is_dvcs_own_and_the_status_is_clean(record: DvcRepo) -> None:
    write(record.folder / "data" / "raw" / "__pycache__" / "x.pyc", "not hashed")
    digest = record.record("raw", record.snapshot("raw"))
    lock = yaml.safe_load((record.folder / "dvc.lock").read_text())
    assert digest == lock["stages"]["raw"]["outs"][0]["md5"] == record.digest_of("raw")
    assert digest.endswith(".dir") and len(digest) == 36
    assert digest == hash_path(record.folder / "data" / "raw", ["__pycache__"])
    assert "raw" not in record.status()


def test_a_commit_leaves_the_files_in_place(record: DvcRepo) -> None:
    """By default DVC removes an out that is a file and copies it back from its cache: a kill in between would lose
    it."""
    make_both(record)
    write(record.folder / "data" / "model" / "weights", "other")
    stages = {**STAGES, "model": {**STAGES["model"], "outs": ["data/model/weights", "data/raw2", "data/card.json"]}}
    (record.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    write(record.folder / "data" / "raw2" / "a", "folder")
    files = {path: path.stat() for path in (record.folder / "data").rglob("*") if path.is_file()}
    record.record("model", record.snapshot("model"))
    assert {(p, s.st_ino, s.st_mtime_ns) for p, s in files.items()} == {
        (p, p.stat().st_ino, p.stat().st_mtime_ns) for p in files
    }


def test_several_outs_have_one_digest(record: DvcRepo) -> None:
    make_both(record)
    lock = yaml.safe_load((record.folder / "dvc.lock").read_text())["stages"]["model"]
    outs = {out["path"]: out["md5"] for out in lock["outs"]}
    assert len(outs) == 2
    assert record.digest_of("model") == combine(outs) == combine(dict(reversed(list(outs.items()))))
    assert record.status() == {}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("params.yaml", "raw: {seed: 1}\nmodel: {width: 64, depth: {down: 3}}\n"),
        ("code/network.py", "width = 2"),
        ("data/raw/00000.tar", "changed by hand"),
        ("data/raw/00001.tar", "one more"),
    ],
)
def test_a_change_during_the_work_does_not_alter_the_record(record: DvcRepo, path: str, text: str) -> None:
    """The work is not lost, the record is true, and the stage stays out of date as long as the change does."""
    make_both(record)
    changed = record.folder / path
    was = changed.read_text() if changed.exists() else None
    entry = read_stage(record, "model")
    before = record.snapshot("model")
    write(changed, text)
    write(record.folder / "data" / "model" / "weights", "made from what was before")
    digest = record.record("model", before)
    assert record.changed_since(before) in (["model"], ["code"], ["data/raw"])
    now = read_stage(record, "model")
    assert (now["deps"], now["params"]) == (entry["deps"], entry["params"])
    assert now["outs"] != entry["outs"] and record.digest_of("model") == digest
    assert "model" in record.status()
    changed.unlink() if was is None else write(changed, was)
    assert record.status() == {}


def test_a_dep_that_another_stage_remakes_during_the_work(record: DvcRepo) -> None:
    make_both(record)
    before = record.snapshot("model")
    entry = read_stage(record, "model")
    write(record.folder / "data" / "raw" / "00000.tar", "made again, and recorded")
    record.record("raw", record.snapshot("raw"))
    record.record("model", before)
    assert read_stage(record, "model") == entry
    assert record.deps_of("model")["data/raw"] != record.digest_of("raw")
    assert list(record.status()) == ["model"]


def test_input_changed_by_hand_is_refused_before_the_work(record: DvcRepo) -> None:
    make_both(record)
    lock = (record.folder / "dvc.lock").read_bytes()
    write(record.folder / "data" / "raw" / "00000.tar", "SOME bytes")  # of the same size
    with pytest.raises(DvcError, match="data/raw is not what raw wrote according to dvc.lock.*emu materialize raw"):
        record.snapshot("model")
    assert (record.folder / "dvc.lock").read_bytes() == lock


def test_files_that_a_dep_refers_to_are_inputs_too_and_are_not_copied(record: DvcRepo) -> None:
    """Even if the file has the same size and time as before, and while the work is in progress."""
    tar = record.folder / "elsewhere" / "00000.tar"
    write(tar, "some bytes")
    (record.folder / "data" / "raw" / "00000.tar").unlink()
    with record.digesting() as digest:
        Reference(record.folder / "data" / "raw" / "00000.ref", "tar", Store(str(tar))).write(digest)
    stat = tar.stat()
    make_both(record)
    cached = [path.read_bytes() for path in (record.folder / ".dvc" / "cache").rglob("*") if path.is_file()]
    assert b"some bytes" not in cached and b"other bytes" in cached
    assert (tar.stat().st_nlink, tar.stat().st_mode) == (1, stat.st_mode)
    before = record.snapshot("model")
    write(tar, "SOME bytes")
    assert record.changed_since(before) == ["data/raw"]
    os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    reported = "00000.tar, which data/raw refers to, has changed since raw registered it.*emu materialize raw"
    with pytest.raises(DvcError, match=reported):
        record.snapshot("model")
    write(tar, "some bytes")
    record.snapshot("model")
    tar.unlink()
    with pytest.raises(DvcError, match=reported):
        record.snapshot("model")


def test_a_dep_is_hashed_only_when_it_looks_different(record: DvcRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    make_both(record)
    hashed = []

    def measure(path: Path, ignored: list[str]) -> dict:
        hashed.append(path.name)
        return dvc_files.measure(path, ignored)

    monkeypatch.setattr("emu_dagster.resources.measured.measure", measure)
    first = record.snapshot("model")
    assert hashed == []  # nor what no stage makes: both were hashed when they were made
    os.utime(record.folder / "data" / "raw" / "00000.tar")
    assert record.snapshot("model").entries == first.entries
    assert hashed == ["raw"]
    assert record.snapshot("model").entries == first.entries
    assert hashed == ["raw"]
    write(record.folder / "code" / "network.py", "width = 7")
    assert record.snapshot("model").entries != first.entries
    assert hashed == ["raw", "code"]


@pytest.mark.parametrize("lost", ["removed", "truncated"])
def test_an_output_on_disk_is_recorded_again_without_being_made(record: DvcRepo, lost: str) -> None:
    """If dvc.lock is gone, as after `git clean` or a kill in an earlier version, the same bytes are recorded again."""
    made = {}
    for stage, files in (("raw", ["data/raw/00000.tar"]), ("model", ["data/model/weights", "data/card.json"])):
        before = record.snapshot(stage)
        for file in files:
            write(record.folder / file, stage)
        made[stage] = (record.record(stage, before), json.loads(json.dumps(before.describe())))
    lock = (record.folder / "dvc.lock").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (record.folder / "data").rglob("*")}
    # params that have changed since are not those with which it was made
    write(record.folder / "params.yaml", "raw: {seed: 1}\nmodel: {width: 65, depth: {down: 2}}\nother: 1\n")
    if lost == "removed":
        (record.folder / "dvc.lock").unlink()
    else:
        (record.folder / "dvc.lock").write_bytes(b"")
    for digest, described in made.values():
        assert record.record_again(Snapshot.from_description(described), digest)
    assert (record.folder / "dvc.lock").read_bytes() == lock
    assert {path: path.stat().st_mtime_ns for path in (record.folder / "data").rglob("*")} == times
    for digest, described in made.values():
        assert not record.record_again(Snapshot.from_description(described), digest)  # it exists


def test_other_bytes_are_not_recorded_as_the_output(record: DvcRepo) -> None:
    before = record.snapshot("raw")
    digest = record.record("raw", before)
    (record.folder / "dvc.lock").unlink()
    write(record.folder / "data" / "raw" / "00000.tar", "changed by hand")
    assert not record.record_again(before, digest)
    shutil.rmtree(record.folder / "data")
    assert not record.record_again(before, digest)
    assert not (record.folder / "dvc.lock").exists()


def test_a_change_of_other_params_makes_nothing_stale(record: DvcRepo) -> None:
    make_both(record)
    before = record.snapshot("model")
    write(record.folder / "params.yaml", "raw: {seed: 1}\nmodel: {width: 64, depth: {down: 2}}\nother: 2\n")
    assert record.record("model", before) == record.digest_of("model")


def test_under_repro_dvc_commits_and_the_digest_is_the_same(record: DvcRepo) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [record.find_program(), "repro"]
    done = subprocess.run(command, cwd=record.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        assert (record.folder / f"digest-{stage}").read_text() == record.digest_of(stage)
    assert record.status() == {}

    # params change while the last stage is made: DVC would record the new ones
    entry = read_stage(record, "model")
    (record.folder / "code" / "network.py").write_text("width = 3")  # so that it is made again
    environment["CHANGE"] = "raw: {seed: 1}\nmodel: {width: 65, depth: {down: 2}}\nother: 1\n"
    done = subprocess.run(command, cwd=record.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert record.deps_of("model")["code"] == hash_path(record.folder / "code", [])
    assert read_stage(record, "model")["params"] == entry["params"]
    assert list(record.status()) == ["model"]


def test_push_to_a_local_remote(record: DvcRepo) -> None:
    make_both(record)
    record.run("remote", "add", "--default", "local", str(record.folder / "remote"))
    assert "pushed" in record.push()
    assert "up to date" in record.push("local")


def test_a_missing_program_and_a_missing_stage_are_clear_errors(record: DvcRepo) -> None:
    with pytest.raises(DvcError, match="make env"):
        DvcRepo(root=record.root, program="/nowhere/dvc").status()
    with pytest.raises(DvcError, match="no stage tuned .* known: model, raw"):
        record.snapshot("tuned")
    assert record.digest_of("raw") is None
    with pytest.raises(DvcError, match=r"dvc commit -f raw failed \(\d+\): "):
        (record.folder / "dvc.yaml").write_text("stages: {raw: {cmd: x, outz: []}}")
        record.run("commit", "-f", "raw")
