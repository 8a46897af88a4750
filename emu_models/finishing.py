"""What a finished training leaves: its result's folder is found again, described, and has a preview.

A result is in diffusers' layout, with meta.json (what it was trained from), metrics.jsonl (its curves) and preview.png.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu_data.files import atomic_dir, link_or_copy
from emu_models.checkpoints import load_pipeline
from emu_models.device import choose_device, half_precision_pays
from emu_models.drawing import draw_encoded, encode_for_drawing
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.training.cache import to_images, to_tensor
from emu_models.training.identity import Identity, read_result, settings_of, weights_of
from emu_models.training.jobs import LoopJob, PipelineJob
from emu_models.training.loop import TrainingResult, read_log
from emu_models.training.rows import PictureRows, Rows
from emu_models.training.running import Running


def read_finished(running: Running, folder: Path) -> TrainingResult | None:
    """Return the result of a training that was finished before, the same in all processes; otherwise None."""
    found = read_result(folder)
    running.world.wait()  # all processes look before one of them can finish it
    return found


def write_beside(
    folder: Path,
    job: LoopJob,
    identity: Identity,
    result: TrainingResult,
    rows: Rows | PictureRows,
    num_parameters: int,
) -> None:
    """Write metrics.jsonl and meta.json. They do not depend on the clock, on the project's location or on how the model
    was trained, so that an interrupted training, or one done elsewhere, leaves the same bytes, and assets made from it
    stay valid."""
    log = read_log(result.folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    settings = settings_of(job)
    weights = {name: [path.name, identity.contents[name]] for name, path in weights_of(job).items()}
    meta = {
        "name": job.name,
        "identity": identity.name,
        "resolution": job.resolution,
        "num_rows": len(rows.keys),
        "num_held_out": len(rows.held_out) if isinstance(rows, PictureRows) else int(rows.is_held_out.sum()),
        "rows_per_bucket": rows.rows_per_bucket() if isinstance(rows, PictureRows) else None,
        "num_parameters": num_parameters,
        "device": choose_device().type,
        "half_precision": half_precision_pays(choose_device()),
        "result": {name: value for name, value in asdict(result).items() if name not in ("timings", "folder")},
        "loop": settings["loop"],
        "spec": settings["spec"],
        "weights": weights,
        "preview": _describe_preview(job),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))


def draw_sheet(pipeline: Any, job: PipelineJob, encoded: list[dict[str, Any]] | None = None) -> Image.Image:
    """Draw a sheet of the fixed prompts, each always with the same seed, so that sheets can be compared. encoded: the
    prompts, if they were encoded before."""
    encoded = encoded or encode_for_drawing(pipeline, list(job.prompts))
    asked = {"guidance_scale": job.guidance_scale, "resolution": job.resolution}
    pictures = draw_encoded(pipeline, encoded, list(range(len(job.prompts))), **asked)
    return join_grid([np.asarray(p) for p in pictures], 8)


def renew_preview(result: Path, job: PipelineJob) -> None:
    """Draw the preview of a finished model again if prompts or guidance have changed; the weights stay."""
    meta = json.loads((result / "meta.json").read_text())
    if meta["preview"] == _describe_preview(job):
        return
    pipeline = load_pipeline(result) if job.prompts else None
    with atomic_dir(result) as partial:
        left_out = shutil.ignore_patterns("preview.png", "meta.json")
        shutil.copytree(result, partial, ignore=left_out, copy_function=link_or_copy, dirs_exist_ok=True)
        (partial / "meta.json").write_text(json.dumps({**meta, "preview": _describe_preview(job)}, indent=2))
        if pipeline is not None:
            pipeline.set_progress_bar_config(disable=True)
            draw_sheet(pipeline, job).save(partial / "preview.png")


@torch.no_grad()
def save_pairs(rows: Rows, autoencoder: Autoencoder, path: Path) -> None:
    """Save pictures above their reconstructions, at 1:1."""
    images = rows.images[:16]
    x = to_tensor(images)
    y = to_images(autoencoder.decode(autoencoder.encode(x).mean))
    join_grid([*images, *y], len(images)).save(path)


def _describe_preview(job: LoopJob) -> dict[str, Any] | None:
    if not isinstance(job, PipelineJob) or not job.prompts:
        return None
    return {"prompts": list(job.prompts), "guidance_scale": job.guidance_scale}


def join_grid(images: list[np.ndarray], num_columns: int) -> Image.Image:
    """Join pictures (H, W, 3) of one size into one, row by row; the rest of the last row is white."""
    blanks = [np.full_like(images[0], 255)] * (-len(images) % num_columns)
    tiles = np.stack([*images, *blanks])
    lines = [np.concatenate(list(line), axis=1) for line in tiles.reshape(-1, num_columns, *images[0].shape)]
    return Image.fromarray(np.concatenate(lines, axis=0))
