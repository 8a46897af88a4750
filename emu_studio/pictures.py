"""What browsers are sent: previews, cut once and kept, and the picture itself for a look at its pixels."""

import io
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from emu_data.files import atomic_file
from emu_data.formats import recognise
from emu_data.samples import decode_rgb, published
from emu_studio.items import read_picture

# The longer side of a preview in px: of a contact sheet's tile on a screen of two pixels per point, and of a window.
SIDES = {"tile": 480, "view": 1600}  # chosen here
QUALITY = 90  # of a preview's WebP: its artefacts are below what one sees without zooming; chosen here
AHEAD = 2  # threads that cut previews of what will be shown; chosen here
BROWSERS_SHOW = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WebP": "image/webp",
    "AVIF": "image/avif",
    "GIF": "image/gif",
}


class Previews:
    """Previews below a folder, which may be deleted at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="previews")
        self._lock, self._asked = threading.Lock(), set[Path]()

    def path(self, picture: Mapping[str, Any], size: str) -> Path:
        """Return the file of a preview, cut if it is not there yet. Raises KeyError for an unknown size, and what
        read_picture and decode_rgb raise."""
        file = self._file(picture, size)
        if not file.is_file():
            image = decode_rgb(read_picture(picture))
            image.thumbnail((SIDES[size], SIDES[size]), Image.Resampling.LANCZOS, reducing_gap=3.0)
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as partial:
                image.save(partial, "WebP", quality=QUALITY, method=2)
        return file

    def prepare(self, pictures: Iterable[Mapping[str, Any]], size: str) -> None:
        """Cut previews in the background, of pictures that somebody will be shown next. What cannot be read is passed
        over: it is said where it is shown."""
        for picture in pictures:
            file = self._file(picture, size)
            with self._lock:
                if file in self._asked:
                    continue
                self._asked.add(file)
            self._pool.submit(self._try, picture, size, file)

    def close(self) -> None:
        """Stop cutting."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _file(self, picture: Mapping[str, Any], size: str) -> Path:
        digest = picture["digest"]
        return self._folder / f"{SIDES[size]}" / digest[:2] / f"{digest}.webp"

    def _try(self, picture: Mapping[str, Any], size: str, file: Path) -> None:
        try:
            self.path(picture, size)
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._asked.discard(file)


def original(picture: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a picture's own bytes and their media type; a PNG of its pixels if browsers do not show its format."""
    data = read_picture(picture)
    found = recognise(data)
    if found is not None and (media := BROWSERS_SHOW.get(found.name)):
        return data, media
    data = published(data)
    if not data.startswith(b"\x89PNG"):  # a format that is kept as it is and no browser shows
        buffer = io.BytesIO()
        decode_rgb(data).save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
    return data, "image/png"
