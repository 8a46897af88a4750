"""Re-posts of a picture, as people make them; each is saved as JPEG. `kind(picture, rng)` returns RGB."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

Repost = Callable[[Image.Image, np.random.Generator], Image.Image]


def as_jpeg(image: Image.Image, quality: int = 85) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def cropped(share: float) -> Repost:
    """Cut by `share` of each side on average, a quarter to three quarters of it on the left and on top."""

    def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (round(2 * share * side) for side in image.size)
        left, upper = round(width * rng.uniform(0.25, 0.75)), round(height * rng.uniform(0.25, 0.75))
        return image.crop((left, upper, left + image.width - width, upper + image.height - height))

    return crop


def bordered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.expand(image, max(2, round(min(image.size) * rng.uniform(0.03, 0.1))), _colour(rng))


def with_logo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A disc with letters, 12 to 20 % of the shorter side, in a corner."""
    image = image.copy()
    size = round(min(image.size) * rng.uniform(0.12, 0.2))
    margin = max(1, size // 6)
    x, y = (margin if rng.random() < 0.5 else side - size - margin for side in image.size)
    ink, draw = _colour(rng), ImageDraw.Draw(image)
    draw.ellipse((x, y, x + size, y + size), fill=ink)
    font = ImageFont.load_default(max(8, size // 2))
    draw.text((x + size * 0.2, y + size * 0.25), "ab", fill=tuple(255 - v for v in ink), font=font)
    return image


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = rng.uniform(0.3, 0.7)
    return image.resize(
        (max(24, round(image.width * factor)), max(24, round(image.height * factor))), Image.Resampling.BICUBIC
    )


def colour_shifted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.6, 1.5))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1.2))
    tinted = np.asarray(image, np.float64) * rng.uniform(0.92, 1.08, 3)
    return Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8))


def screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bars above and below, the clock in the upper one, sometimes bars at the sides."""
    upper, lower = (round(image.height * rng.uniform(0.05, high)) for high in (0.15, 0.2))
    side = round(image.width * rng.uniform(0, 0.1))
    bar = _colour(rng) if rng.random() < 0.5 else (0, 0, 0)
    shot = Image.new("RGB", (image.width + 2 * side, image.height + upper + lower), bar)
    shot.paste(image, (side, upper))
    draw, font, ink = ImageDraw.Draw(shot), ImageFont.load_default(max(8, upper // 2)), tuple(255 - v for v in bar)
    draw.text((upper * 0.4, upper * 0.2), "12:34", fill=ink, font=font)
    draw.text((shot.width - upper * 2.5, upper * 0.2), "93 %", fill=ink, font=font)
    return shot


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


KINDS: dict[str, Repost] = {
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "cropped by 3 %": cropped(0.03),
    "cropped by 8 %": cropped(0.08),
    "bordered": bordered,
    "with a logo": with_logo,
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    "recompressed": lambda image, _: as_jpeg(image, 40),
    "resized": resized,
    "colours shifted": colour_shifted,
    "in a screenshot": screenshot,
}
