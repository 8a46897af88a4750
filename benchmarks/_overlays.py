"""Photographs and drawings from Debian's packages, and writing laid over them in many scripts and directions.

Everything comes in parts: "judged", on which claims are made, shares nothing with the others: other pictures, other
fonts, other words, and four scripts of its own. "taught" is what the text probe learns from, "tuned" what thresholds
are chosen on; these two share words and some fonts, no pictures. Packages are fetched with `apt-get download` and
unpacked beside the other packages; nothing is installed.
"""

import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from _patterns import lay_pattern
from PIL import Image, ImageDraw, ImageFont

Part = Literal["taught", "tuned", "judged"]

PICTURES = (
    *("gnome-backgrounds", "mate-backgrounds", "plasma-workspace-wallpapers", "lomiri-wallpapers-16.04"),
    *("ukui-wallpapers", "tuxpaint-stamps-default", "openclipart-png"),
)
FONT_PACKAGES = (
    *("fonts-noto-core", "fonts-noto-cjk", "fonts-liberation", "fonts-freefont-ttf", "fonts-lato", "fonts-hack"),
    *("fonts-lobster", "fonts-comfortaa", "fonts-cantarell"),
)
# Package -> which of its files are taken.
GLOBS = {
    "gnome-backgrounds": "usr/share/backgrounds/gnome/*-l.webp",
    "mate-backgrounds": "usr/share/backgrounds/mate/*/*.jpg",
    "plasma-workspace-wallpapers": "usr/share/wallpapers/*/contents/images/*0x[12]*",
    "lomiri-wallpapers-16.04": "usr/share/backgrounds/*.*",
    "ukui-wallpapers": "usr/share/backgrounds/*.*",
    "tuxpaint-stamps-default": "usr/share/tuxpaint/stamps/*/*/*.png",
    "openclipart-png": "usr/share/openclipart/png/*/**/*.png",
}
DRAWN = ("animals", "plants", "food", "buildings", "people", "recreation", "transportation")  # openclipart's folders
# Bundled with scikit-image.
TEXTURES = ("brick", "gravel", "grass", "camera", "coffee", "chelsea", "hubble_deep_field", "moon", "retina")
# Looked at one by one: what has these in its name bears letters or digits of its own, if only on a label. What merely
# looks like writing (leaves, balls, guitars, a painting, chequers) stays in.
WITH_WRITING = re.compile(
    "GreenTraditional|MATE-|warty|pixels-|symbolic-|greentock|Wine_by|grave|railroad|firetruck|garbagetruck|korean_bus|"
    "indycar|747|syringe|f22|final-roll|tux_didier|rory_mccann|debian|pasta|chalet|ontologia|boating|stop_sign|lorry|"
    "do_not_enter|highway_sign|one_way|lumen|bordered|white_[cdhsj]|[89]_?ball|volley|asso_carte|creation|hik|beer|"
    "back0|logo|cylinder|balloon360|tramway|skoda|ornamental|simple_[cdhsj]k?_|shirt|mhooo|engine|stylized_yoga|"
    "grenade|shaezy|vinyl_disc|ubuntukylin|menu_|toyota|bradley|dumper|martin_luther",
    re.IGNORECASE,
)
NUM_DRAWINGS = {"taught": 150, "tuned": 60, "judged": 60}
MIN_BYTES = {"tuxpaint-stamps-default": 40_000, "openclipart-png": 6_000}  # smaller ones are icons

# Script -> its words, and the fonts of each part (file names). Words' second half is the judged part's.
LATIN = {
    "taught": (
        *("LiberationSans-Regular", "LiberationSans-BoldItalic", "LiberationSerif-Bold", "LiberationSerif-Italic"),
        *("LiberationMono-Regular", "LiberationSansNarrow-Bold", "FreeMonoBold", "FreeMono", "Hack-Bold", "Lato-Light"),
        *("Lato-Bold", "LiberationSans-Bold"),
    ),
    "tuned": (
        *("LiberationSans-Bold", "LiberationSerif-Regular", "Lato-Regular", "Lato-Black", "Hack-Regular"),
        "FreeMono",
    ),
    "judged": (
        *("FreeSans", "FreeSerifBold", "NotoSerif-Italic", "NotoSans-Bold", "lobster", "Comfortaa-Bold"),
        *("Cantarell-Regular", "FreeSerifItalic"),
    ),
}
_REGULAR = ("NotoSans{}-Regular",)
_NOTO = {
    "taught": _REGULAR,
    "tuned": _REGULAR,
    "judged": ("NotoSerif{}-Bold", "NotoSans{}-Bold", "NotoSerif{}-Regular"),
}
WORDS = {
    "Latin": (
        "SALE 50% OFF|Subscribe now|© M. Weber 2019|www.example.com|Happy Birthday|breaking news|when you see it|"
        "Kapitel 7|LIMITED EDITION|for rent|crédit photo|naturaleza|Follow us|10:42 PM|sample|draft copy|"
        "FREE SHIPPING|Read more|shutter.example|photo by Anna|Good Night|LIVE|me on mondays|Chapter Three|"
        "GRAND OPENING|¡Feliz año!|preview only|12.03.2021|Don't panic|été à Paris|HOTEL|watermark"
    ),
    "Cyrillic": "Скидка|Новости дня|Добро пожаловать|Фото Иванов|Внимание|Продажа|Спасибо|Открыто|Доброе утро|Лето",
    "Greek": "Καλημέρα|Προσφορά|Αθήνα|Νέα|θάλασσα|Ευχαριστώ|Φωτογραφία|Ελλάδα|Χρόνια πολλά|ήλιος",
    "Arabic": "مرحبا بكم|تخفيضات|أخبار اليوم|صباح الخير|شكرا|للبيع|صورة|السلام عليكم|القاهرة|جديد",
    "Hebrew": "שלום|מבצע|חדשות היום|תודה רבה|ירושלים|בוקר טוב|צילום|למכירה|ברוכים הבאים|קיץ",
    "Devanagari": "नमस्ते|छूट|आज की खबर|धन्यवाद|दिल्ली|शुभ प्रभात|स्वागत है|बिक्री|भारत|नया साल",
    "Thai": "สวัสดี|ลดราคา|ข่าววันนี้|ขอบคุณ|กรุงเทพ|อรุณสวัสดิ์|ยินดีต้อนรับ|ขาย|ประเทศไทย|ปีใหม่",
    "CJKsc": "欢迎光临|限时特价|今日新闻|版权所有|北京|谢谢|早上好|摄影作品|新年快乐|上海风光",
    "CJKjp": "いらっしゃいませ|セール|ニュース|東京タワー|ありがとう|おはよう|写真撮影|新発売|京都の秋|サンプル",
    "CJKkr": "안녕하세요|할인 행사|오늘의 뉴스|감사합니다|서울|좋은 아침|사진 촬영|신상품|새해 복|부산",
    "Bengali": "স্বাগতম|ছাড়|আজকের খবর|ধন্যবাদ|ঢাকা|শুভ সকাল|নতুন|বিক্রয়|বাংলাদেশ|ছবি",
    "Georgian": "გამარჯობა|ფასდაკლება|თბილისი|მადლობა|ახალი ამბები",
    "Armenian": "Բարեւ|Զեղչ|Երևան|Շնորհակալություն|Նորություններ",
    "Ethiopic": "ሰላም|ቅናሽ|አዲስ አበባ|አመሰግናለሁ|ዜና",
    "Tamil": "வணக்கம்|தள்ளுபடி|சென்னை|நன்றி|செய்திகள்",
}
JUDGED_ONLY = ("Georgian", "Armenian", "Ethiopic", "Tamil")
STACKED = ("Latin", "Cyrillic", "Greek", "CJKsc", "CJKjp", "CJKkr")  # scripts whose letters can stand below each other
CJK_INDEX = {"CJKjp": 0, "CJKkr": 1, "CJKsc": 2}  # in Noto's collections
LATIN_SHARE = 0.45  # of the texts; the rest is shared equally by the other scripts
LAYOUTS = {
    **{"line": 0.24, "block": 0.14, "stamp": 0.12, "watermark": 0.14, "stacked": 0.08, "turned": 0.08},
    **{"slanted": 0.08, "curved": 0.06, "logo": 0.06},
}
SIDES = (256, 384, 512, 768, 1024)  # px, the long side
SMALLEST = 9  # px, the height of letters; smaller ones people cannot read
HEIGHTS = (0.03, 0.2)  # of a letter, of the picture's short side, log-uniform


@dataclass(frozen=True)
class Overlaid:
    """An RGB picture and what was laid over it; `layout` and `script` are "" where nothing was."""

    image: Image.Image
    clean: Image.Image  # the same without the writing
    text_area: float  # 0..1, under the writing's smallest turned boxes
    source: str
    is_photograph: bool
    layout: str
    script: str


def overlaid_pictures(num: int, part: Part, packages: Path, text_share: float, seed: int) -> Iterator[Overlaid]:
    """Yield `num` pictures, three in four of them photographs, `text_share` (0..1) of them with writing."""
    rng = np.random.default_rng((seed, part == "judged"))
    photographs, drawings = (find_pictures(part, packages, is_photograph) for is_photograph in (True, False))
    while num > 0:
        is_photograph = bool(rng.random() < 0.75)
        those = photographs if is_photograph else drawings
        path = those[int(rng.integers(len(those)))]
        clean = image = _crop(load_picture(path), rng)
        if part == "taught" and rng.random() < 0.5:
            clean = image = lay_pattern(image, rng)
        area, layout, script = 0.0, "", ""
        if rng.random() < text_share:
            layout = str(rng.choice(list(LAYOUTS), p=list(LAYOUTS.values())))
            script = _draw_script(part, layout, rng)
            image, area = write(image, layout, script, part, packages, rng)
            if not area:
                continue  # it did not fit
        source = path.stem if path.stem[0].isalpha() else path.parts[-4]
        yield Overlaid(image, clean, area, source, is_photograph, layout, script)
        num -= 1


def unpack_all(packages: Path) -> None:
    """Fetch what is not there yet. Raises RuntimeError where that cannot be done."""
    for package in (*PICTURES, *FONT_PACKAGES):
        unpack(package, packages)


def unpack(package: str, packages: Path) -> Path:
    """Return the folder of a Debian package's files, fetched once. Raises RuntimeError where that cannot be done."""
    folder = packages / "debian" / package
    if not folder.is_dir():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise RuntimeError(f"{package}: this needs Debian's apt-get and dpkg to fetch its pictures and fonts")
        partial = folder.with_name(f".{package}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        done = subprocess.run(["apt-get", "download", package], cwd=partial, capture_output=True, text=True)
        (fetched,) = list(partial.glob("*.deb")) or (None,)
        if done.returncode or fetched is None:
            raise RuntimeError(f"apt-get download {package} failed (apt-get update first?): {done.stderr.strip()}")
        subprocess.run(["dpkg", "-x", fetched.name, "."], cwd=partial, check=True)
        fetched.unlink()
        partial.rename(folder)
    return folder


@cache
def find_pictures(part: Part, packages: Path, is_photograph: bool) -> list[Path]:
    """Return the files of one part without writing of their own; all sizes of a picture are in the same part."""
    found = []
    for package in PICTURES:
        if (package == "openclipart-png") == is_photograph:
            continue
        top = unpack(package, packages)
        seen = set[str]()
        for path in sorted(top.glob(GLOBS[package])):
            parts = path.relative_to(top).parts
            name = parts[3] if "wallpapers" in parts else path.stem
            is_drawn = package != "openclipart-png" or parts[4] in DRAWN
            is_small = path.stat().st_size < MIN_BYTES.get(package, 60_000)
            if path.is_symlink() or is_small or not is_drawn or name in seen or WITH_WRITING.search(name):
                continue
            seen.add(name)
            if _part_of(zlib.crc32(name.encode())) == part:
                found.append(path)
    if is_photograph:
        import skimage

        textures = {"taught": TEXTURES[0:5:2], "tuned": TEXTURES[6::2], "judged": TEXTURES[1::2]}[part]
        found += [path for path in sorted((Path(skimage.__file__).parent / "data").iterdir()) if path.stem in textures]
    else:
        found = sorted(found, key=lambda path: zlib.crc32(path.name.encode()[::-1]))[: NUM_DRAWINGS[part]]
    return found


def _part_of(number: int) -> Part:
    if number % 2:
        return "judged"
    return "taught" if number // 2 % 3 else "tuned"


@cache
def load_picture(path: Path) -> Image.Image:
    """Return the picture, RGB on white, at most 1 600 px a side."""
    Image.MAX_IMAGE_PIXELS = None  # one of the drawings has 170 megapixels
    image = Image.open(path)
    image.draft("RGB", (1600, 1600))
    image.thumbnail((1600, 1600), reducing_gap=2.0)
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of 55 to 100 % a side and 3 : 1 at most, brought to one of SIDES."""
    width, height = (round(side * rng.uniform(0.55, 1.0)) for side in image.size)
    width, height = min(width, 3 * height), min(height, 3 * width)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    scale = rng.choice(SIDES) / max(width, height)
    shape = (max(64, round(width * scale)), max(64, round(height * scale)))
    cropped = image.resize(shape, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped


def _draw_script(part: Part, layout: str, rng: np.random.Generator) -> str:
    others = [one for one in WORDS if one != "Latin" and (part == "judged" or one not in JUDGED_ONLY)]
    if layout == "stacked":
        return str(rng.choice(STACKED))
    return "Latin" if rng.random() < LATIN_SHARE else str(rng.choice(others))


def find_font(script: str, part: Part, size: float, packages: Path, rng: np.random.Generator) -> ImageFont.FreeTypeFont:
    """Return one of the part's fonts for a script, letters `size` px high or so."""
    if script in ("Latin", "Cyrillic", "Greek"):
        names = (
            LATIN[part] if script == "Latin" else [name for name in LATIN[part] if "Noto" in name or "Libera" in name]
        )
    else:
        family = "CJK" if script in CJK_INDEX else script
        names = [name.format(family) for name in _NOTO[part]]
    files = [path for name in names for path in (_font_files(packages).get(name),) if path]
    return ImageFont.truetype(str(files[int(rng.integers(len(files)))]), size, index=CJK_INDEX.get(script, 0))


@cache
def _font_files(packages: Path) -> dict[str, Path]:
    folders = [unpack(package, packages) / "usr" / "share" / "fonts" for package in FONT_PACKAGES]
    return {path.stem: path for folder in folders for path in folder.rglob("*.[to]t[fc]")}


def _phrase(script: str, part: Part, rng: np.random.Generator) -> str:
    words = WORDS[script].split("|")
    if script not in JUDGED_ONLY:
        words = words[len(words) // 2 :] if part == "judged" else words[: len(words) // 2]
    phrase = words[int(rng.integers(len(words)))]
    if part == "taught" and rng.random() < 0.5:  # the same letters in another order, so that no word is learned
        phrase = "".join(rng.permutation(list(phrase * 2))[: int(rng.integers(2, 2 * len(phrase) + 1))]).strip()
    return phrase or words[0]


def write(
    image: Image.Image, layout: str, script: str, part: Part, packages: Path, rng: np.random.Generator
) -> tuple[Image.Image, float]:
    """Return the picture with writing over it, and the share (0..1) under its boxes, 0 where it did not fit."""
    short = min(image.size)
    low, high = (0.03, 0.055) if layout == "stamp" else HEIGHTS
    size = max(SMALLEST, short * float(np.exp(rng.uniform(np.log(low), np.log(high))))) / 0.7  # of the em
    canvas = np.asarray(image, np.float32)
    area = np.zeros(canvas.shape[:2], bool)
    for _ in range(12):
        font = find_font(script, part, size, packages, rng)
        ink = _ink(layout, script, part, font, rng)
        if part == "taught" and rng.random() < 0.4:  # as bold as other fonts are
            ink = cv2.dilate(ink, np.ones((1 + int(size * rng.uniform(0, 0.12)),) * 2))
        if ink.shape[0] <= image.height and ink.shape[1] <= image.width:
            break
        size *= 0.8
        if size * 0.7 < SMALLEST:
            return image, 0.0
    else:
        return image, 0.0
    alpha = rng.uniform(0.35, 0.65) if layout == "watermark" else 1.0
    places = [_place(image, ink, layout, rng)]
    if layout == "watermark" and rng.random() < 0.4:  # all over the picture
        step_y, step_x = int(ink.shape[0] * 1.6), int(ink.shape[1] * 1.2)
        places = [(x, y) for y in range(0, image.height, step_y) for x in range(0, image.width, step_x)]
    colour, outline = None, False
    for x, y in places:
        piece = ink[: image.height - y, : image.width - x]
        rows, columns = slice(y, y + piece.shape[0]), slice(x, x + piece.shape[1])
        under = canvas[rows, columns]
        if layout == "logo" or (layout in ("line", "block") and rng.random() < 0.25):  # on a plate
            plate = _contrasting(float(under.mean()), rng, 30)
            shape = Image.new("L", (piece.shape[1], piece.shape[0]))
            draw, box = ImageDraw.Draw(shape), (0, 0, piece.shape[1] - 1, piece.shape[0] - 1)
            draw.ellipse(box, fill=255) if layout == "logo" and rng.random() < 0.5 else draw.rectangle(box, fill=255)
            covered = np.asarray(shape, np.float32)[..., None] / 255
            canvas[rows, columns] = under = under * (1 - covered) + np.array(plate, np.float32) * covered
        if colour is None:
            luma = float(under[piece > 0.5].mean()) if (piece > 0.5).any() else float(under.mean())
            colour = _contrasting(luma, rng, 50 if alpha < 1 else float(rng.choice([45, 90, 90])))
            outline = alpha == 1 and rng.random() < 0.3
        if outline:
            ring = np.maximum(cv2.dilate(piece, np.ones((3, 3)), iterations=max(1, round(size / 24))) - piece, 0)[
                ..., None
            ]
            under = under * (1 - ring) + (255 - np.array(colour, np.float32)) * ring
        share = piece[..., None] * alpha
        canvas[rows, columns] = under * (1 - share) + np.array(colour, np.float32) * share
        ys, xs = np.nonzero(piece > 0.5)
        if len(xs):
            box = cv2.boxPoints(cv2.minAreaRect(np.stack([xs + x, ys + y], 1).astype(np.float32)))
            filled = np.zeros(area.shape, np.uint8)
            cv2.fillPoly(filled, [np.round(box).astype(np.int32)], (1,))
            area |= filled.astype(bool)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)), float(area.mean())


def _ink(layout: str, script: str, part: Part, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> np.ndarray:
    """The writing's own mask, float32 (h, w) in 0..1."""
    if layout == "stacked":
        ink = _letters("\n".join(_phrase(script, part, rng).replace(" ", "")[:8]), font)
    elif layout == "block":
        ink = _letters("\n".join(_phrase(script, part, rng) for _ in range(int(rng.integers(2, 6)))), font)
    else:
        ink = _letters(_phrase(script, part, rng), font)
    if layout == "turned":
        return np.ascontiguousarray(np.rot90(ink, 1 if rng.random() < 0.5 else 3))
    if layout == "slanted" or (layout == "watermark" and rng.random() < 0.6):
        angle = float(rng.uniform(8, 40)) * (1 if rng.random() < 0.5 else -1)
        return np.asarray(Image.fromarray(ink).rotate(angle, Image.Resampling.BICUBIC, expand=True)).clip(0, 1)
    if layout == "curved":
        return _bend(ink, float(rng.uniform(0.4, 1.4)))
    if layout == "logo":
        return np.pad(ink, ((int(ink.shape[0] * 0.6),) * 2, (int(ink.shape[0] * 0.8),) * 2))
    return ink


def _letters(text: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    left, upper, right, lower = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    mask = Image.new("L", (int(right - left) + 5, int(lower - upper) + 5))
    align = "center" if "\n" in text else "left"
    ImageDraw.Draw(mask).multiline_text((2 - left, 2 - upper), text, font=font, fill=255, align=align)
    return np.asarray(mask, np.float32) / 255


def _bend(ink: np.ndarray, angle: float) -> np.ndarray:
    """A line laid along an arc of `angle` radians."""
    height, width = ink.shape
    radius = width / angle
    reach = radius + height
    out_w, out_h = int(2 * reach * np.sin(angle / 2)) + 2, int(reach - radius * np.cos(angle / 2)) + 2
    x, y = np.meshgrid(np.arange(out_w) - out_w / 2, reach - np.arange(out_h))
    along, above = np.arctan2(x, y) * radius + width / 2, reach - np.hypot(x, y)
    return cv2.remap(ink, along.astype(np.float32), above.astype(np.float32), cv2.INTER_LINEAR)


def _place(image: Image.Image, ink: np.ndarray, layout: str, rng: np.random.Generator) -> tuple[int, int]:
    free_x, free_y = image.width - ink.shape[1], image.height - ink.shape[0]
    if layout == "stamp":  # in a corner
        margin = int(0.02 * min(image.size))
        x, y = min(margin, free_x), min(margin, free_y)
        return (x if rng.random() < 0.5 else free_x - x), (y if rng.random() < 0.3 else free_y - y)
    return int(rng.integers(free_x + 1)), int(rng.integers(free_y + 1))


def _contrasting(luma: float, rng: np.random.Generator, least: float) -> tuple[int, int, int]:
    """A colour at least `least` grey levels away from `luma`; half of them white, black or the like."""
    while True:
        grey = int(rng.choice([0, 20, 235, 255]))
        colour = (grey,) * 3 if rng.random() < 0.5 else tuple(int(v) for v in rng.integers(0, 256, 3))
        if abs(float(np.dot(colour, (0.299, 0.587, 0.114))) - luma) > least:
            return colour[0], colour[1], colour[2]
