"""Charts: SVG that uses the page's ink and font (so it works in light and dark mode), and pictures for Dagster's
pages, which have no style sheet.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from emu_data.formatting import format_number, format_span

INK, SOFT = "#010203", "#040506"  # placeholders, replaced by CSS variables in the SVG
WIDTH = 4.2  # inches of 72 px: about the width of a phone, so that text is not scaled there


@dataclass(frozen=True)
class Series:
    """One line of a chart. y: None at points that were not measured. is_soft: drawn thinner and in the soft ink."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    is_soft: bool = False


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Return an SVG of a few lines, each named at its end instead of in a legend, without a frame."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": y_label, "font.size": 9}):
        figure = Figure(figsize=(WIDTH, 2.5))
        axes = figure.add_axes((0.13, 0.17, 0.70, 0.76))
        ends = []
        for one in series:
            points = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None and math.isfinite(y)]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            colour = SOFT if one.is_soft else INK
            axes.plot(x, y, color=colour, linewidth=1.1 if one.is_soft else 1.6, solid_capstyle="round")
            if len(points) == 1:
                axes.plot(x, y, "o", color=colour, markersize=4)
            ends.append((x[-1], y[-1], one.name, colour))
        _quieten(axes)
        axes.set_xlabel(x_label, color=SOFT)
        axes.set_title(y_label, color=SOFT, loc="left", fontsize=9)
        for offset, (x, y, name, colour) in zip(_spread([e[1] for e in ends], axes), ends, strict=True):
            axes.annotate(
                name,
                (x, y),
                (5, offset),
                textcoords="offset points",
                color=colour,
                va="center",
                annotation_clip=False,
            )
        return _to_svg(figure)


def histogram(
    edges: Sequence[float], counts: Sequence[int], threshold: float | None, is_minimum: bool, x_label: str
) -> str:
    """Return an SVG of a distribution with its threshold, if there is one; bars beyond it are drawn in the soft ink.

    edges: one more than counts. is_minimum: whether values below the threshold are beyond it.
    """
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": x_label, "font.size": 9}):
        figure = Figure(figsize=(WIDTH, 1.6))
        axes = figure.add_axes((0.13, 0.26, 0.83, 0.66))
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        is_beyond = [threshold is not None and (m < threshold if is_minimum else m > threshold) for m in middles]
        colours = [SOFT if beyond else INK for beyond in is_beyond]
        axes.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge", color=colours, linewidth=0)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1)
            low, high = min(edges[0], threshold), max(edges[-1], threshold)
            axes.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
        _quieten(axes, is_counted=False)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.set_xlabel(x_label, color=SOFT)
        return _to_svg(figure)


def interval_picture(rows: Sequence[tuple[str, Any]], x_label: str, title: str) -> Image.Image:
    """Return a picture of intervals in per cent, one per row: (name, Interval, or a number without one)."""
    figure = Figure(figsize=(7, 0.9 + 0.36 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (_, value) in enumerate(rows):
        if isinstance(value, (int, float)):
            axes.plot(value, place, "o", color="white", markeredgecolor="#777", markersize=7)
            label = format_number(value)
        else:
            axes.plot([value.low, value.high], [place, place], color="#222", linewidth=2, solid_capstyle="round")
            axes.plot(value.estimate, place, "o", color="#222", markersize=7, clip_on=False)
            label = f"{format_number(value.estimate)} ({format_span(value)})"
        axes.annotate(label, (102, place), va="center", annotation_clip=False, fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.axvline(50, color="#ccc", linewidth=1, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)
    axes.set_xlabel(x_label)
    axes.set_title(title, loc="left", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return Image.open(buffer).convert("RGB")


def _quieten(axes: Axes, is_counted: bool = True) -> None:
    """Make axes thin and soft, without a frame. is_counted: only whole numbers on the horizontal axis."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(SOFT)
        axes.spines[side].set_linewidth(0.6)
    axes.tick_params(colors=SOFT, width=0.6, length=3)
    axes.minorticks_off()
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=is_counted))


def _spread(values: Sequence[float], axes: Axes) -> list[float]:
    """Return offsets in points that keep the names at the lines' ends from overlapping."""
    if not values:
        return []
    axes.get_ylim()  # matplotlib updates the limits only when they are read
    pixels = [float(axes.transData.transform((0, value))[1]) for value in values]
    order = sorted(range(len(values)), key=lambda index: pixels[index])
    placed: list[float] = []
    offsets = [0.0] * len(values)
    for index in order:
        place = max(pixels[index], placed[-1] + 16 if placed else -math.inf)
        placed.append(place)
        offsets[index] = (place - pixels[index]) * 72 / 100
    return offsets


def _to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace(INK, "var(--ink)").replace(SOFT, "var(--soft)")
