"""References to pictures that are elsewhere and belong to the user: `NNNNN.ref` in the place of a shard's tar.

It is JSON: {"tar": ADDRESS}, {"files": BASE} for loose pictures that the column `url` names, or {"parquet": ADDRESS,
"column": NAME, "start": the first row}, with fsspec's `options`. For files on this machine it also holds their `md5`:
the user may change them, but the graph must read what was registered (`changed_references`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from emu_data.addresses import Store
from emu_data.files import write_json
from emu_data.samples import STATUS_SUCCESS

Digest = Callable[[Mapping[str, Path]], str]  # name -> path of a reference's files: digest_files, or one with a cache
Kind = Literal["tar", "files", "parquet"]
KINDS: tuple[Kind, ...] = ("tar", "files", "parquet")


@dataclass(frozen=True)
class Reference:
    """What NNNNN.ref at `path` says: where the pictures of a shard are. place: for a parquet, its `column` and `start`.
    md5: of `files()` as they were registered, None if they are not on this machine.
    """

    path: Path
    kind: Kind
    store: Store
    place: Mapping[str, str | int] = field(default_factory=dict)
    md5: str | None = None

    def write(self, digest: Digest | None = None) -> None:
        """Write the reference, with the `digest` of its files if they are on this machine."""
        files = self.files() if digest else {}
        md5 = {"md5": digest(files)} if digest and files else {}
        write_json(self.path, {self.kind: self.store.address, **self.place, "options": self.store.options} | md5)

    def files(self) -> dict[str, Path]:
        """The files on this machine that it refers to, by name: the tar, the parquet, or each picture that the shard's
        rows name. They need not exist.
        """
        if not self.store.is_local:
            return {}
        if self.kind != "files":
            return {self.path.with_suffix(f".{self.kind}").name: Path(self.store.address)}
        rows = pq.read_table(self.path.with_suffix(".parquet"), columns=["url", "status"]).to_pylist()
        names = sorted({row["url"] for row in rows if row["status"] == STATUS_SUCCESS})  # no other picture is read
        named = {name: self.store.resolve(name) for name in names}
        return {name: Path(address) for name, address in named.items() if self.store.at(address).is_local}


def read_ref(path: Path) -> Reference:
    """Read NNNNN.ref. Raises ValueError if it is not a valid reference."""
    try:
        where = json.loads(Path(path).read_text(encoding="utf-8"))
        kind: Kind = next(kind for kind in KINDS if isinstance(where.get(kind), str))
        address, options = where[kind], where.get("options", {})
    except (ValueError, AttributeError, StopIteration):
        raise ValueError(
            f'{path} is not a reference: it must hold {{"tar": ADDRESS}}, {{"files": BASE}} or {{"parquet": ADDRESS}}; '
            "materialise raw_corpus again"
        ) from None
    place = {name: where[name] for name in ("column", "start") if name in where}
    return Reference(Path(path), kind, Store(address, options), place, where.get("md5"))


def digest_files(files: Mapping[str, Path]) -> str:
    """Return the md5 of one file, "missing" if it cannot be read; for several files, the md5 of the list of their names
    and md5s (null for a file that cannot be read)."""
    found: dict[str, str | None] = {}
    for name, path in files.items():
        try:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        except OSError:
            found[name] = None
    if len(found) == 1:
        return next(iter(found.values())) or "missing"
    return hashlib.md5(json.dumps(found, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def list_references(folder: Path) -> list[Reference]:
    """Return the references in a folder of shards that hold a digest, in name order."""
    found = (read_ref(path) for path in sorted(Path(folder).glob("*.ref")) if not path.with_suffix(".tar").is_file())
    return [reference for reference in found if reference.md5]


def changed_references(folder: Path, digest: Digest = digest_files) -> list[str]:
    """Return the addresses of the tars, parquets and folders of loose files that a folder of shards refers to and that
    have changed since they were registered."""
    return list(dict.fromkeys(str(r.store) for r in list_references(folder) if digest(r.files()) != r.md5))
