"""Remembers the md5 and size of files and folders, and how they looked when they were hashed, so that gigabytes are
hashed only once.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_dagster.machine.processes import one_at_a_time
from emu_dagster.resources.dvc_files import look_at, look_at_each, measure, read_ignored
from emu_data.files import fingerprint, write_json

if TYPE_CHECKING:
    from emu_data.refs import Digest

LEARNT_TOGETHER = 100  # digests that a kill can lose; chosen here
Entry = dict[str, Any]  # md5, size in bytes and, for a folder, nfiles, as in dvc.lock


class Measured:
    """The project's memory of hashes, .dvc/tmp/emu/measured.json. It may be deleted, and is read on first use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / ".dvc" / "tmp" / "emu" / "measured.json"

    @cached_property
    def _ignored(self) -> list[str]:
        return read_ignored(self.root)

    @cached_property
    def _known(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.is_file() else {}

    def look(self, path: Path) -> str:
        """Return how a file or folder looks now (dvc_files.look_at), including the files that a folder of shards refers
        to.
        """
        from emu_data.refs import list_references  # imports pyarrow and fsspec, which take a quarter of a second

        look = look_at(path, self._ignored)
        elsewhere = {str(file): file for ref in list_references(path) for file in ref.files().values()}
        return f"{look}; {look_at_each(elsewhere)}" if elsewhere else look

    def see(self, path: Path) -> tuple[str, Entry]:
        """Return how a file or folder looks now, and its md5 and size as DVC records them. It is hashed only if it
        looks different from when it was last hashed.

        Raises DvcError if it does not exist.
        """
        look = self.look(path)
        known = self._known.get(str(path))
        if known and known["look"] == look:
            return look, known["entry"]
        entry = measure(path, self._ignored)
        if self.look(path) == look:  # otherwise it changed while it was being read
            self.learn({path: (look, entry)})
        return look, entry

    @contextmanager
    def digesting(self) -> "Iterator[Digest]":
        """Yield refs.digest_files with a memory: files are read only if they look different from when they were last
        read.
        """
        from emu_data.refs import digest_files

        found: dict[Path, tuple[str, Entry]] = {}

        def digest(files: Mapping[str, Path]) -> str:
            name = Path(f"files {fingerprint([str(path) for path in files.values()])}")
            look = look_at_each(files, strictly=True)
            known = self._known.get(str(name))
            if known and known["look"] == look:
                return known["entry"]["md5"]
            entry = {"md5": digest_files(files)}
            if look_at_each(files, strictly=True) == look:
                found[name] = (look, entry)
            if len(found) == LEARNT_TOGETHER:
                self.learn(found)
                found.clear()
            return entry["md5"]

        try:
            yield digest
        finally:
            if found:
                self.learn(found)

    def learn(self, found: dict[Path, tuple[str, Entry]]) -> None:
        """Remember looks and entries that were measured elsewhere."""
        if not (self.root / ".dvc").is_dir():
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.file.with_suffix(".lock"), "noting how files look"):
            self.__dict__.pop("_known", None)  # another process may have learnt meanwhile
            self._known.update({str(path): {"look": look, "entry": entry} for path, (look, entry) in found.items()})
            write_json(self.file, self._known)
