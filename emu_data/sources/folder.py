"""A folder of pictures with their captions beside them (NAME.jpg with NAME.txt), packed into shards."""

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from tqdm import tqdm

from emu_data.files import atomic_dir
from emu_data.records import (
    IMAGE_EXTENSIONS,
    RAW_COLUMNS,
    STATUS_FAILED,
    STATUS_SUCCESS,
    DecodeError,
    Sample,
    image_extension,
    make_key,
)
from emu_data.shards import write_shard
from emu_data.sources import check_target, write_origin

SOURCE = "folder"


def pack_folder(folder: Path, out: Path, samples_per_shard: int = 1000, progress: bool = True) -> int:
    """Write the pictures under `folder` as shards into `out` (replaced if it was made from a folder); return
    their number.

    Bytes are kept as they are, in the order of the relative paths, which become the column `url`. A picture
    without a readable caption, or a file that is no picture, has a row with the reason and no sample. Raises
    ValueError where there are no pictures at all, or `out` holds another corpus.
    """
    folder = Path(folder)
    check_target(out, SOURCE)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(IMAGE_EXTENSIONS)})")
    bar = tqdm(paths, desc="packing", unit="picture", disable=not progress, file=sys.stderr)
    rows: list[dict[str, Any]] = []
    samples: list[Sample] = []
    with atomic_dir(out) as target:
        write_origin(target, SOURCE, folder.name)
        for number, path in enumerate(bar):
            shard, index = divmod(number, samples_per_shard)
            row, data = _read(path, folder, make_key(shard, index))
            rows.append(row)
            if row["status"] == STATUS_SUCCESS:
                samples.append(Sample(row["key"], data, row["caption"], row))
            if index == samples_per_shard - 1 or number == len(paths) - 1:
                write_shard(target, shard, samples, _typed(rows))
                rows, samples = [], []
    return len(paths)


def _read(path: Path, folder: Path, key: str) -> tuple[dict[str, Any], bytes]:
    row: dict[str, Any] = dict.fromkeys(RAW_COLUMNS)
    row |= {"url": path.relative_to(folder).as_posix(), "key": key, "status": STATUS_FAILED}
    data = path.read_bytes()
    row["sha256"] = hashlib.sha256(data).hexdigest()
    try:
        row["caption"] = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        image_extension(data)
        row["width"], row["height"] = Image.open(io.BytesIO(data)).size
    except FileNotFoundError:
        row["error_message"] = f"no caption: {path.with_suffix('.txt').name} is missing"
    except UnicodeDecodeError as error:
        row["error_message"] = f"the caption is no UTF-8: {error}"
    except DecodeError as error:
        row["error_message"] = f"{error.reason}: {error}"
    else:
        row |= {"original_width": row["width"], "original_height": row["height"], "status": STATUS_SUCCESS}
    return row, data


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    counts = ["width", "height", "original_width", "original_height"]
    text = [column for column in RAW_COLUMNS if column not in counts]
    return pd.DataFrame(rows).astype({**dict.fromkeys(text, "string"), **dict.fromkeys(counts, "Int64")})
