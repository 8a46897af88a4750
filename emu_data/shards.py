"""WebDataset shards as img2dataset writes them: `NNNNN.tar` of KEY.png/.txt/.json, `NNNNN.parquet` with a row
for every image including the failed ones, `NNNNN_stats.json`; and `manifest.parquet` in folders that we
select ourselves.

Tars are written without times, owners or random order: the same samples give the same bytes. Nothing is ever
extracted to disk by a member's name.
"""

import io
import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.files import atomic_file, write_json, write_parquet
from emu_data.records import (
    IMAGE_EXTENSIONS,
    NUM_SHARD_DIGITS,
    RecordError,
    Sample,
    decode_rgb,
    image_extension,
)

MANIFEST_NAME = "manifest.parquet"
_SHARD_NAME = re.compile(rf"\d{{{NUM_SHARD_DIGITS},}}\.tar")


def shard_name(index: int) -> str:
    """Return the five digits that name shard `index`."""
    return f"{index:0{NUM_SHARD_DIGITS}d}"


def write_shard(directory: Path, index: int, samples: Iterable[Sample], rows: pd.DataFrame) -> Path:
    """Write shard `index` and return the tar's path.

    Args:
        samples: the pictures, each written under its key.
        rows: the parquet's rows, one for every image that was asked for, the failed ones too.
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
                meta = json.dumps(sample.meta, sort_keys=True, ensure_ascii=False)
                _add(tar, f"{sample.key}.{image_extension(sample.image)}", sample.image)
                _add(tar, f"{sample.key}.txt", sample.caption.encode("utf-8"))
                _add(tar, f"{sample.key}.json", meta.encode("utf-8"))
        write_parquet(tar_path.with_suffix(".parquet"), rows)
        counts = {str(status): int(count) for status, count in rows["status"].value_counts().items()}
        stats = {"count": len(rows), "successes": counts.get("success", 0), "status_dict": counts}
        write_json(directory / f"{shard_name(index)}_stats.json", stats)
    return tar_path


def list_shards(directory: Path) -> list[Path]:
    """Return the tars of a folder in name order; unfinished ones (temporary names) are not among them."""
    return sorted(path for path in Path(directory).glob("*.tar") if _SHARD_NAME.fullmatch(path.name))


def read_samples(tar_path: Path, on_error: Callable[[RecordError], None] | None = None) -> Iterator[Sample]:
    """Yield a shard's samples in the tar's order; pictures are not decoded.

    What cannot be read goes to `on_error` and the rest is still yielded; without `on_error` it raises
    ValueError. A truncated tar keeps its good prefix: the first missing sample is reported with reason
    `truncated`.
    """

    def report(key: str, reason: str, detail: str) -> None:
        if on_error is None:
            raise ValueError(f"{tar_path}: {key or 'tar'}: {reason}: {detail}")
        on_error(RecordError(key, reason, detail))

    seen: set[str] = set()
    for key, parts, problem in _read_groups(Path(tar_path)):
        if problem is not None:
            report(key, *problem)
            continue
        if key in seen:
            report(key, "duplicate_key", "the tar holds this key more than once; the first is taken")
            continue
        seen.add(key)
        image = next((parts[extension] for extension in IMAGE_EXTENSIONS if extension in parts), None)
        if image is None:
            report(key, "no_image", f"only {sorted(parts)}")
            continue
        if "txt" not in parts:
            report(key, "no_caption", f"only {sorted(parts)}")
            continue
        try:
            caption = parts["txt"].decode("utf-8")
            meta = json.loads(parts["json"].decode("utf-8")) if "json" in parts else {}
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
            report(key, "bad_text", str(error))
            continue
        yield Sample(key, image, caption, meta)


def read_rows(path: Path) -> pd.DataFrame:
    """Return the parquet rows of a shard, given its parquet or its tar."""
    parquet = Path(path).with_suffix(".parquet")
    if not parquet.is_file():
        raise ValueError(f"{parquet} is missing: a shard needs its parquet beside its tar")
    return pd.read_parquet(parquet)


def read_all_rows(directory: Path) -> pd.DataFrame:
    """Return the rows of all shards of a folder, in key order, with the column `shard` (five digits)
    added.
    """
    frames = [read_rows(tar).assign(shard=tar.stem) for tar in list_shards(directory)]
    if not frames:
        raise ValueError(f"{directory} holds no shards (NNNNN.tar with NNNNN.parquet)")
    return pd.concat(frames, ignore_index=True).sort_values("key", kind="stable", ignore_index=True)


def read_many(directory: Path, keys: Sequence[str]) -> dict[str, Sample]:
    """Return the samples of `keys` from a folder of shards. Raises ValueError naming the keys that are not
    there.
    """
    wanted = set(keys)
    found: dict[str, Sample] = {}
    manifest = Path(directory) / MANIFEST_NAME
    shards = list_shards(directory)
    if manifest.is_file():
        names = set(read_manifest(directory).query("key in @wanted")["shard"])
        shards = [tar for tar in shards if tar.stem in names]
    else:
        # A raw shard's number is the head of its keys: look there first.
        heads = {key[:NUM_SHARD_DIGITS] for key in wanted}
        shards.sort(key=lambda tar: tar.stem not in heads)
    for tar in shards:
        if len(found) == len(wanted):
            break
        for sample in read_samples(tar, on_error=lambda error: None):  # what is missing is reported below
            if sample.key in wanted:
                found[sample.key] = sample
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
    rows = read_all_rows(source).set_index("key", drop=False)
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


def _read_groups(tar_path: Path) -> Iterator[tuple[str, dict[str, bytes], tuple[str, str] | None]]:
    """Yield (key, extension -> bytes, problem) for each run of members that share a key."""
    key, parts = "", {}
    try:
        with tarfile.open(tar_path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                name = posixpath.normpath(member.name)
                if name.startswith(("/", "../")):
                    yield "", {}, ("bad_path", f"member {member.name!r} points out of the tar")
                    continue
                member_key, _, extension = posixpath.basename(name).partition(".")
                if member_key != key:
                    if parts:
                        yield key, parts, None
                    key, parts = member_key, {}
                file = tar.extractfile(member)
                assert file is not None
                parts[extension.lower()] = file.read()
            # tarfile takes a file that is cut between two members for whole: a whole one ends in blocks of
            # zeros.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                yield key, {}, ("truncated", "the tar has no end")
                return
    except (tarfile.TarError, EOFError, OSError) as error:
        yield key, {}, ("truncated", f"{type(error).__name__}: {error}")
        return
    if parts:
        yield key, parts, None
