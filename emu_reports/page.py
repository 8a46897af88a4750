"""Writing one page: a template, the data that it shows (the same as report.json), and its pictures."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from emu_data.files import atomic_dir, write_json
from emu_data.formatting import (
    format_count,
    format_number,
    format_p_value,
    format_percent,
    format_share,
    format_signed,
    format_significant,
    format_span,
)

TOY_LABEL = "toy scale"
# Version of report.json's entries. Increase it when an entry is renamed or removed: the index then leaves out reports
# of older versions until they are made again. Since 3, reports have contestants and cards and name their inputs, and
# trainings name the steps of their losses. Since 4, a training is not called a stage, nor the cascade a plan.
SCHEMA = 4

Picture = Image.Image | np.ndarray  # arrays are uint8 (H, W, 3)


@dataclass(frozen=True)
class Card:
    """A report's part of the index: its result in short, with a link to the page. template: the file
    templates/card_TEMPLATE.html.j2, which gets the entries of report.json, and `folder`, the path to the report's
    files. place: cards are sorted by it.
    """

    template: str
    place: int

    @property
    def file(self) -> str:
        """Path of the rendered card, relative to the report's folder; sorting by file name sorts by `place`."""
        return f"cards/{self.place:03d}-{self.template}.html"


@dataclass(frozen=True)
class Run:
    """What a page says about its origin. toy: whether the profile is at toy scale. made_from: asset -> md5 by which
    DVC, Dagster and MLflow identify its inputs.

    Nothing here may depend on the time, the folder or the commit: a page is an asset's output, so the same inputs must
    give the same bytes (docs/decisions/0011 and 0014).
    """

    profile: str
    toy: bool
    made_from: Mapping[str, str] = field(default_factory=dict)


def describe_run(run: Run, *labels: str) -> dict[str, Any]:
    """Return the entries that every report.json has. labels: further labels, after "toy scale" if the run is one."""
    return {
        "schema": SCHEMA,
        "profile": run.profile,
        "is_toy": run.toy,
        "labels": [TOY_LABEL, *labels] if run.toy else [*labels],
        "made_from": dict(run.made_from),
    }


def write_report(
    directory: Path,
    template: str,
    data: Mapping[str, Any],
    pictures: Mapping[str, Picture],
    charts: Mapping[str, str] | None = None,
    cards: Sequence[Card] = (),
    texts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `directory`/{index.html, report.json, cards, NAME.png …} atomically and return what report.json holds.

    template: the name of a file in templates/, without ".html.j2". data: dataclasses, DataFrames, numpy values and
    plain JSON values; NaN becomes null. pictures: file name without suffix ("pictures/0001-NAME") -> picture. charts:
    name -> SVG, for the templates only. cards: the report's parts of the index. texts: file name -> what it holds.
    """
    content = to_json(data)
    with atomic_dir(directory) as folder:
        for name, picture in pictures.items():
            save_png(folder / f"{name}.png", picture)
        html = render(template, content, charts or {}, root="../")
        (folder / "index.html").write_text(html, encoding="utf-8")
        for card in cards:
            html = render(f"card_{card.template}", {**content, "folder": directory.name}, charts or {}, root="")
            (folder / card.file).parent.mkdir(exist_ok=True)
            (folder / card.file).write_text(html, encoding="utf-8")
        for name, text in (texts or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        write_json(folder / "report.json", content)
    return content


def render(template: str, content: Mapping[str, Any], charts: Mapping[str, str], root: str) -> str:
    """Render a template as HTML. root: the path from the page to data/reports/ ("" or "../")."""
    safe = {name: Markup(svg) for name, svg in charts.items()}
    return _environment().get_template(f"{template}.html.j2").render(content, charts=safe, root=root)


def save_png(path: Path, picture: Picture) -> None:
    """Save a picture as PNG without metadata; create missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(path, "PNG", optimize=True)


def to_json(value: Any) -> Any:
    """Turn `value` into plain JSON values: dataclasses and rows of DataFrames become objects, NaN and infinities
    null.
    """
    if isinstance(value, pd.DataFrame):
        return [to_json(row) for row in value.to_dict(orient="records")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is pd.NA:
        return None
    return value


def _to_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("emu_reports"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "count": format_count,
        "span": format_span,
        "percent": format_percent,
        "share": format_share,
        "signed": format_signed,
        "significant": format_significant,
        "p_value": format_p_value,
        "sentence": _to_sentence,
    }
    return environment
