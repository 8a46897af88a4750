"""DVC records which bytes: `dvc commit` after an asset has written, and the md5 that Dagster and MLflow then
use.

DVC is called as a program from an environment of its own and only here (docs/decisions, field notes on why).

The one digest of a stage is the md5 of its out as DVC writes it to dvc.lock (32 hex digits, and ".dir" for a
directory). A stage with several outs has the md5 of the JSON list [{"md5": …, "path": …}, …] sorted by path.
"""

import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from emu_dagster.layout import project_root

ALWAYS_IGNORED = (".dvc", ".git", ".hg")  # DVC's own defaults
CHUNK = 1 << 20  # bytes read at a time


class DvcError(Exception):
    """DVC is missing, failed, or was about to record something that is not what happened."""


@dataclass(frozen=True)
class Snapshot:
    """What a stage is about to read: its params as values, and each dep's md5 and look (see `look_at`)."""

    stage: str
    params: Mapping[str, Any]
    deps: Mapping[str, str]
    looks: Mapping[str, str]


class DvcRecord(dg.ConfigurableResource):
    """Records stages of the project's dvc.yaml.

    `program`: empty takes .venv-dvc/bin/dvc of the project or beside the running environment, else `dvc` on
    the PATH. `root`: empty takes the project's.
    """

    program: str = ""
    root: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.root) if self.root else project_root()

    def find_program(self) -> str:
        """Path of the dvc program. Raises DvcError when there is none."""
        places = [self.folder / ".venv-dvc", Path(sys.prefix).parent / ".venv-dvc"]
        candidates = [self.program] if self.program else [str(place / "bin" / "dvc") for place in places]
        for candidate in [*candidates, *([] if self.program else ["dvc"])]:
            if found := shutil.which(candidate):
                return found
        raise DvcError(f"no dvc at {' or '.join(candidates)}: `make env` installs it, `emu doctor` looks for it")

    def run(self, *arguments: str) -> str:
        """Run dvc in the project and return what it printed. Raises DvcError with DVC's own last line."""
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        command = [self.find_program(), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.startswith("ERROR")]
            reason = (lines or [(done.stderr or done.stdout).strip() or "no message"])[0].removeprefix("ERROR: ")
            raise DvcError(f"dvc {' '.join(arguments)} failed ({done.returncode}): {reason}")
        return done.stdout

    def snapshot(self, stage: str) -> Snapshot:
        """Take down, before the work starts, what `stage` reads. Raises DvcError when dvc.yaml has no such
        stage.

        A dep that another stage wrote has the md5 of dvc.lock (reading it is quick at any size); other deps,
        such as code, are hashed here.
        """
        definition = self._stage(stage)
        outs = {out["path"]: out["md5"] for made in self._lock().values() for out in made.get("outs", [])}
        deps = {}
        for path in definition.get("deps", []):
            deps[path] = outs.get(path) or hash_path(self.folder / path, self._ignored())
        looks = {path: look_at(self.folder / path) for path in deps}
        return Snapshot(stage, self._read_params(definition.get("params", [])), deps, looks)

    def record(self, stage: str, before: Snapshot) -> str:
        """Commit what `stage` wrote and return its digest (see the module).

        Under `dvc repro` (DVC_STAGE is set) DVC commits by itself and holds the lock: only the digest is
        computed, the way DVC does.

        Raises DvcError, and leaves dvc.lock as it was, when params or deps are no longer those of `before`:
        DVC hashes them now, and would record that these outs came from those.
        """
        self._refuse_changes(before, self.snapshot(stage), "changed while {stage} was being made")
        if os.environ.get("DVC_STAGE"):
            outs = [_path_of(out) for out in self._stage(stage).get("outs", [])]
            return combine({path: hash_path(self.folder / path, self._ignored()) for path in outs})
        lock = self.folder / "dvc.lock"
        earlier = lock.read_bytes() if lock.exists() else None
        self.run("--wait-for-lock", "commit", "-f", stage)
        committed = self.deps_of(stage)
        try:
            after = Snapshot(stage, before.params, committed, before.looks)
            self._refuse_changes(before, after, "is not what dvc.lock says, so {stage} was made from unrecorded bytes")
        except DvcError:
            if earlier is None:
                lock.unlink()
            else:
                temporary = lock.with_name(f".{lock.name}.tmp-{os.getpid()}")
                temporary.write_bytes(earlier)
                os.replace(temporary, lock)
            raise
        return combine(self._outs(stage))

    def digest_of(self, stage: str) -> str | None:
        """The digest of `stage` in dvc.lock; None when it was never recorded."""
        outs = self._outs(stage)
        return combine(outs) if outs else None

    def deps_of(self, stage: str) -> dict[str, str]:
        """path -> md5 of what `stage` was made from, as dvc.lock has it; empty when it was never recorded."""
        return {dep["path"]: dep["md5"] for dep in self._lock().get(stage, {}).get("deps", [])}

    def status(self) -> dict[str, Any]:
        """What differs from dvc.lock, as `dvc status --json` says it; empty when all is recorded."""
        return json.loads(self.run("status", "--json"))

    def push(self, remote: str = "") -> str:
        """Upload what is recorded to `remote` (empty: the default one); returns DVC's last line."""
        printed = self.run("push", *(["--remote", remote] if remote else []))
        return (printed.strip().splitlines() or ["nothing to push"])[-1]

    def _refuse_changes(self, before: Snapshot, after: Snapshot, what: str) -> None:
        changed = [
            name
            for old, new in (
                (before.params, after.params),
                (before.deps, after.deps),
                (before.looks, after.looks),
            )
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if changed:
            names = ", ".join(dict.fromkeys(changed))
            raise DvcError(f"{names} {what.format(stage=before.stage)}: its output is not recorded. Make it again")

    def _stage(self, stage: str) -> dict[str, Any]:
        path = self.folder / "dvc.yaml"
        stages = _read_yaml(path).get("stages", {})
        if stage not in stages:
            raise DvcError(f"no stage {stage} in {path}; there are: {', '.join(sorted(stages)) or 'none'}")
        definition = dict(stages[stage])
        definition["deps"] = [self._fill(dep) for dep in definition.get("deps", [])]
        return definition

    def _fill(self, text: str) -> str:
        """`text` with ${section.name} replaced by the value in params.yaml, as DVC's templating does."""
        names = re.findall(r"\$\{([\w.]+)\}", text)
        for name, value in self._read_params(names).items() if names else ():
            text = text.replace(f"${{{name}}}", str(value))
        return text

    def _lock(self) -> dict[str, Any]:
        return _read_yaml(self.folder / "dvc.lock").get("stages", {})

    def _outs(self, stage: str) -> dict[str, str]:
        return {out["path"]: out["md5"] for out in self._lock().get(stage, {}).get("outs", [])}

    def _read_params(self, listed: list[Any]) -> dict[str, Any]:
        """The values that dvc.yaml's `params` name: "section" of params.yaml, or {file: [names]}."""
        values: dict[str, Any] = {}
        for item in listed:
            for file, names in (item if isinstance(item, dict) else {"params.yaml": [item]}).items():
                content = _read_yaml(self.folder / file)
                for name in names or content:
                    value: Any = content
                    for part in name.split("."):
                        value = value.get(part) if isinstance(value, dict) else None
                    values[name] = value
        return values

    def _ignored(self) -> list[str]:
        """Patterns of .dvcignore. Only those of names are understood, which is all that ours holds."""
        path = self.folder / ".dvcignore"
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            *ALWAYS_IGNORED,
            *(line.strip() for line in lines if line.strip() and not line.startswith("#")),
        ]


def _read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, empty where there is no file. By libyaml: dvc.lock is read several times an asset, and
    the parser in Python takes a third of a second for it."""
    return (yaml.load(path.read_bytes(), yaml.CSafeLoader) or {}) if path.exists() else {}


def _path_of(out: str | Mapping[str, Any]) -> str:
    """An entry of `outs` is a path, or {path: options}."""
    return out if isinstance(out, str) else next(iter(out))


def combine(outs: Mapping[str, str]) -> str:
    """The one digest of {path: md5}: that of the only out, or the md5 of the sorted list."""
    if len(outs) == 1:
        return next(iter(outs.values()))
    entries = [{"md5": md5, "path": path} for path, md5 in sorted(outs.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def list_files(path: Path, ignored: list[str]) -> list[Path]:
    """The files below a directory that DVC would hash."""
    files: list[Path] = []
    for folder, folders, names in os.walk(path, followlinks=True):
        keep = [name for name in folders if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]
        folders[:] = keep
        files += [Path(folder, name) for name in names if not any(fnmatch.fnmatch(name, p) for p in ignored)]
    return files


def hash_path(path: Path, ignored: list[str]) -> str:
    """The md5 that DVC 3 gives a file or directory (dvc-data's Tree: sorted {md5, relpath} as JSON, ".dir").

    Raises DvcError when there is nothing at `path`.
    """
    if path.is_file():
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()
    if not path.is_dir():
        raise DvcError(f"{path} does not exist: what should have written it has not run")
    entries = [
        {"md5": hash_path(file, ignored), "relpath": file.relative_to(path).as_posix()}
        for file in list_files(path, ignored)
    ]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def look_at(path: Path) -> str:
    """A quick summary that changes when files do: how many, how large, and the newest change (ns)."""
    files = list_files(path, [*ALWAYS_IGNORED, "__pycache__"]) if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.exists()]
    newest = max((stat.st_mtime_ns for stat in stats), default=0)
    return f"{len(stats)} files, {sum(stat.st_size for stat in stats)} bytes, {newest}"
