"""The training report: loss curves and sample grids of each stage (paper sec. 3.2 and 3.4)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from emu_reports.charts import Series, line_chart
from emu_reports.held_out import HeldOut, read_held_out
from emu_reports.page import Card, Picture, Run, describe_run, write_report


@dataclass(frozen=True)
class TrainingStage:
    """One training. curves: columns step, loss, val_loss (NaN where none was measured). preview: a grid of samples, or
    of pictures and reconstructions.
    """

    name: str
    title: str
    resolution: int
    num_rows: int
    num_parameters: int
    held_out: HeldOut
    stopped_early: bool
    curves: pd.DataFrame
    noise_offset: float | None = None
    preview: Image.Image | None = None


def read_training_stage(folder: Path, title: str) -> TrainingStage:
    """What a training left in its model folder (meta.json, metrics.jsonl, preview.png), which no times are part of.

    Raises ValueError if the folder holds no finished training.
    """
    held_out, preview = read_held_out(folder), folder / "preview.png"
    meta = json.loads((folder / "meta.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return TrainingStage(
        name=meta["name"],
        title=title,
        resolution=meta["resolution"],
        num_rows=meta["num_rows"],
        num_parameters=meta["num_parameters"],
        held_out=held_out,
        stopped_early=meta["result"]["stopped_early"],
        curves=pd.DataFrame(lines, columns=["step", "loss", "val_loss"]),
        noise_offset=meta["spec"].get("training", {}).get("noise_offset"),
        preview=Image.open(preview).convert("RGB") if preview.is_file() else None,
    )


def write_training_report(directory: Path, stages: Sequence[TrainingStage], run: Run) -> dict[str, Any]:
    """Write the page and return what its report.json holds. `stages` are in the order of the chain."""
    pictures: dict[str, Picture] = {}
    shown = []
    for stage in stages:
        entry = {name: getattr(stage, name) for name in TrainingStage.__dataclass_fields__ if name != "preview"}
        entry["preview"] = None
        entry |= {"rose": stage.held_out.rose, "told": stage.held_out.describe()}
        if stage.preview is not None:
            pictures[f"preview-{stage.name}"] = stage.preview
            entry["preview"] = f"preview-{stage.name}.png"
        shown.append(entry)
    data = {
        **describe_run(run),
        "stages": shown,
    }
    charts = {stage.name: loss_chart(stage.curves.to_dict(orient="list")) for stage in stages}
    return write_report(directory, "training", data, pictures, charts, [Card("training", 70)])


def loss_chart(curves: Mapping[Any, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> str:
    """SVG of training and held-out loss. curves: columns step, loss, val_loss, as lists or as rows."""
    if not isinstance(curves, Mapping):
        curves = {name: [row[name] for row in curves] for name in ("step", "loss", "val_loss")}
    series = [
        Series("training", curves["step"], curves["loss"], is_soft=True),
        Series("held out", curves["step"], curves["val_loss"]),
    ]
    return line_chart(series, "optimiser steps", "loss")
