"""`emu plan filters`: what measuring a corpus takes, from what its first pictures cost here."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from emu_dagster.commands.plan_filters import print_filter_plan
from emu_data.costs import Machines
from emu_data.signals import Signal
from emu_data.signals.caption import CaptionSignal
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.looks import LooksSignal
from emu_steps import filter_plan, filtering
from emu_steps.filter_plan import plan_corpus
from emu_steps.layout import Layout
from emu_steps.params import Params
from tests.profiles import params_of
from tests.shards import write_toy_shards

ONE_CORE = Machines(1, 0, 0.5, 0.0)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    (tmp_path / "data").mkdir()
    shards, _ = write_toy_shards(tmp_path / "data", 40)
    shards.rename(tmp_path / "data" / "raw")

    def signals(layout: Layout, params: Params) -> list[Signal]:
        return [GeometrySignal(), CaptionSignal(), LooksSignal()]

    for module in (filter_plan, filtering):
        monkeypatch.setattr(module, "build_signals", signals)
    return Layout(tmp_path)


def test_a_plan_follows_from_the_pilot_and_touches_nothing_of_the_project(layout: Layout) -> None:
    params = params_of("smoke")
    with pytest.raises(ValueError, match="emu plan filters --measure"):
        plan_corpus(layout, params, 1000, ONE_CORE, measure=False)
    plan = plan_corpus(layout, params, 1000, ONE_CORE, measure=True)
    assert not layout.signals.exists()
    assert [piece.name for piece in plan.pieces][0] == "reading" and plan.pieces[0].share == 1.0
    assert {piece.name for piece in plan.pieces} == {"reading", "decode", "geometry", "caption", "looks"}
    expected = sum(piece.share * piece.cost.total for piece in plan.pieces) * 1000 / 3.6e6
    assert plan.hours == pytest.approx(expected) and plan.dollars == pytest.approx(expected / 2)
    console = Console(file=io.StringIO(), width=200)
    print_filter_plan(plan, 1000, ONE_CORE, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(piece.name in text for piece in plan.pieces) and "1,000 pictures" in text and "assumed:" in text


def test_without_a_corpus_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="materialise raw_corpus"):
        plan_corpus(Layout(tmp_path), params_of("smoke"), 1, ONE_CORE, measure=True)


def test_what_filter_ledger_measured_is_enough_and_a_lost_cache_is_named(layout: Layout) -> None:
    params = params_of("smoke")
    _, _, timings = filtering.arrange_signals(layout, params)
    assert set(timings.table["piece"]) == {"reading", "decode", "geometry", "caption", "looks"}
    assert (timings.table["core ms"] > 0).all() and timings.expected is not None
    assert plan_corpus(layout, params, 10, ONE_CORE, measure=False).hours > 0
    filtering.pilot_costs(layout).unlink()
    with pytest.raises(ValueError, match=r"what reading.*data/cache"):
        plan_corpus(layout, params, 10, ONE_CORE, measure=False)
