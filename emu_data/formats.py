"""The formats of pictures: their names, how they are recognised, what reads them, and how they are published.

This table is the only list of formats. A file's name only decides whether the file is examined; its first bytes decide
its format. If a format is known but not read, or its reader is not installed, the picture's row gives that as the
reason.

samples.py and colour.py handle EXIF, XMP and colour profiles; the rest of a format is up to its reader.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

HEAD = 256  # bytes that `recognise` examines: more than the list of brands at the head of a HEIC or AVIF


@dataclass(frozen=True)
class Format:
    """A format of pictures.

    Args:
        extensions: of its files, lower case, without the dot; we write the first.
        beginning: a regular expression for its first bytes, in which a dot matches any byte.
        reader: "MODULE:CLASS" of the Pillow class that reads it; "" if it is not read.
        package: the package that contains the reader, if it is not Pillow.
        kept: whether data/filtered and data/curated get a picture's original bytes. If not, they get a PNG of its
            pixels, so that every browser and every Pillow can open those sets without plugins or a choice of page.
        frames: what several pictures in a file mean. "first": the first is the main picture, whatever the others are
            (previews, gain maps, layers, sizes). "pages": a page that is much larger than all others is the picture.
            "animation": it is unknown which frame the caption describes.
        is_turned: whether the reader already rotates the picture as the file says, so that EXIF must not do so again.
    """

    name: str
    extensions: tuple[str, ...]
    beginning: bytes
    reader: str = ""
    package: str = ""
    kept: bool = False
    frames: Literal["first", "pages", "animation"] = "first"
    is_turned: bool = False

    def open(self) -> Callable[..., Any]:
        """Import the reader's class, which takes a binary file. Raises ImportError if its package is not installed."""
        return _import(self.reader)


# Most frequent first. The first bytes come from the formats' specifications (TGA has no signature: its header's colour
# map type and image type are matched, Truevision TGA 2.0); HEIC and AVIF are distinguished by the brands of ISO/IEC
# 23008-12 and of AV1 in HEIF. JPEG is read by JpegImageFile, not by Pillow's factory: a file with a second picture (a
# preview, a gain map, the other half of a stereo pair: MPO) is still a JPEG whose main picture comes first (CIPA
# DC-007).
FORMATS = (
    Format(
        "JPEG",
        ("jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "mpo"),
        rb"\xff\xd8\xff",
        "PIL.JpegImagePlugin:JpegImageFile",
        kept=True,
    ),
    Format(
        "PNG", ("png", "apng"), rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin:PngImageFile", kept=True, frames="animation"
    ),
    Format("WebP", ("webp",), rb"RIFF....WEBP", "PIL.WebPImagePlugin:WebPImageFile", kept=True, frames="animation"),
    Format("GIF", ("gif",), rb"GIF8[79]a", "PIL.GifImagePlugin:GifImageFile", kept=True, frames="animation"),
    Format("BMP", ("bmp", "dib"), rb"BM", "PIL.BmpImagePlugin:BmpImageFile", kept=True),
    Format(
        "AVIF",
        ("avif", "avifs"),
        rb"....ftyp(?:....)*?avi[fs]",
        "PIL.AvifImagePlugin:AvifImageFile",
        kept=True,
        frames="animation",
    ),
    Format(
        "TIFF",
        ("tif", "tiff"),
        rb"II[*+]\0(?!....CR\x02)|MM\0[*+]",
        "PIL.TiffImagePlugin:TiffImageFile",
        frames="pages",
    ),
    Format(
        "HEIC",
        ("heic", "heif", "hif", "heics", "heifs"),
        rb"....ftyp(?:....)*?(?:hei[cxms]|hev[cxms]|mif[12]|msf1)",
        "pillow_heif.as_plugin:HeifImageFile",
        package="pillow-heif",
        is_turned=True,
    ),
    Format(
        "JPEG XL",
        ("jxl",),
        rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
        "pillow_jxl.JpegXLImagePlugin:JXLImageFile",
        package="pillow-jxl-plugin",
        frames="animation",
        is_turned=True,
    ),
    Format(
        "JPEG 2000",
        ("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"),
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        "PIL.Jpeg2KImagePlugin:Jpeg2KImageFile",
    ),
    Format("PNM", ("ppm", "pgm", "pbm", "pnm", "pfm"), rb"P[1-6fF]\s", "PIL.PpmImagePlugin:PpmImageFile"),
    Format("ICO", ("ico",), rb"\0\0\x01\0", "PIL.IcoImagePlugin:IcoImageFile"),
    Format("ICNS", ("icns",), rb"icns", "PIL.IcnsImagePlugin:IcnsImageFile"),
    Format("QOI", ("qoi",), rb"qoif", "PIL.QoiImagePlugin:QoiImageFile"),
    Format("PSD", ("psd",), rb"8BPS\0\x01", "PIL.PsdImagePlugin:PsdImageFile"),
    Format("DDS", ("dds",), rb"DDS ", "PIL.DdsImagePlugin:DdsImageFile"),
    Format("SGI", ("sgi",), rb"\x01\xda", "PIL.SgiImagePlugin:SgiImageFile"),
    Format("PCX", ("pcx",), rb"\x0a[\0\x02\x03\x05]\x01", "PIL.PcxImagePlugin:PcxImageFile"),
    # Not read: drawings, documents, films, the raw files of cameras, and pictures of high dynamic range.
    Format("SVG", ("svg", "svgz"), rb"(?:\xef\xbb\xbf)?\s*<(?:svg|\?xml(?=.*<svg))"),
    Format("PDF", (), rb"%PDF"),
    Format("PostScript", ("eps",), rb"%!PS|\xc5\xd0\xd3\xc6"),
    Format(
        "camera raw",
        ("cr2", "cr3", "nef", "arw", "dng", "raf", "orf", "rw2", "pef"),
        rb"....ftypcrx |II\*\0....CR\x02|FUJIFILMCCD-RAW|II(?:RO|RS|U)|MMOR",
    ),
    Format("film", (), rb"....ftyp|\x1aE\xdf\xa3"),
    Format("PSB", ("psb",), rb"8BPS\0\x02"),
    Format("HDR", ("hdr",), rb"#\?R(?:ADIANCE|GBE)"),
    Format("OpenEXR", ("exr",), rb"\x76\x2f\x31\x01"),
    Format("TGA", ("tga",), rb".(?:\0[\x02\x03\x0a\x0b]|\x01[\x01\x09])", "PIL.TgaImagePlugin:TgaImageFile"),
)

# Extensions of all files that are examined as pictures. If such a file cannot be read, its row gives the reason.
EXTENSIONS = tuple(extension for known in FORMATS for extension in known.extensions)


def recognise(data: bytes) -> Format | None:
    """Return the format of a picture, given at least its first HEAD bytes; None if it is none of FORMATS."""
    head = bytes(data[:HEAD])
    return next((known for known in FORMATS if re.match(known.beginning, head, re.DOTALL)), None)


@cache
def _import(reader: str) -> Callable[..., Any]:
    module, _, name = reader.partition(":")
    return getattr(import_module(module), name)
