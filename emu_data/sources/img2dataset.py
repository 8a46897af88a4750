"""A corpus that img2dataset has written already: its shards are linked into our folder, nothing is copied
unless asked.
"""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from emu_data.files import atomic_dir
from emu_data.shards import list_shards
from emu_data.sources import check_target, write_origin

SOURCE = "img2dataset"
NEEDED_COLUMNS = ("key", "caption", "status")


def register_shards(source: Path, out: Path, copy: bool = False) -> int:
    """Put the shards of `source` (NNNNN.tar, .parquet, _stats.json) into `out`, and return their number.

    Hard links where the file system allows, else symbolic ones; `copy` copies. Only headers are read. Raises
    ValueError where there are no shards, a parquet is missing or lacks a column, or `out` holds another
    corpus.
    """
    source = Path(source).resolve()
    check_target(out, SOURCE)
    tars = list_shards(source)
    if not tars:
        raise ValueError(f"{source} holds no shards (NNNNN.tar with NNNNN.parquet, as img2dataset writes them)")
    for tar in tars:
        parquet = tar.with_suffix(".parquet")
        if not parquet.is_file():
            raise ValueError(f"{parquet} is missing: run img2dataset with output_format webdataset again")
        missing = sorted(set(NEEDED_COLUMNS) - set(pq.read_schema(parquet).names))
        if missing:
            raise ValueError(f"{parquet} lacks the columns {missing}: set img2dataset's caption_col")
    with atomic_dir(out) as target:
        write_origin(target, SOURCE, source.name)
        for tar in tars:
            for file in (tar, tar.with_suffix(".parquet"), tar.with_name(f"{tar.stem}_stats.json")):
                if file.is_file():
                    _place(file, target / file.name, copy)
    return len(tars)


def _place(file: Path, target: Path, copy: bool) -> None:
    if copy:
        shutil.copy2(file, target)
        return
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without hard links
        target.symlink_to(file)
