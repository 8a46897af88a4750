"""A report's page as one file that works anywhere: its pictures are embedded, its other links are full addresses.

It is for the copy in MLflow, whose viewer shows an HTML file from a blob, where relative links do not work. The copy is
not an asset's output, so it may hold what a page must not: the date and the commit.
"""

import base64
import html
import mimetypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

REFERENCE = re.compile(r'(\s)(src|href)="([^"]+)"')
INLINE_BYTES = 32 * 2**20  # of embedded pictures per copy: a viewer still opens it quickly; chosen here


def standalone(page: Path, top: Path, address_of: Callable[[str], str], facts: Mapping[str, str]) -> str:
    """Return the page's HTML with its pictures embedded; everything else is linked by its address.

    page: an HTML file below `top` that refers only to files below `top`. address_of: path relative to `top` -> the
    address where it is served. facts: name -> value, shown above the page, for example when it was made. Once
    INLINE_BYTES of pictures are embedded, further pictures are linked.
    """
    left = INLINE_BYTES

    def settle(match: re.Match[str]) -> str:
        nonlocal left
        space, attribute, target = match.groups()
        if target.startswith(("#", "data:", "http:", "https:")):
            return match[0]
        file = Path(os.path.normpath(page.parent / html.unescape(target)))
        if attribute == "src" and (size := file.stat().st_size) <= left:
            left -= size
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            settled = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
        else:
            settled = html.escape(address_of(file.relative_to(os.path.abspath(top)).as_posix()))
        return f'{space}{attribute}="{settled}"'

    heading = "; ".join(f"{name} {value}" for name, value in facts.items())
    copied = REFERENCE.sub(settle, page.read_text(encoding="utf-8"))
    return copied.replace("<main>", f'<p class="soft" id="copy">{html.escape(heading)}</p>\n<main>', 1)
