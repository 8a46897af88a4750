"""Keeps dvc.lock whole and true, although DVC writes it in place and hashes inputs only when the work is done.

Before DVC may write it, a journal is put next to DVC's own locks: the earlier bytes, which process is about to write,
and what the stage really read. If that process dies, the next one settles the journal: a half-written dvc.lock is
replaced by the earlier bytes, and the stage's entry gets the inputs that it really had.
"""

import fcntl
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import yaml

from emu_dagster.machine.processes import describe_process, is_alive, one_at_a_time
from emu_dagster.resources.dvc_files import dump_yaml, parse_yaml
from emu_data.files import atomic_file, write_json

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.1  # between two attempts to take one of DVC's locks; chosen here


@dataclass(frozen=True)
class Snapshot:
    """What a stage reads, noted before it starts.

    files: the values of params, by the file that has them and their dotted names. entries: for each dep its md5, size
    and, for a folder, nfiles, as dvc.lock holds them. looks: see `dvc_files.look_at`. outs: paths that it writes.
    """

    stage: str
    files: Mapping[str, Mapping[str, Any]]
    entries: Mapping[str, Mapping[str, Any]]
    looks: Mapping[str, str]
    outs: tuple[str, ...] = ()

    @property
    def params(self) -> dict[str, Any]:
        """Dotted name -> value, for all files together."""
        return {name: value for values in self.files.values() for name, value in values.items()}

    @property
    def deps(self) -> dict[str, str]:
        """path -> md5"""
        return {path: entry["md5"] for path, entry in self.entries.items()}

    def describe(self) -> dict[str, Any]:
        """Return plain values for a materialisation's metadata, enough to record it again (`DvcRepo.record_again`)."""
        return {
            "stage": self.stage,
            "params": {file: dict(values) for file, values in self.files.items()},
            "deps": {path: dict(entry) for path, entry in self.entries.items()},
            "outs": list(self.outs),
        }

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> "Snapshot":
        """Return the snapshot that `describe` described, without `looks`."""
        return cls(described["stage"], described["params"], described["deps"], {}, tuple(described["outs"]))


class LockFile:
    """dvc.lock of the project in `folder`, and the journal, in .dvc/tmp/emu/, which git and DVC ignore."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "dvc.lock"
        self.tmp = folder / ".dvc" / "tmp"
        self.own = self.tmp / "emu"
        self.journal = self.own / "journal.json"

    def stages(self) -> dict[str, Any]:
        """Return stage -> entry, not to be changed; while another process lets DVC write, the earlier entries."""
        self.repair()
        before = self._read_journal()
        content = self._content()
        during = before or self._read_journal()  # another process may have begun one while we read
        if during is not None:
            content = during["earlier"].encode() if during["earlier"] is not None else None
        return _stages(content)

    @contextmanager
    def guard(self, before: Snapshot | None, writer: psutil.Process | None = None) -> Iterator[None]:
        """Let DVC write dvc.lock inside the `with` block, one process at a time. Afterwards, whatever happened,
        dvc.lock is complete, and the entry of `before`'s stage has the params and deps of `before`.

        writer: the process that will write after the block (the `dvc repro` that runs us), if any; its journal stays
        for the next process.
        """
        with one_at_a_time(self.own / "record.lock", f"recording {before.stage if before else 'stages'} in dvc.lock"):
            self._settle()
            self.repair_rwlock()
            earlier = self._content()
            journal = {
                "writer": describe_process(writer),
                "earlier": earlier.decode() if earlier is not None else None,
                "before": before.describe() if before else None,
            }
            with atomic_file(self.journal) as partial:  # not `write_json`, which would sort the params
                partial.write_text(json.dumps(journal))
            try:
                yield
            finally:
                if writer is None:
                    self._settle(mine=True)

    def repair(self) -> list[str]:
        """Repair what a killed process left; return a sentence for each repair. Fast if there is nothing to repair."""
        journal = self._read_journal()
        if journal is None and _is_lock(self._content()):
            return []
        if journal is not None and self._is_written_by_another(journal):
            return []
        with one_at_a_time(self.own / "record.lock", "repairing dvc.lock"):
            return [*self.repair_rwlock(), *self._settle()]

    def repair_rwlock(self) -> list[str]:
        """Repair DVC's list of which process reads and writes what: delete it if a killed dvc left it half written, and
        remove entries whose process id now belongs to a process younger than the list. (DVC itself drops entries of
        dead processes.)
        """
        path = self.tmp / "rwlock"
        if not path.is_file() or not path.stat().st_size:
            path.unlink(missing_ok=True)
            return []
        with _dvc_lock(self.tmp / "rwlock.lock"):
            try:
                listed = json.loads(path.read_text())
                written = path.stat().st_mtime
                readers = {p: [i for i in infos if _wrote(i, written)] for p, infos in listed.get("read", {}).items()}
                writers = {p: info for p, info in listed.get("write", {}).items() if _wrote(info, written)}
            except (ValueError, AttributeError, KeyError, TypeError):
                path.unlink()
                return [_say("removed a half-written .dvc/tmp/rwlock, which a killed dvc had left")]
            kept = {"read": {p: infos for p, infos in readers.items() if infos}, "write": writers}
            if kept == {"read": listed.get("read", {}), "write": listed.get("write", {})}:
                return []
            write_json(path, kept)
            return [_say("removed the entries of dead processes from .dvc/tmp/rwlock")]

    def _settle(self, mine: bool = False) -> list[str]:
        """End a journal whose writer has ended, or which is ours (`mine`)."""
        journal, done = self._read_journal(), []
        if journal is not None and not mine and self._is_written_by_another(journal):
            return []
        with _dvc_lock(self.tmp / "lock"):  # a dvc whose parent was killed may still be writing
            content = self._content()
            if journal is None:
                if not _is_lock(content):
                    aside = self.path.with_name("dvc.lock.unreadable")
                    self.path.replace(aside)
                    done.append(
                        _say(f"dvc.lock could not be read and is now {aside.name}; what it recorded is missing")
                    )
                return done
            earlier = journal["earlier"].encode() if journal["earlier"] is not None else None
            before = Snapshot.from_description(journal["before"]) if journal["before"] else None
            if content != earlier and not _is_whole(content, earlier, before):
                self._replace(earlier)
                done.append(_say("dvc.lock was half written; it has its earlier bytes again"))
            elif content != earlier and before is not None:
                self._stamp(before, earlier)
            self.journal.unlink(missing_ok=True)
            return done

    def _stamp(self, before: Snapshot, earlier: bytes | None) -> None:
        """Set the params and deps in the stage's entry, which DVC has just written, to those of `before`."""
        content = parse_yaml(self._content() or b"")
        entry = content["stages"].get(before.stage)
        if entry is None or entry == (_stages(earlier).get(before.stage)):
            return
        deps = {dep["path"]: dep for dep in entry.get("deps", [])}
        true_deps = [
            # DVC's own entry if it has the same md5: it may hold more, for example that a file is executable
            deps[path] if deps.get(path, {}).get("md5") == found["md5"] else {"path": path, "hash": "md5", **found}
            for path, found in sorted(before.entries.items())
        ]
        true = {
            "deps": true_deps,
            "params": {file: dict(sorted(values.items())) for file, values in sorted(before.files.items()) if values},
        }
        if all(entry.get(part, type(value)()) == value for part, value in true.items()):
            return
        parts = {"cmd": entry["cmd"], **{name: value for name, value in true.items() if value}}
        content["stages"][before.stage] = parts | {
            name: entry[name] for name in entry if name not in ("deps", "params")
        }
        self._replace(dump_yaml(content))

    def _is_written_by_another(self, journal: Mapping[str, Any]) -> bool:
        """Return whether another process, or another thread of this one, is about to write. A `dvc repro` that waits
        for us does not write now.
        """
        return is_alive(journal["writer"]) and journal["writer"] not in map(
            describe_process, psutil.Process().parents()
        )

    def _read_journal(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            return json.loads(self.journal.read_text())
        return None

    def _content(self) -> bytes | None:
        with suppress(FileNotFoundError):
            return self.path.read_bytes()
        return None

    def _replace(self, content: bytes | None) -> None:
        if content is None:
            self.path.unlink(missing_ok=True)
        else:
            with atomic_file(self.path) as partial:
                partial.write_bytes(content)


def find_repro() -> psutil.Process:
    """Return the process of the `dvc repro` that runs this one."""
    parents = psutil.Process().parents()
    for parent in parents:
        with suppress(psutil.Error):
            if any(Path(part).name == "dvc" for part in parent.cmdline()):
                return parent
    return parents[0]


@lru_cache(maxsize=8)  # a command asks for the same bytes a hundred times
def _parse(content: bytes) -> Any:
    """Return what a YAML document holds, not to be changed. Raises yaml.YAMLError."""
    return parse_yaml(content)


def _stages(content: bytes | None) -> dict[str, Any]:
    return (_parse(content or b"") or {}).get("stages") or {}


def _is_lock(content: bytes | None) -> bool:
    """Return whether these bytes can be a dvc.lock; None, for no file, can."""
    if content is None:
        return True
    try:
        return isinstance(_parse(content), dict) and isinstance(_stages(content), dict)
    except (yaml.YAMLError, AttributeError):
        return False


def _is_whole(content: bytes | None, earlier: bytes | None, before: Snapshot | None) -> bool:
    """Return whether DVC finished writing `content` over `earlier`, for the stage of `before`. The bytes reach the file
    in blocks, so anything missing is missing at the end: whole stages, or parts of the last one.
    """
    if not content or not content.endswith(b"\n") or not _is_lock(content):
        return False
    stages, known = _stages(content), _stages(earlier)
    if before is not None:
        entry = stages.get(before.stage)
        others = {name: found for name, found in known.items() if name != before.stage}
        if any(stages.get(name) != found for name, found in others.items()):
            return False
        if entry is not None and not {out["path"] for out in _outs(entry)} >= set(before.outs):
            return False
    return set(known) <= set(stages) and all(_is_complete(entry) for entry in stages.values())


def _is_complete(entry: Any) -> bool:
    outs = _outs(entry)
    return bool(outs) and all(
        "size" in out and str(out.get("md5", "")).endswith(".dir") == ("nfiles" in out) for out in outs
    )


def _outs(entry: Any) -> list[dict[str, Any]]:
    outs = entry.get("outs") if isinstance(entry, dict) else None
    return [out for out in outs if isinstance(out, dict) and "path" in out] if isinstance(outs, list) else []


def _wrote(info: Mapping[str, Any], when: float) -> bool:
    """Return whether the process of an entry can be the one that made it: it exists, and did when the list was
    written.
    """
    try:
        return psutil.Process(int(info["pid"])).create_time() <= when + 1
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _dvc_lock(path: Path) -> Iterator[None]:
    """Hold one of DVC's own locks (zc.lockfile: flock on the file), which the system frees if a dvc dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL_SECONDS)
        yield


def _say(what: str) -> str:
    logger.warning(what)
    return what
