"""DVC records which bytes: `dvc commit` after an asset has written, and the md5 that Dagster and MLflow then use.

DVC is called as a program from an environment of its own and only here (docs/decisions, field notes on why).

The one digest of a stage is the md5 of its out as DVC writes it to dvc.lock (32 hex digits, and ".dir" for a
directory). A stage with several outs has the md5 of the JSON list [{"md5": …, "path": …}, …] sorted by path.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from emu_dagster.machine.processes import one_at_a_time
from emu_dagster.machine.surroundings import dvc_environment, refuse_surroundings
from emu_dagster.resources.dvc_files import DvcError, combine, hash_path, read_ignored, read_yaml
from emu_dagster.resources.dvc_lock import LockFile, Snapshot, find_repro
from emu_dagster.resources.measured import Measured
from emu_steps.layout import project_root

__all__ = ["DvcError", "DvcRecord", "Snapshot", "combine", "hash_path"]


class DvcRecord(dg.ConfigurableResource):
    """Records stages of the project's dvc.yaml.

    `program`: empty takes .venv-dvc/bin/dvc of the project or beside the running environment, else `dvc` on the PATH.
    `root`: empty takes the project's.
    """

    program: str = ""
    root: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.root) if self.root else project_root()

    @property
    def lock(self) -> LockFile:
        return LockFile(self.folder)

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
        command = [self.find_program(), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=dvc_environment(self.folder), capture_output=True, text=True
        )
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.startswith("ERROR")]
            reason = (lines or [(done.stderr or done.stdout).strip() or "no message"])[0].removeprefix("ERROR: ")
            raise DvcError(f"dvc {' '.join(arguments)} failed ({done.returncode}): {reason}")
        return done.stdout

    @contextmanager
    def hold(self, stage: str) -> Iterator[None]:
        """While one process makes `stage`, another that wants to says who is at it, and waits."""
        with one_at_a_time(self.lock.own / f"{stage}.lock", f"making {stage}"):
            yield

    def snapshot(self, stage: str) -> Snapshot:
        """Take down, before the work starts, what `stage` reads.

        A dep that another stage wrote has the md5 of dvc.lock, which its bytes must have: they are hashed unless they
        look as when they were last measured.

        Raises DvcError when dvc.yaml has no such stage, when the project lies where DVC cannot work, and when a dep is
        not what dvc.lock says, since then nobody could tell afterwards what was read.
        """
        refuse_surroundings(self.folder)
        definition = self._stage(stage)
        outs = {out["path"]: (name, out) for name, made in self.lock.stages().items() for out in made.get("outs", [])}
        measured, entries, looks = Measured(self.folder), {}, {}
        for path in definition["deps"]:
            looks[path], entries[path] = measured.see(self.folder / path)
            maker, out = outs.get(path, ("", {}))
            if out and entries[path]["md5"] != out["md5"]:
                raise DvcError(
                    f"{path} is not what dvc.lock says {maker} wrote, so nobody could tell what {stage} was made from: "
                    f"`emu materialize {maker}` records it, `dvc checkout {path}` brings back what is recorded"
                )
        return Snapshot(stage, self._read_params(definition["params"]), entries, looks, definition["outs"])

    def changed_since(self, before: Snapshot) -> list[str]:
        """Names of the params and deps of `before` that are no longer what they were. A dep that changed while a stage
        read it may have been read in part before and in part after; the record says what it was at the start."""
        now = self._read_params([{file: list(values)} for file, values in before.files.items()])
        params = [
            name for file, values in before.files.items() for name, value in values.items() if now[file][name] != value
        ]
        measured = Measured(self.folder)
        deps = [path for path, look in before.looks.items() if measured.look(self.folder / path) != look]
        return [*params, *deps]

    def record(self, stage: str, before: Snapshot) -> str:
        """Commit what `stage` wrote and return its digest (see the module).

        dvc.lock then holds the params and deps of `before`, also where they have changed meanwhile: that is what the
        output was made from, and DVC and Dagster both call the stage out of date.

        Under `dvc repro` (DVC_STAGE is set) DVC commits by itself: only the digest is computed, the way DVC does, and
        what DVC then writes is set right by whoever comes next.
        """
        if os.environ.get("DVC_STAGE"):
            ignored = read_ignored(self.folder)
            with self.lock.guard(before, writer=find_repro()):
                return combine({path: hash_path(self.folder / path, ignored) for path in before.outs})
        measured = Measured(self.folder)
        looks = {path: measured.look(self.folder / path) for path in before.outs}
        with self.lock.guard(before):
            # no relink: DVC would remove each single file and copy it back from its cache; a kill in between loses it
            self.run("--wait-for-lock", "commit", "-f", "--no-relink", stage)
        outs = {out["path"]: out for out in self.lock.stages()[stage]["outs"]}
        measured.learn(
            {
                self.folder / path: (look, {name: out[name] for name in ("md5", "size", "nfiles") if name in out})
                for path, out in outs.items()
                if (look := measured.look(self.folder / path)) == looks.get(path)
            }
        )
        return combine({path: out["md5"] for path, out in outs.items()})

    def record_again(self, before: Snapshot, digest: str) -> bool:
        """Records what lies on disk and was made before, without making it: whether it was done.

        before: what the materialisation read, see `Snapshot.describe`; digest: what it wrote. Nothing is done where
        dvc.lock holds that already, or where what is on disk is something else.
        """
        stage, ignored = before.stage, read_ignored(self.folder)
        paths = self._stage(stage)["outs"]
        if self.digest_of(stage) == digest or not all((self.folder / path).exists() for path in paths):
            return False
        if combine({path: hash_path(self.folder / path, ignored) for path in paths}) != digest:
            return False
        with self.hold(stage):
            self.record(stage, Snapshot(stage, before.files, before.entries, {}, paths))
        return True

    def digest_of(self, stage: str) -> str | None:
        """The digest of `stage` in dvc.lock; None when it was never recorded."""
        outs = self._outs(stage)
        return combine(outs) if outs else None

    def deps_of(self, stage: str) -> dict[str, str]:
        """path -> md5 of what `stage` was made from, as dvc.lock has it; empty when it was never recorded."""
        return {dep["path"]: dep["md5"] for dep in self.lock.stages().get(stage, {}).get("deps", [])}

    def status(self) -> dict[str, Any]:
        """What differs from dvc.lock, as `dvc status --json` says it; empty when all is recorded."""
        self.mend()
        return json.loads(self.run("--wait-for-lock", "status", "--json"))

    def push(self, remote: str = "") -> str:
        """Upload what is recorded to `remote` (empty: the default one); returns DVC's last line. DvcError names the
        remotes there are, where there is no such one."""
        refuse_surroundings(self.folder)
        self.mend()
        known = [line.split()[0] for line in self.run("remote", "list").splitlines() if line.strip()]
        if remote not in ("", *known) or not known:
            wanted = f"no DVC remote {remote!r}" if remote else "no DVC remote"
            raise DvcError(
                f"there is {wanted}; there are: {', '.join(known) or 'none'}; `dvc remote add --default NAME ADDRESS` "
                "adds one to .dvc/config"
            )
        printed = self.run("push", *(["--remote", remote] if remote else []))
        return (printed.strip().splitlines() or ["nothing to push"])[-1]

    def mend(self) -> list[str]:
        """Puts right what killed processes left in DVC's files; returns what was done, in words."""
        return [*self.lock.mend(), *self.lock.mend_rwlock()]

    def _stage(self, stage: str) -> dict[str, Any]:
        """The stage's deps and outs as paths, its params as dvc.yaml lists them."""
        path = self.folder / "dvc.yaml"
        stages = read_yaml(path).get("stages", {})
        if stage not in stages:
            raise DvcError(f"no stage {stage} in {path}; there are: {', '.join(sorted(stages)) or 'none'}")
        found = stages[stage]
        return {
            "deps": found.get("deps", []),
            "params": found.get("params", []),
            # an out is a path, or {path: options}
            "outs": tuple(out if isinstance(out, str) else next(iter(out)) for out in found.get("outs", [])),
        }

    def _outs(self, stage: str) -> dict[str, str]:
        return {out["path"]: out["md5"] for out in self.lock.stages().get(stage, {}).get("outs", []) if "md5" in out}

    def _read_params(self, listed: list[Any]) -> dict[str, dict[str, Any]]:
        """The values that dvc.yaml's `params` name, by file: "section" of params.yaml, or {file: [names]}."""
        values: dict[str, dict[str, Any]] = {}
        for item in listed:
            for file, names in (item if isinstance(item, dict) else {"params.yaml": [item]}).items():
                content = read_yaml(self.folder / file)
                for name in names or content:
                    value: Any = content
                    for part in name.split("."):
                        value = value.get(part) if isinstance(value, dict) else None
                    values.setdefault(file, {})[name] = value
        return values
