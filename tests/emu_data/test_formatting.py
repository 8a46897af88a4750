"""Numbers for readers: one function for each kind, used wherever numbers are shown."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_data.formatting import (
    NOTHING,
    format_count,
    format_duration,
    format_number,
    format_p_value,
    format_percent,
    format_share,
    format_signed,
    format_significant,
    format_span,
    rounded,
)
from emu_data.votes.intervals import Interval

ROOT = Path(__file__).parents[2]
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def read(text: str) -> float:
    """Return the number that a reader takes from what was written."""
    return float(text.replace("−", "-").replace("\u202f", "").removesuffix(" %"))


def test_numbers_are_written_for_readers():
    assert format_count(1234567) == "1\u202f234\u202f567" and format_number(-1.25, 2) == "−1.25"
    assert format_signed(1.25, 2) == "+1.25" and format_signed(-1.25, 2) == "−1.25"
    assert format_percent(64.34) == "64.3 %" and format_share(0.6434) == "64 %"
    assert format_p_value(0.0001) == "< 0.001" and format_p_value(0.0123) == "0.012"
    assert format_span(Interval(1.0, 0.5, 2.0)) == "0.5 – 2.0" == format_span({"low": 0.5, "high": 2.0})
    assert format_span({"low": None, "high": 2.0}) == "" == format_span(Interval(1.0, float("nan"), float("nan")))
    assert [format_duration(s) for s in (48.4, 425, 7800)] == ["48 s", "7 min 5 s", "2 h 10 min"]


@pytest.mark.parametrize("write", [format_number, format_signed, format_count, format_significant, format_percent])
@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_missing_number_is_a_dash_and_never_a_word(write, nothing):
    assert write(nothing) == NOTHING == format_share(nothing) == format_p_value(nothing) == format_duration(nothing)


@given(FINITE)
def test_what_is_written_is_the_number(value: float):
    if abs(value) < 1e12:
        assert abs(read(format_number(value, 3)) - value) <= 0.00051 + 1e-9 * abs(value)
        assert read(format_signed(value, 3)) == read(format_number(value, 3))
    assert abs(read(format_significant(value)) - value) <= 0.00051 * abs(value)


@given(FINITE | st.integers(-(10**15), 10**15))
def test_a_rounded_number_is_short_and_still_the_number(value: float):
    short = rounded(value)
    assert abs(short - value) <= 0.0005000001 * abs(value)
    if isinstance(short, float) and abs(short) > 1e-4:
        assert len(repr(abs(short)).replace(".", "").strip("0")) <= 4
    if value == int(value):
        assert isinstance(short, int) and short == value


def test_counts_stay_counts_and_text_stays_text():
    assert rounded(412.0) == 412 and isinstance(rounded(412.0), int)
    assert rounded(15000.4) == 15000 and rounded(True) is True and rounded("a") == "a"
    assert rounded(float("nan")) == NOTHING


# Where numbers are shown. emu_data and emu_models have numbers only in errors.
SHOWING = ("emu_reports", "emu_steps", "emu_dagster")
FORMATS = re.compile(r"\.\d*[fgeE%]|[fgeE%,]$")
ALLOWED = {
    "emu_dagster/machine/processes.py": "a process's start is part of its name",
    "emu_dagster/commands/plan.py": "tables on the terminal, of numbers that are on no page, in units of their own",
    "emu_dagster/commands/plan_filters.py": "likewise",
    "emu_dagster/commands/doctor.py": "sizes of files and disks, on the terminal",
}


def own_formats(tree: ast.AST) -> list[str]:
    """Return how a module itself rounds or formats numbers: format specs, round(), .round()."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            spec = ast.unparse(node.format_spec)[2:-1]
            if FORMATS.search(spec):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "round":
            found.append(ast.unparse(node))
    return found


def test_no_other_module_formats_numbers() -> None:
    """Otherwise a number would look different on two pages."""
    files = [path for name in SHOWING for path in sorted((ROOT / name).rglob("*.py"))]
    own = {path.relative_to(ROOT).as_posix(): own_formats(ast.parse(path.read_text())) for path in files}
    assert {name: found for name, found in own.items() if found and name not in ALLOWED} == {}
    assert all(own[name] for name in ALLOWED), "an exception that nobody needs"


def test_no_template_formats_numbers_but_where_a_bar_is_drawn() -> None:
    for path in (ROOT / "emu_reports" / "templates").glob("*.j2"):
        shown = re.sub(r'style="[^"]*"', "", path.read_text())
        assert not re.findall(r"\| *round|\| *float|\| *format", shown), path


@pytest.mark.parametrize("text", ['f"{x:.1f}"', 'f"{x:+.{n}f}"', 'f"{x:.3g}"', 'f"{x:,}"', "x.round(3)", 'f"{x:.1%}"'])
def test_the_search_finds_formats(text: str) -> None:
    assert own_formats(ast.parse(text))
    assert not own_formats(ast.parse('f"{name:<7} {when:%Y-%m-%d}"; round(x)'))
