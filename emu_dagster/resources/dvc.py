"""DVC records which bytes were written: after an asset has written its output, `dvc commit` computes the md5 that
Dagster and MLflow then use.

DVC is called only here, as a program from its own environment (docs/decisions says why).

The digest of a stage is the md5 of its out as DVC writes it to dvc.lock (32 hex digits, and ".dir" for a directory). If
a stage has several outs, it is the md5 of the JSON list [{"md5": …, "path": …}, …] sorted by path.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from emu_dagster.machine.processes import one_at_a_time
from emu_dagster.machine.surroundings import dvc_environment, refuse_surroundings
from emu_dagster.resources.dvc_files import DvcError, combine, hash_path, read_ignored, read_yaml
from emu_dagster.resources.dvc_lock import LockFile, Snapshot, find_repro
from emu_dagster.resources.measured import Measured
from emu_steps.layout import project_root

if TYPE_CHECKING:
    from emu_data.refs import Digest

__all__ = ["DvcError", "DvcRepo", "Snapshot", "combine", "hash_path"]


class DvcRepo(dg.ConfigurableResource):
    """Records stages of the project's dvc.yaml.

    `program`: if empty, .venv-dvc/bin/dvc of the project or next to the running environment, otherwise `dvc` on the
    PATH. `root`: if empty, the project's.
    """

    program: str = ""
    root: str = ""

    @property
    def folder(self) -> Path:
        """The project's folder."""
        return Path(self.root) if self.root else project_root()

    @property
    def lock(self) -> LockFile:
        """The project's dvc.lock."""
        return LockFile(self.folder)

    def find_program(self) -> str:
        """Return the path of the dvc program. Raises DvcError if there is none."""
        places = [self.folder / ".venv-dvc", Path(sys.prefix).parent / ".venv-dvc"]
        candidates = [self.program] if self.program else [str(place / "bin" / "dvc") for place in places]
        for candidate in [*candidates, *([] if self.program else ["dvc"])]:
            if found := shutil.which(candidate):
                return found
        raise DvcError(f"there is no dvc at {' or '.join(candidates)}: `make env` installs it")

    def run(self, *arguments: str) -> str:
        """Run dvc in the project and return what it printed. Raises DvcError with DVC's own message if it fails."""
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
    def digesting(self) -> "Iterator[Digest]":
        """Yield refs.digest_files with the project's memory of hashes (measured.py)."""
        with Measured(self.folder).digesting() as digest:
            yield digest

    @contextmanager
    def hold(self, stage: str) -> Iterator[None]:
        """Lock `stage` while this process makes it; another process that is to make it prints which process holds the
        lock, and waits.
        """
        with one_at_a_time(self.lock.own / f"{stage}.lock", f"making {stage}"):
            yield

    def snapshot(self, stage: str) -> Snapshot:
        """Note what `stage` reads, before the work starts.

        A dep that another stage wrote must have the md5 that dvc.lock records. Its bytes are hashed unless the files
        look as they did when they were last hashed.

        Raises DvcError if dvc.yaml has no such stage, if DVC cannot work in the project's folder, or if a dep is not
        what dvc.lock says, because then it would be unknown afterwards what was read.
        """
        from emu_data.refs import changed_references

        refuse_surroundings(self.folder)
        definition = self._stage(stage)
        outs = {out["path"]: (name, out) for name, made in self.lock.stages().items() for out in made.get("outs", [])}
        measured, entries, looks = Measured(self.folder), {}, {}
        for path in definition["deps"]:
            looks[path], entries[path] = measured.see(self.folder / path)
            maker, out = outs.get(path, ("", {}))
            if out and entries[path]["md5"] != out["md5"]:
                raise DvcError(
                    f"{path} is not what {maker} wrote according to dvc.lock, so it would be unknown what {stage} was "
                    f"made from: `emu materialize {maker}` records it, `dvc checkout {path}` restores what is recorded"
                )
            with measured.digesting() as digest:
                changed = changed_references(self.folder / path, digest)
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise DvcError(
                    f"{changed[0]}{more}, which {path} refers to, has changed since {maker or 'it'} registered it, so "
                    f"it would be unknown what {stage} was made from: `emu materialize {maker or 'raw_corpus'}` "
                    "registers it as it is now; to keep the corpus as it was, restore the files"
                )
        return Snapshot(stage, self._read_params(definition["params"]), entries, looks, definition["outs"])

    def changed_since(self, before: Snapshot) -> list[str]:
        """Return the names of the params and deps of `before` that have changed since. A dep that changed while a stage
        read it may have been read partly before and partly after the change; the record says what it was at the start.
        """
        now = self._read_params([{file: list(values)} for file, values in before.files.items()])
        params = [
            name for file, values in before.files.items() for name, value in values.items() if now[file][name] != value
        ]
        measured = Measured(self.folder)
        deps = [path for path, look in before.looks.items() if measured.look(self.folder / path) != look]
        return [*params, *deps]

    def record(self, stage: str, before: Snapshot) -> str:
        """Commit what `stage` wrote and return its digest (see the module's docstring).

        dvc.lock then holds the params and deps of `before`, even if they have changed meanwhile: the output was made
        from these, and DVC and Dagster then both consider the stage out of date.

        Under `dvc repro` (DVC_STAGE is set) DVC itself commits: only the digest is computed, in the same way as DVC
        does, and the next process corrects what DVC writes.
        """
        if os.environ.get("DVC_STAGE"):
            ignored = read_ignored(self.folder)
            with self.lock.guard(before, writer=find_repro()):
                return combine({path: hash_path(self.folder / path, ignored) for path in before.outs})
        measured = Measured(self.folder)
        looks = {path: measured.look(self.folder / path) for path in before.outs}
        with self.lock.guard(before):
            # --no-relink: otherwise DVC removes an out that is a file and copies it back from its cache, and a kill in
            # between would lose it
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
        """Record an output that is already on disk, without making it again; return whether anything was recorded.

        before: what the materialisation read, see `Snapshot.describe`. digest: the digest of what it wrote. Nothing is
        done if dvc.lock already has this record, or if something else is on disk.
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
        """Return the digest of `stage` in dvc.lock; None if it was never recorded."""
        outs = self._outs(stage)
        return combine(outs) if outs else None

    def deps_of(self, stage: str) -> dict[str, str]:
        """Return path -> md5 of what `stage` was made from, according to dvc.lock; empty if it was never recorded."""
        return {dep["path"]: dep["md5"] for dep in self.lock.stages().get(stage, {}).get("deps", [])}

    def status(self) -> dict[str, Any]:
        """Return what differs from dvc.lock, as `dvc status --json` reports it; empty if everything is recorded."""
        self.repair()
        return json.loads(self.run("--wait-for-lock", "status", "--json"))

    def push(self, remote: str = "") -> str:
        """Upload what is recorded to `remote` (empty: the default one); return DVC's last line. Raises DvcError, which
        lists the remotes, if there is no such remote.
        """
        refuse_surroundings(self.folder)
        self.repair()
        known = [line.split()[0] for line in self.run("remote", "list").splitlines() if line.strip()]
        if remote not in ("", *known) or not known:
            wanted = f"no DVC remote {remote!r}" if remote else "no DVC remote"
            raise DvcError(
                f"there is {wanted}; known: {', '.join(known) or 'none'}; `dvc remote add --default NAME ADDRESS` "
                "adds one to .dvc/config"
            )
        printed = self.run("push", *(["--remote", remote] if remote else []))
        return (printed.strip().splitlines() or ["nothing to push"])[-1]

    def repair(self) -> list[str]:
        """Repair what killed processes left in DVC's files; return a sentence for each repair."""
        return [*self.lock.repair(), *self.lock.repair_rwlock()]

    def _stage(self, stage: str) -> dict[str, Any]:
        """Return the stage's deps and outs as paths, and its params as dvc.yaml lists them."""
        path = self.folder / "dvc.yaml"
        stages = read_yaml(path).get("stages", {})
        if stage not in stages:
            raise DvcError(f"there is no stage {stage} in {path}; known: {', '.join(sorted(stages)) or 'none'}")
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
        """Return file -> name -> value for what a stage's `params` list: "section" (of params.yaml) or {file:
        [names]}."""
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
