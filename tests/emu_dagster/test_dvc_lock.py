"""What kill -9 leaves in DVC's files, and that the next command repairs it."""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from emu_dagster.resources.dvc import DvcError, DvcRepo, combine
from emu_dagster.resources.dvc_files import dump_yaml, parse_yaml
from emu_dagster.resources.dvc_lock import Snapshot

NOBODY = "elsewhere-not:1:1"  # of another machine: assumed to be alive
DEAD = f"{os.uname().nodename}:999999999:0"
# Stands in for dvc: writes the first KEEP bytes of the new dvc.lock in place, as DVC does, and kills its caller.
KILLED = """#!/bin/sh
head -c "$KEEP" new.lock > dvc.lock
kill -9 $PPID
"""


def out(path: str, size: int, nfiles: int = 0) -> dict:
    md5 = f"{abs(hash((path, size))):032x}"[:32]
    entry = {"path": path, "hash": "md5", "md5": md5 + ".dir" * bool(nfiles), "size": size}
    return {**entry, "nfiles": nfiles} if nfiles else entry


EARLIER = {
    "raw": {"cmd": "make raw", "params": {"params.yaml": {"raw": {"seed": 1}}}, "outs": [out("data/raw", 12, 2)]},
    "card": {"cmd": "make card", "deps": [out("data/raw", 12, 2)], "outs": [out("data/card.json", 5)]},
}
MODEL = {
    "cmd": "make model",
    "deps": [out("data/raw", 12, 2)],
    "params": {"params.yaml": {"model": {"width": 64, "rate": 1e-05}}},
    "outs": [out("data/model", 100, 10), out("data/sheet.png", 31)],
}
RAW = {name: value for name, value in MODEL["deps"][0].items() if name in ("md5", "size", "nfiles")}
BEFORE = Snapshot("model", MODEL["params"], {"data/raw": RAW}, {}, ("data/model", "data/sheet.png"))


def write_lock(folder: Path, stages: dict) -> bytes:
    content = dump_yaml({"schema": "2.0", "stages": stages})
    (folder / "dvc.lock").write_bytes(content)
    return content


@pytest.fixture
def record(project: Path) -> DvcRepo:
    (project / ".dvc" / "tmp").mkdir(parents=True)
    (project / "dvc.yaml").write_text(
        "stages: {model: {cmd: make model, params: [model], outs: [data/model, data/sheet.png]}}"
    )
    (project / "params.yaml").write_text("model: {width: 64, rate: 1e-05}")
    return DvcRepo(root=str(project))


def journal(record: DvcRepo, earlier: bytes, writer: str = DEAD, before: Snapshot | None = BEFORE) -> None:
    record.lock.own.mkdir(exist_ok=True)
    described = before.describe() if before else None
    record.lock.journal.write_text(json.dumps({"writer": writer, "earlier": earlier.decode(), "before": described}))


@pytest.mark.parametrize("new", [MODEL, {**MODEL, "outs": [out("data/model", 7, 1), out("data/sheet.png", 1)]}])
@pytest.mark.parametrize("had_model", [False, True])
def test_any_part_of_a_new_lock_is_replaced_by_the_earlier_one(record: DvcRepo, new: dict, had_model: bool) -> None:
    """Cut anywhere: a stage is never lost, and a digest is always the old or the new one."""
    before = {**EARLIER, "model": {**MODEL, "cmd": "old"}, "last": EARLIER["card"]} if had_model else EARLIER
    earlier = write_lock(record.folder, before)
    whole = write_lock(record.folder, {**before, "model": new})
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]  # what is left is still YAML here
    for cut in sorted({*ends, *(end - 1 for end in ends), *range(0, len(whole), 29)}):
        journal(record, earlier)
        (record.folder / "dvc.lock").write_bytes(whole[:cut])
        record.repair()
        expected = earlier if cut < len(whole) else whole
        now = (record.folder / "dvc.lock").read_bytes()
        assert parse_yaml(now) == parse_yaml(expected), f"cut at {cut}: {whole[:cut][-40:]!r}"
        assert not record.lock.journal.exists()


def test_the_very_first_lock_cut_off_counts_as_none(record: DvcRepo) -> None:
    record.lock.own.mkdir()
    record.lock.journal.write_text(json.dumps({"writer": DEAD, "earlier": None, "before": BEFORE.describe()}))
    (record.folder / "dvc.lock").write_bytes(b"")
    assert record.repair() and not (record.folder / "dvc.lock").exists()
    assert record.digest_of("model") is None


@pytest.mark.parametrize("keep", ["0", "100", "100000"])
def test_a_kill_inside_the_commit(record: DvcRepo, keep: str) -> None:
    """The recording process and its dvc die; the next one reads what was recorded before, or all of it."""
    earlier = write_lock(record.folder, EARLIER)
    new = dump_yaml({"schema": "2.0", "stages": {**EARLIER, "model": {**MODEL, "deps": []}}}).replace(
        b"    deps: []\n", b""
    )
    (record.folder / "new.lock").write_bytes(new)
    program = record.folder / "dvc"
    program.write_text(KILLED)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    code = (
        "from emu_dagster.resources.dvc import DvcRepo\n"
        f"record = DvcRepo(root={record.root!r}, program={str(program)!r})\n"
        "record.record('model', record.snapshot('model'))\n"
    )
    environment = os.environ | {"KEEP": keep, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=record.folder)
    assert done.returncode == -signal.SIGKILL
    assert (record.folder / "dvc.lock").read_bytes() == new[: int(keep)]
    assert record.digest_of("card") == EARLIER["card"]["outs"][0]["md5"]
    assert (record.folder / "dvc.lock").read_bytes() == (new if keep == "100000" else earlier)


def test_a_kill_after_the_commit_does_not_leave_wrong_inputs(record: DvcRepo) -> None:
    """DVC has recorded what params.yaml said when the work was done; the journal has what it said before."""
    earlier = write_lock(record.folder, EARLIER)
    dvcs = {**MODEL, "params": {"params.yaml": {"model": {"width": 128}}}}
    write_lock(record.folder, {**EARLIER, "model": dvcs})
    journal(record, earlier, before=Snapshot("model", MODEL["params"], {"data/raw": {"md5": "0", "size": 1}}, {}))
    record.repair()
    found = yaml.safe_load((record.folder / "dvc.lock").read_text())["stages"]["model"]
    assert found["params"] == {
        "params.yaml": {"model": {"width": 64, "rate": "1e-05"}}
    }  # a number to DVC, but not to PyYAML
    assert found["deps"] == [{"path": "data/raw", "hash": "md5", "md5": "0", "size": 1}]
    assert list(found) == ["cmd", "deps", "params", "outs"]


def test_an_old_entry_does_not_get_the_inputs_of_work_that_was_not_recorded(record: DvcRepo) -> None:
    earlier = write_lock(record.folder, {**EARLIER, "model": MODEL})
    other = write_lock(record.folder, {**EARLIER, "model": MODEL, "another": EARLIER["card"]})
    journal(record, earlier, before=Snapshot("model", {"params.yaml": {"model": {"width": 1}}}, {}, {}))
    record.repair()
    assert (record.folder / "dvc.lock").read_bytes() == other


def test_while_another_process_writes_the_earlier_lock_is_read(record: DvcRepo) -> None:
    earlier = write_lock(record.folder, EARLIER)
    journal(record, earlier, writer=NOBODY)
    (record.folder / "dvc.lock").write_bytes(b"schema:")
    assert record.digest_of("card") == EARLIER["card"]["outs"][0]["md5"]
    assert (record.folder / "dvc.lock").read_bytes() == b"schema:"


def test_repairing_waits_for_a_dvc_that_outlived_its_parent(record: DvcRepo) -> None:
    earlier = write_lock(record.folder, EARLIER)
    new = dump_yaml({"schema": "2.0", "stages": {**EARLIER, "model": MODEL}})
    journal(record, earlier)
    (record.folder / "dvc.lock").write_bytes(new[:50])
    with (record.lock.tmp / "lock").open("a") as orphan:
        fcntl.flock(orphan, fcntl.LOCK_EX)
        repairing = threading.Thread(target=record.repair)
        repairing.start()
        time.sleep(0.5)
        assert repairing.is_alive()
        (record.folder / "dvc.lock").write_bytes(new)
    repairing.join(10)
    assert (record.folder / "dvc.lock").read_bytes() == new


@pytest.mark.parametrize("content", [b"", b"schema: '2.0'\nstages:\n  raw: [", b"schema", b"stages: 3\n"])
def test_an_unreadable_lock_without_a_journal_is_set_aside(record: DvcRepo, content: bytes) -> None:
    """As an earlier version left it: what is on disk is then recorded again, see test_dvc."""
    (record.folder / "dvc.lock").write_bytes(content)
    assert "unreadable" in " ".join(record.repair())
    assert (record.folder / "dvc.lock.unreadable").read_bytes() == content
    assert record.digest_of("raw") is None


RWLOCKS = {
    "empty": "",
    "half": '{"write": {"/data/raw": {"pid": 1',
    "of another form": '["write"]',
    "of a dead process": '{"write": {"%s": {"pid": 999999999, "cmd": "dvc commit"}}, "read": {}}',
    "of a process that came later": '{"write": {"%s": {"pid": PID, "cmd": "dvc commit"}}, "read": {"x": []}}',
}


@pytest.mark.parametrize("name", RWLOCKS)
def test_locks_of_dead_processes_stop_nobody(project: Path, name: str) -> None:
    """With the real dvc. Process ids are reused, in a restarted container almost always."""
    record = DvcRepo(root=str(project))
    record.run("init", "--no-scm")
    (project / "dvc.yaml").write_text("stages: {raw: {cmd: make raw, params: [raw], outs: [data/raw]}}")
    (project / "params.yaml").write_text("raw: 1")
    (project / "data/raw").mkdir(parents=True)
    (project / "data/raw/file").write_text("bytes")
    rwlock = record.lock.tmp / "rwlock"
    rwlock.write_text(RWLOCKS[name].replace("%s", str(project / "data/raw")).replace("PID", str(os.getpid())))
    os.utime(rwlock, (0, 0))
    (record.lock.tmp / "lock").write_text(" 999999999\n")
    (record.lock.tmp / "rwlock.lock").write_text(" 999999999\n")
    assert record.record("raw", record.snapshot("raw")) == record.digest_of("raw")
    assert record.status() == {}


def test_a_dvc_that_fails_leaves_the_lock_as_it_was(record: DvcRepo) -> None:
    earlier = write_lock(record.folder, EARLIER)
    program = record.folder / "dvc"
    program.write_text("#!/bin/sh\nprintf sche > dvc.lock\necho 'ERROR: no space left' >&2\nexit 1\n")
    program.chmod(0o755)
    failing = DvcRepo(root=record.root, program=str(program))
    with pytest.raises(DvcError, match="no space left"):
        failing.record("model", failing.snapshot("model"))
    assert (record.folder / "dvc.lock").read_bytes() == earlier
    assert not record.lock.journal.exists()


def test_the_digest_of_a_cut_entry_is_never_given(record: DvcRepo) -> None:
    """`combine` of fewer outs than the stage has would be the digest of another stage."""
    write_lock(record.folder, {**EARLIER, "model": MODEL})
    assert record.digest_of("model") == combine({o["path"]: o["md5"] for o in MODEL["outs"]})
