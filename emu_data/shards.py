"""WebDataset shards as img2dataset writes them: `NNNNN.tar` of KEY.png/.txt/.json, `NNNNN.parquet` with a row
for every image including the failed ones, `NNNNN_stats.json`; and `manifest.parquet` in folders that we
select ourselves.

The pictures may also lie elsewhere. Then `NNNNN.ref` stands in the tar's place and says where, in JSON: `{"tar":
ADDRESS}`, or `{"files": BASE}` for loose pictures named by the column `url` and captioned by the column `caption`;
`options` are fsspec's (addresses.py). A shard is given by the path of any of its files: only the number counts.

Tars are written without times, owners or random order: the same samples give the same bytes. Nothing is ever
extracted to disk by a member's name.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from emu_data.bodies import read_body
from emu_data.files import atomic_file, file_sha256, fingerprint, quick_digest, write_json, write_parquet
from emu_data.quarantine import rebuild_rows
from emu_data.records import NUM_SHARD_DIGITS, RecordError, Sample, decode_rgb, image_extension

MANIFEST_NAME = "manifest.parquet"
SHARD_NUMBER = re.compile(rf"\d{{{NUM_SHARD_DIGITS},}}")


def shard_name(index: int) -> str:
    """Return the five digits that name shard `index`."""
    return f"{index:0{NUM_SHARD_DIGITS}d}"


def write_shard(directory: Path, index: int, samples: Iterable[Sample], rows: pd.DataFrame) -> Path:
    """Write shard `index` and return the tar's path.

    Args:
        samples: the pictures, each written under its key.
        rows: the parquet's rows, one for every image that was asked for, the failed ones too. They are written after
            the samples: an iterator of samples may fill in what it learns.
    Raises ValueError where a sample has no row, or a key appears twice.

    The tar is renamed last: a shard whose tar is there is complete.
    """
    directory = Path(directory)
    tar_path = directory / f"{shard_name(index)}.tar"
    keys = list(rows["key"])
    known = set(keys)
    if len(known) != len(keys):
        raise ValueError(f"shard {shard_name(index)}: keys appear twice in the rows; give each image its own key")
    seen: set[str] = set()
    with atomic_file(tar_path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                if sample.key not in known or sample.key in seen:
                    raise ValueError(f"shard {shard_name(index)}: sample {sample.key} has no row of its own")
                seen.add(sample.key)
                meta = json.dumps(sample.meta, sort_keys=True, ensure_ascii=False, default=str)  # dates, decimals
                _add(tar, f"{sample.key}.{image_extension(sample.image)}", sample.image)
                _add(tar, f"{sample.key}.txt", sample.caption.encode("utf-8"))
                _add(tar, f"{sample.key}.json", meta.encode("utf-8"))
        write_parquet(tar_path.with_suffix(".parquet"), rows)
        counts = {str(status): int(count) for status, count in rows["status"].value_counts().items()}
        stats = {"count": len(rows), "successes": counts.get("success", 0), "status_dict": counts}
        write_json(directory / f"{shard_name(index)}_stats.json", stats)
    return tar_path


def list_shards(directory: Path) -> list[Path]:
    """Return the tars and refs of a folder in name order, one a shard; temporary names are not among them."""
    found = {path.stem: path for suffix in ("ref", "tar") for path in Path(directory).glob(f"*.{suffix}")}
    return [path for stem, path in sorted(found.items()) if SHARD_NUMBER.fullmatch(stem)]


def shard_digest(path: Path) -> str:
    """Return 16 hexadecimal digits that name a shard's bytes: its parquet's, and its tar's or reference's.

    A tar counts by files.quick_digest; what a reference points to is not looked at.
    """
    files = [Path(path).with_suffix(suffix) for suffix in (".parquet", ".tar", ".ref")]
    return fingerprint(
        [(f.suffix, file_sha256(f) if f.suffix == ".parquet" else quick_digest(f)) for f in files if f.is_file()]
    )


def read_samples(path: Path, on_error: Callable[[RecordError], None] | None = None) -> Iterator[Sample]:
    """Yield a shard's samples, a tar's in its order; pictures are not decoded.

    What cannot be read goes to `on_error` and the rest is still yielded; without `on_error` it raises ValueError. A
    truncated tar keeps its good prefix; the damage is told for each row whose sample it cost, or, where it cost none,
    for the tar itself (bodies.TAR_KEY). Raises OSError where a store or server fails in a way that
    may pass (time-outs, broken connections): that is no fault of the records.
    """

    def report(error: RecordError) -> None:
        if on_error is None:
            raise ValueError(f"{path}: {error.key}: {error.reason}: {error.detail}")
        on_error(error)

    return read_body(Path(path), report)


def read_rows(path: Path) -> pd.DataFrame:
    """Return the parquet rows of a shard; where there is no parquet, rows made from what its tar holds."""
    parquet = Path(path).with_suffix(".parquet")
    if parquet.is_file():
        return pd.read_parquet(parquet)
    if not any(parquet.with_suffix(suffix).exists() for suffix in (".tar", ".ref")):
        raise ValueError(f"{parquet} is missing, and so is its tar: there is no such shard")
    return rebuild_rows(parquet, "no_parquet: the row was made from the tar")


def iter_rows(directory: Path, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """Yield the rows of a folder a shard at a time, in its parquet's order, with the column `shard` (its digits).

    Of `columns`, where given, those that a shard lacks are null. Raises ValueError where there are no shards.
    """
    shards = list_shards(directory)
    if not shards:
        raise ValueError(f"{directory} holds no shards (NNNNN.tar or NNNNN.ref with NNNNN.parquet)")
    for path in shards:
        rows = read_rows(path) if columns is None else _read_columns(path, columns)
        yield rows.assign(shard=path.stem)


def read_rows_of(directory: Path, keys: Sequence[str]) -> pd.DataFrame:
    """Return the rows of `keys` in that order, with `shard`; no more than these and a shard's are in memory. Raises
    ValueError naming the keys that are not there.
    """
    wanted = set(keys)
    parts: list[pd.DataFrame] = []
    num_found = 0
    for path in _find_shards(Path(directory), wanted):
        rows = read_rows(path)
        parts.append(rows[rows["key"].isin(wanted)].assign(shard=path.stem))
        num_found += len(parts[-1])
        if num_found == len(wanted):
            break
    found = pd.concat(parts).set_index("key", drop=False) if parts else pd.DataFrame(index=[])
    missing = sorted(wanted - set(found.index))
    if missing:
        raise ValueError(f"{directory}: {len(missing)} keys have no row, first {missing[:3]}")
    return found.loc[list(keys)]


def read_many(directory: Path, keys: Sequence[str]) -> dict[str, Sample]:
    """Return the samples of `keys` from a folder of shards, opening those alone that hold one. Raises ValueError
    naming the keys that are not there.
    """
    wanted = set(keys)
    found: dict[str, Sample] = {}
    for path in _find_shards(Path(directory), wanted):
        if len(found) == len(wanted):
            break
        # what is missing is reported below
        for sample in read_body(path, lambda error: None, wanted):
            found[sample.key] = sample
            if len(found) == len(wanted):
                break
    missing = sorted(wanted - found.keys())
    if missing:
        raise ValueError(f"{directory}: {len(missing)} keys have no readable sample, first {missing[:3]}")
    return found


def read_images(directory: Path, keys: Sequence[str], size: int) -> np.ndarray:
    """Return the pictures of `keys`, in that order, as uint8 (N, size, size, 3), values 0..255.

    Each is cropped to its central square and resized by Lanczos, the usual preparation of a training picture.
    """
    images = np.empty((len(keys), size, size, 3), np.uint8)
    samples = read_many(directory, keys)
    for position, key in enumerate(keys):
        images[position] = square(decode_rgb(samples[key].image), size)
    return images


def square(image: Image.Image, size: int) -> np.ndarray:
    """Return the central square of an RGB picture as uint8 (size, size, 3)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


def write_subset(
    source: Path,
    out: Path,
    keys: Sequence[str],
    samples_per_shard: int,
    captions: Mapping[str, str] | None = None,
    columns: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Copy `keys` of the shards in `source` into new shards in `out` and write `out`/manifest.parquet.

    Keys, picture bytes and rows stay as they were; the order is that of `keys`.

    Args:
        out: an empty folder (hand in the temporary folder of `atomic_dir`).
        captions: key -> caption to write instead of the one in the source.
        columns: has `key` and what the manifest should carry beside key, shard and caption.
    Returns the manifest.
    """
    rows = read_rows_of(source, keys)
    manifest: list[dict[str, Any]] = []
    for shard, start in enumerate(range(0, len(keys), samples_per_shard)):
        part = list(keys[start : start + samples_per_shard])
        found = read_many(source, part)
        part_rows = rows.loc[part].drop(columns="shard")
        samples = [found[key] for key in part]
        if captions is not None:
            samples = [replace(sample, caption=captions[sample.key]) for sample in samples]
            samples = [replace(sample, meta={**sample.meta, "caption": sample.caption}) for sample in samples]
            part_rows = part_rows.assign(caption=[sample.caption for sample in samples])
        write_shard(out, shard, samples, part_rows)
        manifest += [{"key": s.key, "shard": shard_name(shard), "caption": s.caption} for s in samples]
    frame = pd.DataFrame(manifest, columns=["key", "shard", "caption"])
    if columns is not None:
        frame = frame.merge(columns, on="key", how="left", validate="one_to_one")
    write_manifest(out, frame)
    return frame


def write_manifest(directory: Path, manifest: pd.DataFrame) -> None:
    """Write `manifest` (columns `key`, `shard` and any others) beside the shards it lists."""
    assert {"key", "shard"} <= set(manifest.columns), list(manifest.columns)
    write_parquet(Path(directory) / MANIFEST_NAME, manifest)


def read_manifest(directory: Path) -> pd.DataFrame:
    """Return the manifest of a folder of selected shards."""
    return pd.read_parquet(Path(directory) / MANIFEST_NAME)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults: time 0, owner 0, mode 0644
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _find_shards(directory: Path, wanted: set[str]) -> Iterator[Path]:
    """Yield the shards that may hold one of `wanted`: by manifest, by the head of a raw key, else by their parquets."""
    shards = list_shards(directory)
    if (directory / MANIFEST_NAME).is_file():
        names = set(read_manifest(directory).query("key in @wanted")["shard"])
        yield from (path for path in shards if path.stem in names)
        return
    heads = {key[:length] for length in {len(path.stem) for path in shards} for key in wanted}
    yield from (path for path in shards if path.stem in heads)
    for path in shards:
        if path.stem not in heads and _read_columns(path, ["key"])["key"].isin(wanted).any():
            yield path


def _read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return some columns of a shard's rows without reading the others; those that it lacks are null."""
    parquet = path.with_suffix(".parquet")
    if not parquet.is_file():
        return read_rows(path).reindex(columns=list(columns))
    present = [column for column in columns if column in pq.read_schema(parquet).names]
    return pd.read_parquet(parquet, columns=present).reindex(columns=list(columns))
