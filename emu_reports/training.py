"""The training report: loss curves and sample grids of each training (paper sec. 3.2 and 3.4)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from emu_reports.charts import Series, line_chart
from emu_reports.held_out import HeldOut, curves_file, read_held_out
from emu_reports.page import Card, Picture, Run, describe_run, write_report


@dataclass(frozen=True)
class FinishedTraining:
    """One training, as its model folder describes it. resolution: px per side. curves: columns step, loss, val_loss
    (NaN at steps without validation). noise_offset: None if the training has none. preview: a grid of samples, or of
    pictures and their reconstructions.
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


def read_finished_training(folder: Path, title: str) -> FinishedTraining:
    """Read what a training wrote to its model folder: meta.json, curves, preview.png. None of them holds times.

    Raises ValueError if the folder holds no finished training.
    """
    held_out, preview = read_held_out(folder), folder / "preview.png"
    meta = json.loads((folder / "meta.json").read_text())
    lines = [json.loads(line) for line in curves_file(folder).read_text().splitlines()]
    return FinishedTraining(
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


def write_training_report(directory: Path, trainings: Sequence[FinishedTraining], run: Run) -> dict[str, Any]:
    """Write the page and return what its report.json holds. `trainings` are in the order of the chain."""
    pictures: dict[str, Picture] = {}
    shown = []
    for training in trainings:
        entry = {name: getattr(training, name) for name in FinishedTraining.__dataclass_fields__ if name != "preview"}
        entry["preview"] = None
        entry |= {"rose": training.held_out.rose, "told": training.held_out.describe()}
        if training.preview is not None:
            pictures[f"preview-{training.name}"] = training.preview
            entry["preview"] = f"preview-{training.name}.png"
        shown.append(entry)
    data = {
        **describe_run(run),
        "trainings": shown,
    }
    charts = {training.name: loss_chart(training.curves.to_dict(orient="list")) for training in trainings}
    return write_report(directory, "training", data, pictures, charts, [Card("training", 70)])


def loss_chart(curves: Mapping[Any, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG of training and held-out loss. curves: columns step, loss, val_loss, as lists or as rows."""
    if not isinstance(curves, Mapping):
        curves = {name: [row[name] for row in curves] for name in ("step", "loss", "val_loss")}
    series = [
        Series("training", curves["step"], curves["loss"], is_soft=True),
        Series("held out", curves["step"], curves["val_loss"]),
    ]
    return line_chart(series, "optimiser steps", "loss")
