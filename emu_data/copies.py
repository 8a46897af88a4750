"""Copies of remote shards on this machine's disk, for trainings that read their pictures many times.

A copy is a folder with the shard's tar and its parquet. When the copies become larger than a limit, those that were
used longest ago are removed; a process that is reading one keeps its bytes until it closes them. Processes of a machine
share the folder.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from emu_data.bodies import tar_store
from emu_data.files import atomic_file, fingerprint
from emu_data.refs import read_ref


@dataclass(frozen=True)
class Copies:
    """Copies of shards in `folder`, of at most `max_bytes` together, or of the one that is in use if it is larger."""

    folder: Path
    max_bytes: int

    def of(self, shard: Path) -> Path:
        """Return a path by which the shard can be read fast: that of a copy if its tar is not on this machine, else
        `shard` itself. Raises OSError if the tar cannot be fetched."""
        ref = shard.with_suffix(".ref")
        if shard.with_suffix(".tar").is_file() or not ref.is_file() or read_ref(ref).kind != "tar":
            return shard
        store = tar_store(shard)
        if store.is_local:
            return shard
        parquet = shard.with_suffix(".parquet")
        written = [path.stat().st_mtime_ns for path in (ref, parquet) if path.is_file()]
        copy = self.folder / fingerprint([store.address, written]) / shard.with_suffix(".tar").name
        with suppress(FileNotFoundError):
            os.utime(copy)  # used now
            return copy
        if parquet.is_file():
            with atomic_file(copy.with_suffix(".parquet")) as partial:
                shutil.copyfile(parquet, partial)
        with atomic_file(copy) as partial, store.open() as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        self._make_room(copy)
        return copy

    def _make_room(self, kept: Path) -> None:
        """Remove the copies that were used longest ago until the limit holds."""
        found: list[tuple[float, int, Path]] = []
        for tar in self.folder.glob("*/*.tar"):
            with suppress(FileNotFoundError):  # another process has removed it
                stat = tar.stat()
                found.append((stat.st_mtime, stat.st_size, tar))
        total = sum(size for _, size, _ in found)
        for _, size, tar in sorted(found):
            if total <= self.max_bytes:
                return
            if tar != kept:
                shutil.rmtree(tar.parent, ignore_errors=True)
                total -= size
