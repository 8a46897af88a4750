"""Toy shards for tests: coloured squares with their names."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.records import Sample, make_key
from emu_data.shards import iter_rows, write_shard

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60), "yellow": (230, 210, 40)}


def encode(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    """The bytes of the picture's file; `options` are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def read_all_rows(directory: Path) -> pd.DataFrame:
    """The rows of all shards of a folder, in key order, with `shard`."""
    table = pd.concat(list(iter_rows(directory)), ignore_index=True)
    return table.sort_values("key", kind="stable", ignore_index=True)


def write_toy_shards(folder: Path, num_images: int, side: int = 48) -> tuple[Path, Path]:
    """Writes one shard and a parquet of its keys and captions; returns both paths."""
    rng = np.random.default_rng(0)
    samples, rows = [], []
    for i in range(num_images):
        name, colour = list(COLOURS.items())[i % len(COLOURS)]
        image = np.full((side, side, 3), 255, np.uint8)
        x, y = rng.integers(4, side // 2, 2)
        image[y : y + side // 3, x : x + side // 3] = colour
        key, caption = make_key(0, i), f"{name} square"
        samples.append(Sample(key, encode(Image.fromarray(image)), caption))
        rows.append({"key": key, "caption": caption, "status": "success", "width": side, "height": side})
    shards = folder / "shards"
    shards.mkdir()
    table = pd.DataFrame(rows)
    write_shard(shards, 0, samples, table)
    table[["key", "caption"]].to_parquet(folder / "rows.parquet")
    return shards, folder / "rows.parquet"


def toy_values(keys: list[str], **columns: Any) -> pd.DataFrame:
    """Measured values of pictures that no gate turns away and none of which copies another; `columns` replace them."""
    rng, num = np.random.default_rng(0), len(keys)
    values = {
        "key": keys,
        "shard": [key[:5] for key in keys],
        "caption": [f"thing [{i}]" for i in range(num)],
        "url": "",
        "status": "success",
        "error_message": pd.NA,
        "error": pd.NA,
        "sha256": [f"{i:064d}" for i in range(num)],
        "stored_sha256": [f"{i:064d}" for i in range(num)],
        "phash": [f"{int.from_bytes(rng.bytes(8), 'big'):016x}" for _ in range(num)],
        "thumbnail": "80" * 48,
        "min_side": 128,
        "aspect": 1.0,
        "num_bytes": 1000,
        "num_words": 3,
        "num_characters": 12,
        "unsafe": 0.0,
        "alignment_rank": 0.9,
        "unmeasured": [""] * num,
    }
    return pd.DataFrame(values | columns)
