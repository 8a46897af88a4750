"""Who is compared. A contestant is a name and where its pictures come from (`evaluation_images.contestants`).

That is the folder of a model, a registered version (`models:/NAME/VERSION` or `models:/NAME@ALIAS`), or a folder of
pictures that something else drew, each named by its prompt. Everything behind data/evaluation_images knows contestants
by name alone; a comparison (`comparison` in params.yaml) is a pair of names, the candidate first.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.files import write_json
from emu_data.records import DecodeError, decode_rgb
from emu_data.shards import square
from emu_steps.layout import Layout

DRAWN_FILE = "drawn.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_NAME = 240  # bytes of UTF-8 in a picture's name: with a suffix it fits the 255 that file systems allow
NUM_TOLD = 5  # of the missing pictures that are named; chosen here
NAMING = (
    f"a picture is named by its prompt, in lower case with a hyphen for each run of other characters than letters and "
    f"digits, cut at {MAX_NAME} bytes ({', '.join(SUFFIXES)})"
)


@dataclass(frozen=True)
class Drawn:
    """What data/evaluation_images is made of. judged: asset -> md5 of what the pictures depend on. made_by: contestant
    -> the asset that made its model, else its address."""

    judged: dict[str, str]
    made_by: dict[str, str]


def write_drawn(folder: Path, drawn: Drawn) -> None:
    """Writes DRAWN_FILE into `folder`."""
    write_json(folder / DRAWN_FILE, asdict(drawn))


def read_drawn(layout: Layout) -> Drawn:
    """ValueError where data/evaluation_images is missing or of a version that knew no contestants."""
    path = layout.evaluation / DRAWN_FILE
    if not path.is_file():
        raise ValueError(f"{path.relative_to(layout.root)} is missing; materialise evaluation_images")
    return Drawn(**json.loads(path.read_text()))


def candidate_maker(layout: Layout, comparison: tuple[str, str]) -> str:
    """What made the model of the first of a comparison: an asset, else an address. ValueError where one of the two has
    no pictures."""
    made_by = read_drawn(layout).made_by
    if missing := [name for name in comparison if name not in made_by]:
        raise ValueError(
            f"data/evaluation_images has no pictures of {', '.join(missing)}, but of {', '.join(made_by)}; "
            "materialise evaluation_images"
        )
    return made_by[comparison[0]]


def is_model(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def name_of_picture(prompt: str) -> str:
    """The name, without suffix, of a prompt's picture (NAMING): "A red apple!" -> "a-red-apple"."""
    folded = normalize("NFC", normalize("NFC", prompt).casefold())
    words = re.sub(r"[\W_]+", "-", folded).strip("-")
    return words.encode()[:MAX_NAME].decode(errors="ignore").strip("-")


def find_pictures(name: str, folder: Path, prompts: Sequence[str]) -> list[Path]:
    """A contestant's picture of each prompt, in their order; other pictures in the folder are left alone.

    ValueError, in one line, where the folder is missing or has no picture of a prompt, or two of one.
    """
    entry = f"evaluation_images.contestants.{name}"
    if not folder.is_dir():
        raise ValueError(f"{entry}: there is no folder {folder}; give a model's, or one of pictures")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(name_of_picture(path.stem), []).append(path)
    wanted: dict[str, str] = {}
    for prompt in prompts:
        key = name_of_picture(prompt)
        if wanted.setdefault(key, prompt) != prompt:
            raise ValueError(f"{entry}: {wanted[key]!r} and {prompt!r} would share the picture {key}; {NAMING}")
        if len(found.get(key, [])) > 1:
            raise ValueError(f"{entry}: {found[key][0].name} and {found[key][1].name} are both of {prompt!r}; {NAMING}")
    if missing := [key for key in wanted if key not in found]:
        told = ", ".join(f"{key}.png" for key in missing[:NUM_TOLD])
        more = f" and {len(missing) - NUM_TOLD} more" if len(missing) > NUM_TOLD else ""
        raise ValueError(
            f"{entry}: {folder} is no model (no model_index.json) and, as a folder of pictures, lacks {len(missing)} "
            f"of {len(wanted)}: {told}{more}; {NAMING}"
        )
    return [found[name_of_picture(prompt)][0] for prompt in prompts]


def read_square(path: Path, size: int) -> Image.Image:
    """The central square of a picture file, `size` px a side. ValueError names a file that is no picture."""
    try:
        return Image.fromarray(square(decode_rgb(path.read_bytes()), size))
    except DecodeError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def read_pictures(folder: Path, contestant: str, prompts: pd.DataFrame) -> np.ndarray:
    """Pictures of one contestant in data/evaluation_images, uint8 (N, H, W, 3), in the order of the prompts."""
    paths = [folder / contestant / f"{key}.png" for key in prompts["key"]]
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
