"""Where the pictures of a shard lie, and how they are read: a tar beside the parquet, a tar elsewhere, loose files.

`NNNNN.ref` in the tar's place says where: {"tar": ADDRESS} or {"files": BASE}, and fsspec's `options`.
"""

import json
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from emu_data.addresses import Options, fetch, is_local, open_stream, resolve
from emu_data.files import write_json
from emu_data.records import IMAGE_EXTENSIONS, STATUS_SUCCESS, RecordError, Sample
from emu_data.tars import MAX_FILE_BYTES, Group, TarDamage, read_groups

TAR_KEY = "tar"  # key of an error that is the tar's own
FILES_AT_ONCE = 32  # loose pictures that are fetched together, and in memory together; chosen here

Report = Callable[[RecordError], None]


def write_ref(directory: Path, name: str, where: Mapping[str, str], options: Options) -> None:
    """Write NAME.ref, which says where the pictures of a shard lie: {"tar": ADDRESS} or {"files": BASE}."""
    assert where.keys() in ({"tar"}, {"files"}), where
    write_json(Path(directory) / f"{name}.ref", {**where, "options": options})


def read_body(path: Path, report: Report, wanted: Container[str] | None = None) -> Iterator[Sample]:
    """Yield the samples of a shard, or those of the keys `wanted`; report what cannot be read (shards.read_samples).

    Raises ValueError where a .ref is none.
    """
    tar, ref = path.with_suffix(".tar"), path.with_suffix(".ref")
    if tar.is_file() or not ref.is_file():
        yield from _read_tar(str(tar), {}, path, report, wanted)
        return
    try:
        where = json.loads(ref.read_text(encoding="utf-8"))
        kind = next(kind for kind in ("tar", "files") if isinstance(where.get(kind), str))
    except (ValueError, AttributeError, StopIteration):
        raise ValueError(f'{ref} is no reference: it must hold {{"tar": ADDRESS}} or {{"files": BASE}}') from None
    if kind == "tar":
        yield from _read_tar(where["tar"], where.get("options", {}), path, report, wanted)
    else:
        yield from _read_files(where["files"], where.get("options", {}), path, report, wanted)


def _read_tar(
    address: str, options: Options, path: Path, report: Report, wanted: Container[str] | None
) -> Iterator[Sample]:
    seen: set[str] = set()
    try:
        with open_stream(address, options) as file:
            for group in read_groups(file, is_local(address), wanted):
                if wanted is not None and group.key not in wanted:
                    continue
                sample = RecordError(group.key, "duplicate_key", "an earlier sample of the tar has this key")
                if group.key not in seen:
                    sample = _sample_of(group)
                seen.add(group.key)
                if isinstance(sample, Sample):
                    yield sample
                else:
                    report(sample)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        _report_damage(path, seen, report, "unreadable", f"{address}: {type(error).__name__}")
    except TarDamage as error:
        _report_damage(path, seen, report, error.reason, str(error))
    except (ValueError, OSError):
        raise
    except Exception as error:  # each client has errors of its own for a broken connection
        raise OSError(f"{address}: {type(error).__name__}: {error}; try again") from error


def _sample_of(group: Group) -> Sample | RecordError:
    parts = group.parts
    if group.problem is not None:
        return RecordError(group.key, *group.problem)
    image = next((parts[extension] for extension in IMAGE_EXTENSIONS if extension in parts), None)
    if image is None:
        return RecordError(group.key, "no_image", f"only {sorted(parts)}")
    if "txt" not in parts:
        return RecordError(group.key, "no_caption", f"only {sorted(parts)}")
    try:
        caption = parts["txt"].decode("utf-8")
        meta = json.loads(parts["json"].decode("utf-8")) if "json" in parts else {}
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        return RecordError(group.key, "bad_text", str(error))
    if not isinstance(meta, dict):
        return RecordError(group.key, "bad_text", "its .json holds no object")
    return Sample(group.key, image, caption, meta)


def _report_damage(path: Path, seen: set[str], report: Report, reason: str, detail: str) -> None:
    """Charge a damaged tar to the rows whose samples were not seen; to the tar itself where there are none."""
    lost: list[str] = []
    parquet = path.with_suffix(".parquet")
    if parquet.is_file():
        rows = pq.read_table(parquet, columns=["key", "status"]).to_pylist()
        lost = [row["key"] for row in rows if row["status"] == STATUS_SUCCESS and row["key"] not in seen]
    for key in lost or [TAR_KEY]:
        report(RecordError(key, reason, detail))


def _read_files(
    base: str, options: Options, path: Path, report: Report, wanted: Container[str] | None
) -> Iterator[Sample]:
    table = pq.read_table(path.with_suffix(".parquet"))
    for start in range(0, len(table), FILES_AT_ONCE):
        asked: list[tuple[str, str, dict[str, Any]]] = []
        for row in table.slice(start, FILES_AT_ONCE).to_pylist():
            if row["status"] != STATUS_SUCCESS or (wanted is not None and row["key"] not in wanted):
                continue
            meta: dict[str, Any] = {
                name: None if isinstance(value, float) and value != value else value for name, value in row.items()
            }
            if not isinstance(meta["url"], str) or not isinstance(meta["caption"], str):
                report(RecordError(meta["key"], "bad_row", "it has no url or no caption"))
                continue
            try:
                asked.append((meta["key"], resolve(base, meta["url"]), meta))
            except ValueError as error:
                report(RecordError(meta["key"], "bad_path", str(error)))
        found = fetch([address for _, address, _ in asked], options, MAX_FILE_BYTES + 1)
        for (key, address, meta), data in zip(asked, found, strict=True):
            if isinstance(data, (FileNotFoundError, IsADirectoryError)):
                report(RecordError(key, "missing_file", address))
            elif isinstance(data, Exception):
                report(RecordError(key, "unreachable", f"{address}: {type(data).__name__}: {data}"))
            elif len(data) > MAX_FILE_BYTES:
                report(RecordError(key, "too_large", f"{address} has more than {MAX_FILE_BYTES} bytes"))
            else:
                yield Sample(key, data, meta["caption"], meta)
