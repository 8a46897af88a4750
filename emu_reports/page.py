"""Writing one page: a template, what it shows (the same as report.json), and the pictures beside it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from emu_data.files import atomic_dir, write_json

TOY_LABEL = "toy scale"
# Of what report.json holds; raised when an entry is renamed or removed, so that the index leaves out a report
# that an older version wrote until it is made again. 3: reports know contestants and bring their cards.
SCHEMA = 3

Picture = Image.Image | np.ndarray  # arrays are uint8 (H, W, 3)


@dataclass(frozen=True)
class Card:
    """A report's part of the index: its finding in short, with a link to the page. template: its file is
    templates/card_TEMPLATE.html.j2, which gets what report.json holds and `folder`, the way to the report's files.
    place: cards stand in the order of these."""

    template: str
    place: int

    @property
    def file(self) -> str:
        return f"cards/{self.place:03d}-{self.template}.html"


class Run(Protocol):
    """What a page says about the run; params.yaml has it (`Params`)."""

    @property
    def profile(self) -> str: ...

    @property
    def toy(self) -> bool: ...


def describe_run(run: Run, *labels: str) -> dict[str, Any]:
    """The entries that every report.json has: schema, profile, and labels, "toy scale" first where it is
    one.
    """
    return {
        "schema": SCHEMA,
        "profile": run.profile,
        "is_toy": run.toy,
        "labels": [TOY_LABEL, *labels] if run.toy else [*labels],
    }


def write_report(
    directory: Path,
    template: str,
    data: Mapping[str, Any],
    pictures: Mapping[str, Picture],
    charts: Mapping[str, str] | None = None,
    cards: Sequence[Card] = (),
) -> dict[str, Any]:
    """Write `directory`/{index.html, report.json, cards, NAME.png …} in one go and return what report.json holds.

    template: the name of a file in templates/, less ".html.j2". data: dataclasses, DataFrames, numpy values
    and what JSON takes; NaN becomes null. pictures: file name without suffix ("pictures/0001-NAME") ->
    picture. charts: name -> SVG, for the templates alone. cards: its parts of the index.
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
        write_json(folder / "report.json", content)
    return content


def render(template: str, content: Mapping[str, Any], charts: Mapping[str, str], root: str) -> str:
    """HTML of a template. root: the way from the page to data/reports/ ("" or "../")."""
    safe = {name: Markup(svg) for name, svg in charts.items()}
    return _environment().get_template(f"{template}.html.j2").render(content, charts=safe, root=root)


def save_png(path: Path, picture: Picture) -> None:
    """Save as PNG without metadata, folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(path, "PNG", optimize=True)


def to_json(value: Any) -> Any:
    """`value` as JSON takes it: dataclasses and rows of DataFrames as objects, NaN and infinities as null."""
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
        "share": format_share,
        "p_value": format_p_value,
        "duration": format_duration,
    }
    return environment


def format_number(value: float | None, digits: int = 1) -> str:
    """Fixed digits, a real minus; "–" for nothing."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def format_count(value: float | None) -> str:
    """12 345, thousands set off by a thin space."""
    return "–" if value is None else f"{int(value):,}".replace(",", "\u202f")


def format_span(interval: Mapping[str, float | None], digits: int = 1) -> str:
    """ "64.0 – 77.8", the interval alone."""
    if interval["low"] is None or interval["high"] is None:
        return ""
    return f"{format_number(interval['low'], digits)} – {format_number(interval['high'], digits)}"


def format_share(value: float | None, digits: int = 0) -> str:
    """0..1 as per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def format_p_value(value: float | None) -> str:
    """Two significant digits, "< 0.001" below that."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def format_duration(seconds: float | None) -> str:
    """Seconds as "48 s", "7 min 5 s" or "2 h 10 min"."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
