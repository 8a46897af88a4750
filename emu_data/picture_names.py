"""Which files are pictures, by name; whether this program can decode one depends on its bytes (formats.py)."""

import posixpath

from emu_data.formats import EXTENSIONS

# Extensions of pictures that formats.py does not list, from cameras, browsers, phones and drawing programs: such a file
# gets a row with a reason rather than being ignored. Chosen here from the lists of Pillow, libvips and ImageMagick;
# films and documents are left out.
_OTHERS = (
    "jfi jpm jls jxr wdp hdp cur xcf kra icb vda vst pam ras xbm xpm wbmp flif bpg ai raw crw nrw sr2 srf srw x3f 3fr "
    "erf kdc mrw iiq insp img image"
)
PICTURE_EXTENSIONS = frozenset(EXTENSIONS) | frozenset(_OTHERS.split())
# Of a caption's file beside NAME.jpg: NAME.txt is common, NAME.caption comes from sd-scripts and its descendants.
CAPTION_EXTENSIONS = ("txt", "caption", "text")


def extension(name: str) -> str:
    """Return the part after the last dot of a file's name, in lower case."""
    return posixpath.splitext(name)[1][1:].lower()


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return extension(name) in PICTURE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a path leads to a file that file managers keep for themselves: a name that begins with a dot (macOS's
    ._NAME.jpg beside each NAME.jpg, .DS_Store, .thumbnails), macOS's folder __MACOSX, Windows' Thumbs.db.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1:] == ["Thumbs.db"]
