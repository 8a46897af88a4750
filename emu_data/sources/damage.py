"""Damages the demo corpus on purpose, as the web damages pictures, so that every gate's precision can be measured.

Each kind is meant for a gate: text → text_area, caption → alignment, sliver and shrink → geometry, duplicate →
duplicate, unsafe → safety (a stand-in: the picture is harmless, only its label is not), failed → readable.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from emu_data.files import write_parquet
from emu_data.sources.damage_shares import DamageShares

DUPLICATE_KINDS = ("exact", "reencoded", "brightness", "rescaled")

# Words from stock sites and memes; none is the name of a subject. Chosen here.
WORDS = (
    "SALE",
    "FREE",
    "50% OFF",
    "CLICK HERE",
    "SAMPLE",
    "Subscribe",
    "watermark",
    "BUY NOW",
    "preview",
    "NEWS 24",
)
TEXT_AREA_RANGE = (0.10, 0.30)  # the share (0..1) of a picture that words cover; chosen here


@dataclass
class Draft:
    """A row of the corpus that has no key yet. damage: "" or a kind. copy_of: index of the draft that it copies."""

    url: str
    caption: str
    concept: str
    subject: str
    style: str
    picture: Image.Image
    original_size: tuple[int, int]
    data: bytes = b""
    damage: str = ""
    detail: str = ""
    copy_of: int | None = None

    def __post_init__(self) -> None:
        self.true_caption = self.caption


def damage_drafts(drafts: list[Draft], shares: DamageShares, rng: np.random.Generator) -> None:
    """Damage drafts in place, as many of each kind as `shares` says, and append the duplicates."""
    num_pictures = len(drafts)
    queue = iter(rng.permutation(num_pictures).tolist())

    def take(share: float) -> list[Draft]:
        return [drafts[next(queue)] for _ in range(round(share * num_pictures))]

    for draft in take(shares.text):
        draft.picture, area = draw_text(draft.picture, rng)
        draft.damage, draft.detail = "text", f"{area:.3f}"
    captions = sorted({draft.caption for draft in drafts})
    for draft in take(shares.caption):
        others = [caption for caption in captions if caption != draft.caption]
        draft.damage, draft.detail = "caption", others[rng.integers(len(others))]
        draft.caption = draft.detail
    for draft in take(shares.sliver):
        draft.picture = crop_sliver(draft.picture, rng)
        draft.damage, draft.original_size = "sliver", draft.picture.size
        draft.detail = "x".join(map(str, draft.picture.size))
    for draft in take(shares.shrink):
        draft.picture = shrink(draft.picture, rng)
        draft.damage, draft.original_size = "shrink", draft.picture.size
        draft.detail = "x".join(map(str, draft.picture.size))
    for draft in take(shares.unsafe):
        draft.damage = "unsafe"
    for draft in take(shares.failed):
        draft.damage, draft.detail = "failed", "HTTP Error 404: Not Found"
    for draft in drafts:
        draft.data = encode_png(draft.picture)
    for number, index in enumerate(next(queue) for _ in range(round(shares.duplicate * num_pictures))):
        source = drafts[index]
        kind = DUPLICATE_KINDS[number % len(DUPLICATE_KINDS)]
        copy = Draft(
            source.url,
            source.caption,
            source.concept,
            source.subject,
            source.style,
            source.picture,
            source.original_size,
        )
        copy.damage, copy.detail, copy.copy_of = "duplicate", kind, index
        if kind == "exact":
            copy.data = source.data
        elif kind == "reencoded":
            copy.data = encode_jpeg(source.picture, quality=85)
        else:
            copy.data = encode_png(copy_nearly(source.picture, kind, rng))
        drafts.append(copy)


def draw_text(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, float]:
    """Write a few lines of words over a picture; return it with the share (0..1) of its area under the lines' boxes."""
    width, height = image.size
    while True:
        target = rng.uniform(*TEXT_AREA_RANGE)
        canvas = image.copy()
        draw = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(size=float(rng.integers(height // 9, height // 5)))
        banded = bool(rng.random() < 0.4)
        area, top = 0.0, float(rng.uniform(0, height * 0.6))
        while area < target and top < height:
            word = WORDS[rng.integers(len(WORDS))]
            left, upper, right, lower = draw.textbbox((0, 0), word, font=font)
            box_width, box_height = right - left, lower - upper
            if box_width > width * 0.97 or top + box_height > height:
                break
            x = float(rng.uniform(0, width - box_width))
            ink, paper = [(20, 20, 20), (255, 255, 255)][:: 1 if rng.random() < 0.5 else -1]
            if banded:
                draw.rectangle(
                    (x - 2, top - 2, x + box_width + 2, top + box_height + 2),
                    fill=paper,
                )
            draw.text(
                (x - left, top - upper),
                word,
                font=font,
                fill=ink,
                stroke_width=0 if banded else 1,
                stroke_fill=paper,
            )
            area += box_width * box_height / (width * height)
            top += box_height + 4
        if TEXT_AREA_RANGE[0] <= area <= TEXT_AREA_RANGE[1]:
            return canvas, area


def crop_sliver(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop a strip with an aspect of 3.3 to 6, horizontal or vertical."""
    short = max(1, round(min(image.size) / rng.uniform(3.3, 6.0)))
    if rng.random() < 0.5:
        top = int(rng.integers(image.height - short + 1))
        return image.crop((0, top, image.width, top + short))
    left = int(rng.integers(image.width - short + 1))
    return image.crop((left, 0, left + short, image.height))


def shrink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a square thumbnail of 24 to 48 px."""
    side = int(rng.integers(24, 49))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def copy_nearly(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Return a copy that people would call the same picture, changed by `kind`: brightness or rescaled."""
    if kind == "brightness":
        return ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.88, 0.95)))
    assert kind == "rescaled", kind
    side = round(image.width * float(rng.choice([0.75, 0.875, 1.25])))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def encode_png(image: Image.Image) -> bytes:
    """Return PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Return JPEG bytes at `quality` 1..95."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


TRUTH_MARK = "emu.truth"  # in the schema of a file that write_truth wrote: a digest of its rows


def write_truth(path: Path, truth: pd.DataFrame) -> None:
    """Write what is known of the damage (no rows if nothing is), after `check_truth` has allowed to replace `path`."""
    write_parquet(path, truth, {TRUTH_MARK: _hash_rows(truth)})


def check_truth(path: Path, truth: pd.DataFrame) -> None:
    """Raise ValueError if `path` holds rows that differ from `truth` and were not written by `write_truth`."""
    if path.is_file():
        table = pq.read_table(path)
        found = _hash_rows(table.to_pandas())
        mark = (table.schema.metadata or {}).get(TRUTH_MARK.encode(), b"").decode()
        if found not in (mark, _hash_rows(truth)):
            raise ValueError(f"{path} is not as raw_corpus wrote it; move it away, then materialise raw_corpus again")


def _hash_rows(frame: pd.DataFrame) -> str:
    return hashlib.sha256(frame.astype("string").to_csv(index=False).encode()).hexdigest()[:16]
