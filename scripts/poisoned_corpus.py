"""Makes a corpus in img2dataset's layout from a folder of pictures, with what real corpora have and demos do not:
damaged files, odd formats and captions, rows without pictures and pictures without rows, re-posts, writing.

    python -m scripts.poisoned_corpus PICTURES OUT --num 2500

The caption of a picture is made from its path. OUT/damage.csv says what was done to which key, for you; no program
reads it. docs/first-corpus.md walks through the product with such a corpus.
"""

import csv
import hashlib
import io
import json
import random
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from PIL import Image, ImageDraw, ImageFont, ImageOps

SHARD_SIZE = 500  # rows; img2dataset's default is 10 000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
WORDS = ("SALE", "breaking news", "Happy Birthday!", "© stock photo", "chapter one", "50 % off today")


@dataclass(frozen=True)
class Entry:
    """A sample to be written to a shard. caption: text, or bytes that are not valid text. in_tar, in_parquet: whether
    it is there. twice: whether the tar holds it twice.
    """

    image: bytes
    caption: str | bytes
    suffix: str = "jpg"
    status: str = "success"
    in_tar: bool = True
    in_parquet: bool = True
    twice: bool = False


Damage = Callable[[Entry, random.Random], Entry]


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """Return the bytes of a picture in one of Pillow's formats."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def look(entry: Entry) -> Image.Image:
    """Return the picture of an entry as RGB on white."""
    image = Image.open(io.BytesIO(entry.image)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def changed(how: Callable[[Image.Image, random.Random], Image.Image]) -> Damage:
    """Return a damage that changes the picture by `how`."""
    return lambda entry, rng: replace(entry, image=encode(how(look(entry), rng), quality=90), suffix="jpg")


def written_on(image: Image.Image, rng: random.Random) -> Image.Image:
    """Write words over a picture, with letters a sixth of its height."""
    draw, words = ImageDraw.Draw(image), rng.choice(WORDS)
    font = ImageFont.load_default(max(10, image.height // 6))
    place = (image.width * 0.05, image.height * rng.uniform(0.1, 0.6))
    draw.text(place, words, fill="white", font=font, stroke_width=2, stroke_fill="black")
    return image


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Return the picture without `share` of its width and height on each side."""
    dx, dy = round(image.width * share), round(image.height * share)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def bomb() -> bytes:
    """Return a PNG whose header claims 50 000 x 50 000 px."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"0")), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def animated(entry: Entry, rng: random.Random) -> Entry:
    """Return the entry with a GIF of two frames."""
    first = look(entry).resize((200, 200))
    data = encode(first, "GIF", save_all=True, append_images=[ImageOps.mirror(first)], duration=100)
    return replace(entry, image=data, suffix="gif")


def phone(entry: Entry, rng: random.Random) -> Entry:
    """Return the entry with a JPEG that has a second, small picture inside, as phones and drones make them."""
    image = look(entry)
    preview = image.resize((max(1, image.width // 4), max(1, image.height // 4)))
    return replace(entry, image=encode(image, "MPO", save_all=True, append_images=[preview]), suffix="jpg")


DAMAGES: dict[str, Damage] = {
    "truncated": lambda e, r: replace(e, image=e.image[: len(e.image) // 2]),
    "empty": lambda e, r: replace(e, image=b""),
    "html": lambda e, r: replace(e, image=b"<html><body>404 not found</body></html>"),
    "noise": lambda e, r: replace(e, image=e.image[:200] + r.randbytes(len(e.image) // 2), suffix="png"),
    "bomb": lambda e, r: replace(e, image=bomb(), suffix="png"),
    "animated": animated,
    "phone": phone,
    "cmyk": lambda e, r: replace(e, image=encode(look(e).convert("CMYK"))),
    "deep": lambda e, r: replace(e, image=encode(look(e).convert("L").convert("I;16"), "PNG"), suffix="png"),
    "avif_called_jpg": lambda e, r: replace(e, image=encode(look(e), "AVIF")),
    "webp": lambda e, r: replace(e, image=encode(look(e), "WEBP"), suffix="webp"),
    "exif_garbage": lambda e, r: replace(e, image=encode(look(e), exif=b"Exif\x00\x00garbage"), suffix="jpg"),
    "sliver": changed(lambda image, r: image.resize((image.width, max(8, image.width // 8)))),
    "tiny": changed(lambda image, r: image.resize((40, 40))),
    "blank": changed(lambda image, r: Image.new("RGB", image.size, r.choice(("white", "#eee", "#246")))),
    "text": changed(written_on),
    "mirrored": changed(lambda image, r: ImageOps.mirror(image)),
    "cropped": changed(lambda image, r: cropped(image, 0.03)),
    "bordered": changed(lambda image, r: ImageOps.expand(image, max(2, image.width // 20), "black")),
    "grey": changed(lambda image, r: image.convert("L").convert("RGB")),
    "caption_lines": lambda e, r: replace(e, caption=f"{e.caption}\n\r\nand a second line\twith a tab"),
    "caption_long": lambda e, r: replace(e, caption=f"{e.caption} " * (10_000 // (len(e.caption) + 1) + 1)),
    "caption_empty": lambda e, r: replace(e, caption=""),
    "caption_bytes": lambda e, r: replace(e, caption="caf\u00e9 in winter".encode("latin-1")),
    "caption_scripts": lambda e, r: replace(e, caption="猫 и собака \u202eright to left\u202c 👩\u200d🚀\x00"),
    "failed": lambda e, r: replace(e, status="failed_to_download", in_tar=False),
    "lost": lambda e, r: replace(e, in_tar=False),
    "stranger": lambda e, r: replace(e, in_parquet=False),
    "twin": lambda e, r: replace(e, twice=True),
}
REPOSTS = ("mirrored", "cropped", "bordered", "grey")  # changed copies of a good picture, which stays in the corpus


def main(
    pictures: Annotated[Path, typer.Argument(help="Folder of PNG, JPEG and WebP files, at any depth.")],
    out: Annotated[Path, typer.Argument(help="Folder for the shards; made here.")],
    num: Annotated[int, typer.Option(help="Number of rows, including damaged ones.")] = 2500,
    share: Annotated[float, typer.Option(help="Share of the rows that are damaged, 0..1.")] = 0.25,
    seed: int = 0,
) -> None:
    """Write OUT/NNNNN.tar and .parquet and OUT/damage.csv."""
    rng = random.Random(seed)
    files = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise typer.BadParameter(f"{pictures} holds no pictures ({', '.join(SUFFIXES)})")
    rng.shuffle(files)
    out.mkdir(parents=True, exist_ok=True)
    entries = list(damaged(files, pictures, num, share, rng))
    with (out / "damage.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "damage", "file"])
        for start in range(0, len(entries), SHARD_SIZE):
            number = start // SHARD_SIZE
            part = entries[start : start + SHARD_SIZE]
            keys = [f"{number:05d}{place:04d}" for place in range(len(part))]
            write_shard(out / f"{number:05d}", keys, [entry for _, _, entry in part])
            table.writerows([key, damage, path] for key, (damage, path, _) in zip(keys, part, strict=True) if damage)
    print(f"{len(entries)} rows in {out}, {sum(bool(damage) for damage, _, _ in entries)} of them damaged")


def damaged(
    files: list[Path], top: Path, num: int, share: float, rng: random.Random
) -> Iterator[tuple[str, str, Entry]]:
    """Yield (damage or "", path of the picture, entry), each kind of damage about equally often."""
    kinds = list(DAMAGES)
    for place in range(num):
        path = files[place % len(files)]
        suffix = path.suffix.lower().lstrip(".").replace("jpeg", "jpg")
        entry = Entry(path.read_bytes(), caption_of(path.relative_to(top)), suffix)
        damage = kinds[rng.randrange(len(kinds))] if rng.random() < share else ""
        if damage in REPOSTS:  # a copy of the previous picture, if there is one
            path = files[(place - 1) % len(files)]
            entry = replace(entry, image=path.read_bytes(), caption=caption_of(path.relative_to(top)))
        yield damage, path.relative_to(top).as_posix(), DAMAGES[damage](entry, rng) if damage else entry


def caption_of(path: Path) -> str:
    """Return the words of a path: recreation/sports/ball_01.png -> "ball, sports, recreation"."""
    words = [re.sub(r"[\W\d_]+", " ", part).strip() for part in reversed(path.with_suffix("").parts[-3:])]
    return ", ".join(word for word in words if word) or "a picture"


def write_shard(stem: Path, keys: list[str], entries: list[Entry]) -> None:
    """Write STEM.tar and STEM.parquet as img2dataset does (version 1.45: its columns and statuses)."""
    rows = []
    with tarfile.open(f"{stem}.tar", "w") as tar:
        for key, entry in zip(keys, entries, strict=True):
            caption = entry.caption if isinstance(entry.caption, bytes) else entry.caption.encode("utf-8")
            row = {
                "url": f"https://example.org/{key}.{entry.suffix}",
                "caption": caption.decode("utf-8", "replace"),
                "key": key,
                "status": entry.status,
                "error_message": None if entry.status == "success" else "HTTP Error 404: Not Found",
                **sizes(entry),
                "exif": None,
                "sha256": hashlib.sha256(entry.image).hexdigest() if entry.in_tar else None,
            }
            if entry.in_parquet:
                rows.append(row)
            for _ in range(entry.in_tar + entry.twice):
                add(tar, f"{key}.{entry.suffix}", entry.image)
                add(tar, f"{key}.txt", caption)
                add(tar, f"{key}.json", json.dumps(row).encode())
    pd.DataFrame(rows).to_parquet(f"{stem}.parquet", index=False)


def sizes(entry: Entry) -> dict[str, int | None]:
    """Return width and height as a downloader would note them: null if it could not read them."""
    try:
        with Image.open(io.BytesIO(entry.image)) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError):
        width = height = None
    return {"width": width, "height": height, "original_width": width, "original_height": height}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member with these bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    typer.run(main)
