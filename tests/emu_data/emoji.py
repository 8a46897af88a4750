"""Real emoji for tests, from the demo's packages: where `make demo` keeps them, fetched if they are missing."""

import io
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu_data.sources.npm import PackageUnavailable, fetch_package
from emu_data.sources.styles import STYLES

PREFIXES = {  # name in tests -> the demo's style and its folder in the package
    "google": ("google", "package/img/google/64/"),
    "twitter": ("twitter", "package/img/twitter/64/"),
    "3d": ("fluent3d", "package/assets/"),
}
CACHE = Path(__file__).parents[2] / "data" / "cache" / "packages"
GROUPS = ("Food & Drink", "Animals & Nature", "Smileys & Emotion", "Activities")


@cache
def load_emoji(size: int = 64, step: int = 5) -> dict[str, np.ndarray]:
    """Return uint8 (N, size, size, 3) of each drawing for every `step`-th subject; skip the test if they are not
    available."""
    try:
        tarballs = {name: fetch_package(STYLES[style].package, CACHE) for name, (style, _) in PREFIXES.items()}
    except PackageUnavailable as error:
        pytest.skip(str(error))
    with tarfile.open(tarballs["google"]) as archive:
        stream = archive.extractfile("package/emoji.json")
        assert stream is not None
        names = [
            entry["unified"].lower()
            for entry in json.load(stream)
            if entry["category"] in GROUPS and entry["has_img_google"] and entry["has_img_twitter"]
        ][::step]
    found = {name: _load(tarballs[name], prefix, names, size) for name, (_, prefix) in PREFIXES.items()}
    common = sorted(set.intersection(*(set(pictures) for pictures in found.values())))
    assert len(common) > 50
    return {style: np.stack([pictures[name] for name in common]) for style, pictures in found.items()}


def _load(path: Path, prefix: str, names: list[str], size: int) -> dict[str, np.ndarray]:
    pictures = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name).stem
            if member.name.startswith(prefix) and name in names:
                stream = archive.extractfile(member)
                assert stream is not None
                drawing = Image.open(io.BytesIO(stream.read())).convert("RGBA")
                white = Image.new("RGBA", drawing.size, "white")
                flat = Image.alpha_composite(white, drawing).convert("RGB")
                pictures[name] = np.asarray(flat.resize((size, size), Image.Resampling.LANCZOS))
    return pictures
