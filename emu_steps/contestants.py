"""The contestants of a comparison: each is a name and the place where its pictures come from
(`evaluation_images.contestants`).

The place is the folder of a model, a registered version (`models:/NAME/VERSION` or `models:/NAME@ALIAS`), or a folder
of pictures from elsewhere, each named by its prompt. Everything downstream of data/evaluation_images knows contestants
only by name. A comparison (`comparison` in params.yaml) is a pair of names, the candidate first.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.files import write_json
from emu_data.formats import FORMATS
from emu_data.samples import DecodeError, decode_rgb
from emu_data.shards import square
from emu_steps.layout import Layout

DRAWN_FILE = "drawn.json"
SUFFIXES = tuple(f".{extension}" for known in FORMATS if known.reader for extension in known.extensions)
MAX_NAME = 240  # bytes of UTF-8 in a picture's name: with a suffix it fits the 255 that file systems allow
NUM_NAMED = 5  # missing pictures that an error names; chosen here
NAMING = (
    f"a picture is named by its prompt, in lower case, with one hyphen in place of all characters between letters "
    f"or digits, cut at {MAX_NAME} bytes; or by the prompt's number in the list of prompts, from 0000"
)


@dataclass(frozen=True)
class Drawn:
    """What data/evaluation_images was made from. judged: asset -> md5 of what the pictures depend on. made_by:
    contestant -> the asset that made its model, or its address if no asset did.
    """

    judged: dict[str, str]
    made_by: dict[str, str]


def write_drawn(folder: Path, drawn: Drawn) -> None:
    """Write DRAWN_FILE into `folder`."""
    write_json(folder / DRAWN_FILE, asdict(drawn))


def read_drawn(layout: Layout) -> Drawn:
    """Read DRAWN_FILE. Raises ValueError if it is missing, as in a data/evaluation_images without contestants."""
    path = layout.evaluation / DRAWN_FILE
    if not path.is_file():
        raise ValueError(f"{path.relative_to(layout.root)} is missing; materialise evaluation_images")
    return Drawn(**json.loads(path.read_text()))


def candidate_maker(layout: Layout, comparison: tuple[str, str]) -> str:
    """Return what made the model of a comparison's first contestant: an asset, or an address if no asset did.

    Raises ValueError if either contestant has no pictures.
    """
    made_by = read_drawn(layout).made_by
    if missing := [name for name in comparison if name not in made_by]:
        raise ValueError(
            f"data/evaluation_images has no pictures of {', '.join(missing)}, only of {', '.join(made_by)}; "
            "materialise evaluation_images"
        )
    return made_by[comparison[0]]


def is_model(folder: Path) -> bool:
    """Whether a folder holds a pipeline in diffusers' layout (a model_index.json)."""
    return (folder / "model_index.json").is_file()


def name_of_picture(prompt: str) -> str:
    """Return the name, without suffix, of a prompt's picture (NAMING): "A red apple!" -> "a-red-apple"."""
    folded = normalize("NFC", normalize("NFC", prompt).casefold())
    words = re.sub(r"[\W_]+", "-", folded).strip("-")
    return words.encode()[:MAX_NAME].decode(errors="ignore").strip("-")


def find_pictures(name: str, folder: Path, prompts: Mapping[str, str]) -> list[Path]:
    """Find a contestant's picture of each prompt, in their order; other pictures in the folder are ignored. prompts:
    number as in prompts.parquet -> prompt.

    Raises ValueError if the folder is missing, or has no picture or two pictures of a prompt.
    """
    entry = f"evaluation_images.contestants.{name}"
    if not folder.is_dir():
        raise ValueError(f"{entry}: there is no folder {folder}; give the folder of a model or a folder of pictures")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(name_of_picture(path.stem), []).append(path)
    chosen, missing, prompt_of = [], [], dict[str, str]()
    for number, prompt in prompts.items():
        key = number if number in found else name_of_picture(prompt)
        if prompt_of.setdefault(key, prompt) != prompt:
            raise ValueError(f"{entry}: {prompt_of[key]!r} and {prompt!r} would have the same picture {key}; {NAMING}")
        those = found.get(key, [])
        if len(those) > 1:
            raise ValueError(f"{entry}: {those[0].name} and {those[1].name} are both of {prompt!r}; {NAMING}")
        chosen += those
        missing += [] if those else [f"{key or number}.png"]
    if missing:
        named = ", ".join(missing[:NUM_NAMED])
        more = f" and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
        raise ValueError(
            f"{entry}: {folder} is not a model (no model_index.json), and as a folder of pictures it lacks "
            f"{len(missing)} of {len(prompts)}: {named}{more}; {NAMING}"
        )
    return chosen


def read_square(path: Path, size: int) -> Image.Image:
    """Read the central square of a picture file, `size` px per side. Raises ValueError if the file is not a picture."""
    try:
        return Image.fromarray(square(decode_rgb(path.read_bytes()), size))
    except DecodeError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def read_pictures(folder: Path, contestant: str, prompts: pd.DataFrame) -> np.ndarray:
    """Read one contestant's pictures in `folder` (data/evaluation_images): uint8 (N, H, W, 3), in the order of the
    prompts."""
    paths = [folder / contestant / f"{key}.png" for key in prompts["key"]]
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
