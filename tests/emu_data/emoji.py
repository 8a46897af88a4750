"""Real emoji for tests, from the demo's packages: in EMU_PACKAGE_CACHE, or where `make demo` keeps them."""

import io
import json
import os
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PACKAGES = {
    "google": ("emoji-datasource-google-16.0.0.tgz", "package/img/google/64/"),
    "twitter": ("emoji-datasource-twitter-16.0.0.tgz", "package/img/twitter/64/"),
    "3d": ("lobehub-fluent-emoji-3d-1.1.0.tgz", "package/assets/"),
}
GROUPS = ("Food & Drink", "Animals & Nature", "Smileys & Emotion", "Activities")


@cache
def load_emoji(size: int = 64, step: int = 5) -> dict[str, np.ndarray]:
    """uint8 (N, size, size, 3) of each drawing for every `step`-th subject; skips without packages."""
    demo = Path(__file__).parents[2] / "data" / "cache" / "packages"
    folder = Path(os.environ.get("EMU_PACKAGE_CACHE", demo))
    if not all((folder / file).is_file() for file, _ in PACKAGES.values()):
        pytest.skip("the packages of the demo are not here; EMU_PACKAGE_CACHE can name their folder")
    with tarfile.open(folder / PACKAGES["google"][0]) as archive:
        stream = archive.extractfile("package/emoji.json")
        assert stream is not None
        names = [
            entry["unified"].lower()
            for entry in json.load(stream)
            if entry["category"] in GROUPS and entry["has_img_google"] and entry["has_img_twitter"]
        ][::step]
    found = {style: _load(folder / file, prefix, names, size) for style, (file, prefix) in PACKAGES.items()}
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
