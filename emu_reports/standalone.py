"""A report's page as one file that can lie anywhere: pictures inside it, other links as addresses.

Made for the copy in MLflow, whose viewer shows an HTML file from a blob, where nothing that lies beside it is found.
The copy is no output of an asset and nothing is made of it, so it may say what a page must not: when, by which commit.
"""

import base64
import html
import mimetypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

REFERENCE = re.compile(r'(\s)(src|href)="([^"]+)"')
INLINE_BYTES = 32 * 2**20  # of pictures in one copy, which a viewer still opens at once; chosen here


def standalone(page: Path, top: Path, address_of: Callable[[str], str], facts: Mapping[str, str]) -> str:
    """The page's HTML with its pictures inside; what was not taken inside is linked to by its address.

    page: an HTML file below `top`, to whose files alone it refers. address_of: path relative to `top` -> where it is
    served. facts: what the copy says of itself above the page, for example when it was made. Pictures beyond
    INLINE_BYTES in all are links, too.
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

    told = "; ".join(f"{name} {value}" for name, value in facts.items())
    copied = REFERENCE.sub(settle, page.read_text(encoding="utf-8"))
    return copied.replace("<main>", f'<p class="soft" id="copy">{html.escape(told)}</p>\n<main>', 1)
