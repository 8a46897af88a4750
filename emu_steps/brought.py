"""Checks the corpus, checkpoints and prompts that a user brings, before any time is spent on what reads them."""

from collections.abc import Collection
from pathlib import Path

from emu_models.evaluation.prompts import read_prompt_file
from emu_models.folders import inspect_checkpoint, inspect_tunable
from emu_steps.contestants import is_model
from emu_steps.corpora import check_source
from emu_steps.layout import Layout
from emu_steps.params import REGISTERED, Params, tunes_ours

READERS = ("raw_corpus", "quality_tuned", "evaluation_images")  # the assets that read them, in the order of the graph


def brought_checkpoints(layout: Layout, params: Params, asset: str, made: Collection[Path]) -> dict[str, Path]:
    """Return entry of params.yaml -> path, for the checkpoints that an asset reads and no asset makes.

    made: the outputs of all assets. Registered versions are left out, since they are looked up when pictures are drawn,
    and so are contestants' folders that are not models, since those hold pictures.
    """
    found: dict[str, str] = {}
    if asset == "quality_tuned" and not tunes_ours(params.quality_tuned.start_from):
        found = {"quality_tuned.start_from": params.quality_tuned.start_from}
    if asset == "evaluation_images":
        named = params.evaluation_images.contestants
        found = {f"{asset}.contestants.{name}": at for name, at in named.items() if not at.startswith(REGISTERED)}
    paths = {entry: layout.root / address for entry, address in found.items()}
    return {
        entry: path
        for entry, path in paths.items()
        if path not in made and (asset == "quality_tuned" or path.is_file() or is_model(path))
    }


def check_brought(layout: Layout, params: Params, assets: Collection[str], made: Collection[Path]) -> list[str]:
    """Describe what these assets will read, each with its entry of params.yaml. Raises ValueError for a checkpoint that
    cannot be tuned or drawn with (it names the entry), a file of prompts that cannot be read, or a corpus of nothing.
    """
    if "raw_corpus" in assets:
        check_source(params.raw_corpus)
    lines = []
    for asset in READERS:
        if asset not in assets:
            continue
        for entry, path in brought_checkpoints(layout, params, asset, made).items():
            try:
                found = (inspect_tunable if asset == "quality_tuned" else inspect_checkpoint)(path)
            except ValueError as error:
                raise ValueError(f"{entry}: {error}") from None
            lines.append(f"{entry}: {found.layout}{f', {found.variant}' if found.variant else ''}")
    if "evaluation_images" in assets and (name := params.evaluation_images.prompts_file):
        lines.append(f"evaluation_images.prompts_file: {len(read_prompt_file(layout.root / name).prompts)} prompts")
    return lines
