"""WebDataset shards as img2dataset writes them: `NNNNN.tar` with KEY.png/.txt/.json, `NNNNN.parquet` with a row for
every image, including failed ones, and `NNNNN_stats.json`. Folders that we select ourselves also have a
`manifest.parquet`.

If the pictures are elsewhere, `NNNNN.ref` in the tar's place says where (refs.py). A shard is given by the path of any
of its files: only the number counts.

Tars are written without times, owners or random order: the same samples give the same bytes. Nothing is ever
extracted to disk under a member's name.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from emu_data.bodies import read_body, read_often
from emu_data.files import atomic_file, file_sha256, fingerprint, quick_digest, write_json, write_parquet
from emu_data.names import name_of, names_mark
from emu_data.quarantine import rebuild_rows
from emu_data.samples import NUM_SHARD_DIGITS, Sample, SampleError, decode_rgb, image_extension, published, read_size

MANIFEST_NAME = "manifest.parquet"
SHARD_NUMBER = re.compile(rf"\d{{{NUM_SHARD_DIGITS},}}")


def shard_name(index: int) -> str:
    """Return the five digits that name shard `index`."""
    return f"{index:0{NUM_SHARD_DIGITS}d}"


def write_shard(directory: Path, index: int, samples: Iterable[Sample], rows: pd.DataFrame) -> Path:
    """Write shard `index` and return the tar's path.

    Args:
        samples: the pictures, each written under its key.
        rows: the parquet's rows, one for every requested image, including failed ones. They are written after the
            samples, so that the iterator of samples may complete them.
    Raises ValueError if a sample has no row, or a key appears twice.

    The tar is renamed last: a shard whose tar exists is complete.
    """
    directory = Path(directory)
    tar_path = directory / f"{shard_name(index)}.tar"
    keys = list(rows["key"])
    known = set(keys)
    if len(known) != len(keys):
        raise ValueError(f"shard {shard_name(index)}: the rows have repeated keys; give each image its own key")
    seen: set[str] = set()
    with atomic_file(tar_path) as temporary:
        # only names that a ustar header cannot hold (over 100 bytes, or not ASCII) get a pax header
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for sample in samples:
                if sample.key not in known or sample.key in seen:
                    raise ValueError(f"shard {shard_name(index)}: sample {sample.key} has no row, or appears twice")
                seen.add(sample.key)
                name = name_of(sample.key)
                _add(tar, f"{name}.{image_extension(sample.image)}", sample.image)
                _add(tar, f"{name}.txt", sample.caption.encode("utf-8"))
                _add(tar, f"{name}.json", _to_json(sample.meta))
        write_parquet(tar_path.with_suffix(".parquet"), _typed(rows), names_mark(seen))
        counts = {str(status): int(count) for status, count in rows["status"].value_counts().items()}
        stats = {"count": len(rows), "successes": counts.get("success", 0), "status_dict": counts}
        write_json(directory / f"{shard_name(index)}_stats.json", stats)
    return tar_path


def list_shards(directory: Path) -> list[Path]:
    """Return the tars and refs of a folder in name order, one per shard, without temporary files."""
    found = {path.stem: path for suffix in ("ref", "tar") for path in Path(directory).glob(f"*.{suffix}")}
    return [path for stem, path in sorted(found.items()) if SHARD_NUMBER.fullmatch(stem)]


def shard_digest(path: Path) -> str:
    """Return 16 hexadecimal digits that identify a shard's bytes: its parquet, and its tar or reference.

    A tar is read by files.quick_digest; the files that a reference points to are not read.
    """
    files = [Path(path).with_suffix(suffix) for suffix in (".parquet", ".tar", ".ref")]
    return fingerprint(
        [(f.suffix, file_sha256(f) if f.suffix == ".parquet" else quick_digest(f)) for f in files if f.is_file()]
    )


def read_samples(path: Path, on_error: Callable[[SampleError], None] | None = None) -> Iterator[Sample]:
    """Yield a shard's samples, those of a tar in its order; pictures are not decoded.

    Samples that cannot be read are reported to `on_error` and the others still yielded; without `on_error`, the first
    raises ValueError. The readable beginning of a truncated tar is kept; the damage is reported for each row whose
    sample is lost or, if there is none, for the tar itself (bodies.TAR_KEY). Raises OSError if a store or server fails
    temporarily (time-outs, broken connections), since then the samples are not at fault.
    """

    def report(error: SampleError) -> None:
        if on_error is None:
            raise ValueError(f"{path}: {error.key}: {error.reason}: {error.detail}")
        on_error(error)

    return read_body(Path(path), report)


def read_wanted(path: Path, wanted: Container[str]) -> Iterator[Sample]:
    """Yield the readable samples of a shard whose keys are `wanted`; others are skipped unread if the tar can seek."""
    return read_often(Path(path), wanted)


def read_rows(path: Path) -> pd.DataFrame:
    """Return the parquet rows of a shard or, without a parquet, rows made from its tar. Raises ValueError if there is
    no such shard.
    """
    parquet = Path(path).with_suffix(".parquet")
    if parquet.is_file():
        return pd.read_parquet(parquet)
    if not any(parquet.with_suffix(suffix).exists() for suffix in (".tar", ".ref")):
        raise ValueError(f"{parquet} is missing, and so is its tar: there is no such shard")
    return rebuild_rows(parquet, "no_parquet: the row was made from the tar")


def iter_rows(directory: Path, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """Yield the rows of a folder one shard at a time, in its parquet's order, with the column `shard` (its digits).

    columns: None for all; columns that a shard lacks are null. Raises ValueError if there are no shards.
    """
    shards = list_shards(directory)
    if not shards:
        raise ValueError(f"{directory} holds no shards (NNNNN.tar or NNNNN.ref, with NNNNN.parquet)")
    for path in shards:
        rows = read_rows(path) if columns is None else _read_columns(path, columns)
        yield rows.assign(shard=path.stem)


def read_rows_of(directory: Path, keys: Sequence[str]) -> pd.DataFrame:
    """Return the rows of `keys` in that order, with `shard`; only these and one shard's rows are in memory at a time.
    Raises ValueError, which names the first missing keys, if some have no row.
    """
    wanted = set(keys)
    parts: list[pd.DataFrame] = []
    num_found = 0
    for path in find_shards(Path(directory), wanted):
        rows = read_rows(path)
        parts.append(rows[rows["key"].isin(wanted)].assign(shard=path.stem))
        num_found += len(parts[-1])
        if num_found == len(wanted):
            break
    found = pd.concat(parts).set_index("key", drop=False) if parts else pd.DataFrame(index=[])
    missing = sorted(wanted - set(found.index))
    if missing:
        raise ValueError(f"{directory}: {len(missing)} keys have no row, the first are {missing[:3]}")
    return found.loc[list(keys)]


def read_many(directory: Path, keys: Sequence[str]) -> dict[str, Sample]:
    """Return the samples of `keys` from a folder of shards, opening only shards that hold one. Raises ValueError, which
    names the first missing keys, if some cannot be read.
    """
    found = {sample.key: sample for sample in iter_samples(directory, keys)}
    missing = sorted(set(keys) - found.keys())
    if missing:
        raise ValueError(f"{directory}: {len(missing)} keys have no readable sample, the first are {missing[:3]}")
    return found


def iter_samples(directory: Path, keys: Sequence[str] | None = None) -> Iterator[Sample]:
    """Yield the readable samples of `keys`, one shard at a time, without opening other shards. Without `keys`, yield
    all readable samples.
    """
    if keys is None:
        for path in list_shards(directory):
            yield from read_samples(path, on_error=lambda error: None)
        return
    wanted = set(keys)
    missing = set(keys)
    for path in find_shards(Path(directory), wanted):
        if not missing:
            return
        for sample in read_body(path, lambda error: None, wanted):
            missing.discard(sample.key)
            yield sample
            if not missing:
                return


def read_images(directory: Path, keys: Sequence[str], size: int) -> np.ndarray:
    """Return the pictures of `keys`, in that order, as uint8 (N, size, size, 3), values 0..255.

    Each is cropped to its central square and resized with Lanczos, the usual preparation of a training picture.
    """
    images = np.empty((len(keys), size, size, 3), np.uint8)
    samples = read_many(directory, keys)
    for position, key in enumerate(keys):
        images[position] = square(decode_rgb(samples[key].image), size)
    return images


def square(image: Image.Image, size: int) -> np.ndarray:
    """Return the central square of an RGB picture, resized with Lanczos, as uint8 (size, size, 3)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


def write_subset(
    source: Path,
    out: Path,
    keys: Sequence[str],
    samples_per_shard: int,
    columns: pd.DataFrame | None = None,
    texts: pd.DataFrame | None = None,
    change: Callable[[Sample], bytes | None] | None = None,
) -> pd.DataFrame:
    """Copy `keys` of the shards in `source` into new shards in `out` and write `out`/manifest.parquet.

    Keys and rows stay as they were, and captions too unless `texts` has others. So do the bytes of pictures in formats
    that every browser and every Pillow opens; others become PNGs (samples.published). The order is that of `keys`.

    Args:
        out: an empty folder (pass the temporary folder of `atomic_dir`).
        columns: `key`, and the columns that the manifest should have besides key, shard and caption.
        texts: `key` and `caption` for each of `keys`, and the columns that rows and manifest should have besides.
        change: returns the file of a sample's new picture, None to leave it; the rows then have its size.
    Returns the manifest. Raises ValueError if a key has no row or no readable sample.
    """
    rows = read_rows_of(source, keys)
    captions: dict[Any, str] = {}
    if texts is not None:
        told = texts.set_index("key")
        rows = rows.assign(**{name: told[name].reindex(rows.index) for name in told.columns})
        captions = told["caption"].to_dict()
    manifest: list[dict[str, Any]] = []
    for shard, start in enumerate(range(0, len(keys), samples_per_shard)):
        part = list(keys[start : start + samples_per_shard])
        found = read_many(source, part)
        part_rows = rows.loc[part].drop(columns="shard")
        samples = [
            replace(found[key], image=published(found[key].image), caption=captions.get(key, found[key].caption))
            for key in part
        ]
        changed = {} if change is None else {sample.key: change(sample) for sample in samples}
        samples = [replace(sample, image=changed.get(sample.key) or sample.image) for sample in samples]
        for key, image in changed.items():
            if image is not None:
                part_rows.loc[key, ["width", "height"]] = read_size(image)
        write_shard(out, shard, samples, part_rows)
        manifest += [{"key": s.key, "shard": shard_name(shard), "caption": s.caption} for s in samples]
    frame = pd.DataFrame(manifest, columns=["key", "shard", "caption"])
    if texts is not None:
        frame = frame.merge(texts.drop(columns="caption"), on="key", how="left", validate="one_to_one")
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


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows; a column whose values have several types, as rows of different shards may, becomes text."""
    rows = rows.copy()
    for column in rows.columns[[pd.api.types.is_object_dtype(dtype) for dtype in rows.dtypes]]:
        try:
            pa.array(rows[column], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            texts = [_to_text(value) for value in rows[column]]
            rows[column] = pd.array(texts, dtype="string")
    return rows


def _to_text(value: Any) -> str | None:
    if isinstance(value, (dict, list, np.ndarray)):
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        return json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str)
    return None if pd.isna(value) else str(value)


def _to_json(meta: dict[str, Any]) -> bytes:
    def dump(as_ascii: bool) -> str:
        return json.dumps(meta, sort_keys=True, ensure_ascii=as_ascii, default=str)  # dates, decimals

    try:
        return dump(as_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold but UTF-8 cannot
        return dump(as_ascii=True).encode("utf-8")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults: time 0, owner 0, mode 0644
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def find_shards(directory: Path, wanted: set[str]) -> Iterator[Path]:
    """Yield the shards that may hold one of `wanted`, according to the manifest, the digits that begin a raw key, or
    else their parquets."""
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
