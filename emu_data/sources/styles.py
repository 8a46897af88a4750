"""The styles of the demo corpus and the npm packages that hold them.

Google's and Twitter's flat emoji and Microsoft's shaded 3D ones (the needles). Licences: emoji-datasource MIT (Noto
images Apache-2.0, Twemoji CC-BY-4.0), Fluent emoji MIT.
"""

from dataclasses import dataclass

from emu_data.sources.npm import Package


@dataclass(frozen=True)
class Style:
    """One set of drawings of all subjects. path: of a picture in the package; HEX stands for its code points."""

    name: str
    package: Package
    path: str


# Digests of the tarballs in npm's registry (a version's tarball never changes), taken on 2026-11-23.
_GOOGLE = Package(
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
_TWITTER = Package(
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)
_FLUENT = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
STYLES = {
    "google": Style("google", _GOOGLE, "img/google/64/HEX.png"),
    "twitter": Style("twitter", _TWITTER, "img/twitter/64/HEX.png"),
    "fluent3d": Style("fluent3d", _FLUENT, "assets/HEX.webp"),
}
NAMES_PACKAGE = _GOOGLE
NAMES_PATH = "emoji.json"
