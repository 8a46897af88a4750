"""Toy shards for tests: coloured squares with their names."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from emu_data.samples import Sample, make_key
from emu_data.shards import iter_rows, write_shard
from emu_data.signals.looks import describe_picture

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60), "yellow": (230, 210, 40)}


def encode(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of the picture's file; `options` are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def read_all_rows(directory: Path) -> pd.DataFrame:
    """Return the rows of all shards of a folder, in key order, with `shard`."""
    table = pd.concat(list(iter_rows(directory)), ignore_index=True)
    return table.sort_values("key", kind="stable", ignore_index=True)


def write_toy_shards(folder: Path, num_images: int, side: int = 48) -> tuple[Path, Path]:
    """Write one shard and a parquet of its keys and captions; return both paths."""
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


def draw_picture(seed: int, side: int = 64) -> Image.Image:
    """Return a picture of 4 x 4 soft patches of random colours with two discs on them: no two are alike."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    for _ in range(2):
        x, y, radius = (float(share) * side for share in rng.uniform((0.2, 0.2, 0.08), (0.8, 0.8, 0.2)))
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def draw_looks(num: int, seed: int = 0) -> list[str | None]:
    """Return the looks of `num` such pictures; another seed gives others."""
    return [describe_picture(draw_picture(1000 * seed + i))[0] for i in range(num)]


def toy_values(keys: list[str], **columns: Any) -> pd.DataFrame:
    """Return measured values of pictures that no gate rejects and none of which copies another; `columns` replace
    them."""
    num = len(keys)
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
        "looks": draw_looks(num),
        "detail": 0.5,
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
