"""What files and folders were measured to be, and how they looked then: gigabytes are hashed once."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from emu_dagster.machine.processes import one_at_a_time
from emu_dagster.resources.dvc_files import look_at, measure, read_ignored
from emu_data.files import write_json

Entry = dict[str, Any]  # md5, size in bytes and, of a folder, nfiles: as DVC has them


class Measured:
    """The memory of the project in `root`, .dvc/tmp/emu/measured.json. It may be deleted; it is read when asked."""

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
        """How a file or folder looks now (dvc_files.look_at)."""
        return look_at(path, self._ignored)

    def see(self, path: Path) -> tuple[str, Entry]:
        """How a file or folder looks now, and what DVC measures of it; read only where it looks other than when it was
        last measured.

        Raises DvcError where there is nothing.
        """
        look = self.look(path)
        known = self._known.get(str(path))
        if known and known["look"] == look:
            return look, known["entry"]
        entry = measure(path, self._ignored)
        if self.look(path) == look:  # else it changed while it was read
            self.learn({path: (look, entry)})
        return look, entry

    def learn(self, found: dict[Path, tuple[str, Entry]]) -> None:
        """Remembers looks and entries that somebody else has measured."""
        if not (self.root / ".dvc").is_dir():
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.file.with_suffix(".lock"), "noting how files look"):
            self.__dict__.pop("_known", None)  # another process may have learnt meanwhile
            self._known.update({str(path): {"look": look, "entry": entry} for path, (look, entry) in found.items()})
            write_json(self.file, self._known)
