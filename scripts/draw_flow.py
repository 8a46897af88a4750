"""Draws docs/flow.png from a finished project: what is left after each step, from the raw corpus to the tuned model.

python -m scripts.draw_flow --out docs/flow.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import typer
from matplotlib.figure import SubFigure
from PIL import Image

from emu_data.ledger import read_ledger
from emu_data.shards import read_images, read_manifest
from emu_steps.layout import Layout, project_root
from emu_steps.params import read_params

SIDE = 3  # pictures per side of each step's square
TILE = 64  # px
GAP = 4  # px
ARROWS = ("filters", "generalists", "specialists\nand captions", "quality-tuning")


def main(
    out: Annotated[Path, typer.Option(help="the PNG to write")] = Path("docs/flow.png"),
    seed: Annotated[int, typer.Option(help="decides which pictures of each step are shown")] = 0,
) -> None:
    """Draw what is left after each step. The tuned model's pictures are omitted if there are none. Raises ValueError or
    OSError if a step up to the curated set has not been made.
    """
    layout, rng = Layout(project_root()), np.random.default_rng(seed)
    ledger = read_ledger(layout.filtered / "ledger")
    readable = ledger.loc[ledger["first_failed_gate"] != "readable", "key"].tolist()
    kept = read_manifest(layout.filtered)["key"].tolist()
    generalists = pd.read_parquet(layout.generalist / "selection.parquet")["key"].tolist()
    curated = read_manifest(layout.curated)["key"].tolist()
    steps = [
        (f"{len(ledger)} raw rows", grid(read_images(layout.raw, draw(rng, readable), TILE))),
        (f"{len(kept)} filtered", grid(read_images(layout.filtered, draw(rng, kept), TILE))),
        (f"{len(generalists)} kept by generalists", grid(read_images(layout.filtered, draw(rng, generalists), TILE))),
        (f"{len(curated)} needles", grid(read_images(layout.curated, draw(rng, curated), TILE))),
    ]
    if layout.evaluation.is_dir():
        prompts = pd.read_parquet(layout.evaluation / "prompts.parquet")["key"].head(SIDE**2)
        candidate, _ = read_params(layout.root / "params.yaml").comparison
        drawn = np.stack([load(layout.evaluation / candidate / f"{key}.png") for key in prompts])
        steps.append((f"drawn by the {candidate} model", grid(drawn)))
    figure = plt.figure(figsize=(2.6 * len(steps), 2.5), dpi=130)
    parts: Any = figure.subfigures(1, len(steps))
    for part, (title, picture) in zip(parts, steps, strict=True):
        show(part, title, picture)
    for place, text in enumerate(ARROWS[: len(steps) - 1], start=1):
        figure.text(place / len(steps), 0.46, f"{text}\n→", ha="center", va="center", fontsize=8, color="#555")
    figure.savefig(out)
    print(out)


def draw(rng: np.random.Generator, keys: Sequence[str]) -> list[str]:
    """Return a random choice of SIDE squared keys."""
    return rng.choice(sorted(keys), min(SIDE**2, len(keys)), replace=False).tolist()


def load(path: Path) -> np.ndarray:
    """Return a picture as uint8 (TILE, TILE, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))


def grid(images: np.ndarray) -> np.ndarray:
    """Return one white-framed square picture of uint8 (N, TILE, TILE, 3), with N at most SIDE squared."""
    whole = np.full((SIDE * (TILE + GAP), SIDE * (TILE + GAP), 3), 255, np.uint8)
    for place, image in enumerate(images):
        y, x = (part * (TILE + GAP) for part in divmod(place, SIDE))
        whole[y : y + TILE, x : x + TILE] = image
    return whole


def show(part: SubFigure, title: str, picture: np.ndarray) -> None:
    """Draw a picture with its title into a part of the figure."""
    axes = part.subplots()
    axes.imshow(picture, interpolation="none")
    axes.set_title(title, fontsize=10)
    axes.axis("off")
    part.subplots_adjust(left=0.15, right=0.85, bottom=0.02, top=0.88)


if __name__ == "__main__":
    typer.run(main)
