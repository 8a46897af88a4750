"""Pictures with known text: photographs and drawings of 64 to 2 000 px, with words rendered over some of them.

The photographs are bundled with scikit-image and scikit-learn (nothing is downloaded), the drawings are the demo's, the
fonts Matplotlib's. Each picture is a crop of one of them at another size, so that a few sources make many pictures.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emu_data.samples import Sample, make_key
from emu_data.sources.npm import fetch_package
from emu_data.sources.styles import STYLES

# Bundled with scikit-image, without those that show writing (page, text, logo, clock) and without microscopy. The
# astronaut's patches have letters, as pictures from the web do.
SKIMAGE_PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png"),
    *("gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "rocket.jpg", "retina.jpg"),
)
NUM_DRAWINGS = 60
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("STIXGeneral", "STIXGeneralBol", "cmr10", "cmss10", "cmtt10"),
)
WORDS = (
    *("SALE", "FREE", "50% OFF", "click here", "Sample", "Subscribe", "watermark", "BUY NOW", "preview", "news 24"),
    *(
        "When you see it",
        "Happy Monday",
        "limited offer",
        "www.example.com",
        "Chapter 7",
        "OPEN",
        "good morning",
        "No. 12",
    ),
)
SIZES = (64, 96, 128, 200, 256, 384, 512, 768, 1024, 1536, 2000)  # px, the long side


@dataclass(frozen=True)
class Labelled:
    """A picture, and the share of it (0..1) under rendered words, 0 if none were drawn."""

    image: Image.Image
    text_area: float
    is_photograph: bool


def labelled_images(num: int, packages: Path, text_share: float = 0.3, seed: int = 0) -> Iterator[Labelled]:
    """Yield `num` pictures; a share `text_share` (0..1) of them has words over 0.5 to 40 % of the area, most of these
    over more than 8 %. packages: the folder of the demo's packages, which are fetched if they are missing.
    """
    rng = np.random.default_rng(seed)
    sources = load_photographs(), load_drawings(packages)
    for number in range(num):
        is_photograph = number % 2 == 0
        those = sources[0 if is_photograph else 1]
        size = int(rng.choice(SIZES))
        image = _crop(those[int(rng.integers(len(those)))], size, rng)
        area = 0.0
        if rng.random() < text_share:
            target = rng.uniform(0.005, 0.08) if rng.random() < 0.25 else rng.uniform(0.12, 0.4)
            image, area = write_words(image, target, rng)
        yield Labelled(image, area, is_photograph)


@cache
def load_photographs() -> list[Image.Image]:
    """Return the bundled photographs, RGB."""
    import skimage
    import sklearn.datasets

    folder = Path(skimage.__file__).parent / "data"
    found = [Image.open(folder / name).convert("RGB") for name in SKIMAGE_PHOTOGRAPHS if (folder / name).is_file()]
    return found + [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]


@cache
def load_drawings(packages: Path) -> list[Image.Image]:
    """Return some of the demo's shaded drawings, RGB on backgrounds of several colours."""
    style = STYLES["fluent3d"]
    folder, suffix = style.path.split("HEX")
    rng = np.random.default_rng(0)
    drawings: list[Image.Image] = []
    with tarfile.open(fetch_package(style.package, packages)) as archive:
        for position, member in enumerate(archive):
            file = archive.extractfile(member) if f"/{folder}" in member.name and member.name.endswith(suffix) else None
            if file is None or position % 50:  # drawn from the whole package, not from its first subjects only
                continue
            drawing = Image.open(io.BytesIO(file.read())).convert("RGBA")
            ground = (255, 255, 255) if len(drawings) % 2 else tuple(int(v) for v in rng.integers(60, 255, 3))
            canvas = Image.new("RGBA", drawing.size, (*ground, 255))
            drawings.append(Image.alpha_composite(canvas, drawing).convert("RGB"))
            if len(drawings) == NUM_DRAWINGS:
                break
    return drawings


def write_words(image: Image.Image, target: float, rng: np.random.Generator) -> tuple[Image.Image, float]:
    """Write lines of words over a picture until about `target` (0..1) of its area is under them; return it and the
    share under the lines' boxes.
    """
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    canvas = image.copy()
    draw = ImageDraw.Draw(canvas)
    mask = np.zeros((image.height, image.width), bool)
    # Letters of at least 9 px (people cannot read smaller ones) and at most a third of the height.
    largest = max(10.0, image.height * min(0.33, 0.08 + 1.2 * target))
    for _ in range(200):
        if mask.mean() >= target:
            break
        size = float(np.clip(np.exp(rng.uniform(np.log(9), np.log(largest))), 9, largest))
        font = ImageFont.truetype(str(fonts / f"{FONTS[int(rng.integers(len(FONTS)))]}.ttf"), size)
        words = WORDS[int(rng.integers(len(WORDS)))]
        left, upper, right, lower = draw.textbbox((0, 0), words, font=font)
        width, height = right - left, lower - upper
        if width > image.width or height > image.height:
            largest = max(9.5, largest * 0.8)
            continue
        x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        rows, columns = slice(int(y), int(y + height) + 1), slice(int(x), int(x + width) + 1)
        if mask[rows, columns].any():
            continue  # words over words cannot be read
        under = np.asarray(canvas.convert("L"))[rows, columns].mean()
        ink = _contrasting(float(under), rng)
        kind = rng.random()
        if kind < 0.3:  # on a plate
            paper = _contrasting(float(np.dot(ink, (0.299, 0.587, 0.114))), rng)
            draw.rectangle((x - 3, y - 3, x + width + 3, y + height + 3), fill=paper)
        stroke: dict[str, Any] = {"stroke_width": max(1, int(size / 16)), "stroke_fill": tuple(255 - v for v in ink)}
        draw.text((x - left, y - upper), words, font=font, fill=ink, **(stroke if kind > 0.6 else {}))
        mask[rows, columns] = True
    return canvas, float(mask.mean())


def to_samples(pictures: Iterator[Labelled] | list[Labelled], quality: int = 90) -> list[Sample]:
    """Return JPEG samples with captions of eight words, as in a corpus."""
    samples = []
    for number, picture in enumerate(pictures):
        buffer = io.BytesIO()
        picture.image.save(buffer, "JPEG", quality=quality)
        caption = f"picture number {number} of the labelled set, {'photograph' if picture.is_photograph else 'drawing'}"
        samples.append(Sample(make_key(number // 10_000, number % 10_000), buffer.getvalue(), caption, {}))
    return samples


def _crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a crop of 50 to 100 % of each side, resized to `size` px on its long side."""
    width, height = (round(side * rng.uniform(0.5, 1.0)) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    scale = size / max(width, height)
    shape = (max(32, round(width * scale)), max(32, round(height * scale)))
    cropped = image.resize(shape, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped


def _contrasting(luma: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a colour at least 90 grey levels away from `luma`."""
    while True:
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        if abs(float(np.dot(colour, (0.299, 0.587, 0.114))) - luma) > 90:
            return colour[0], colour[1], colour[2]
