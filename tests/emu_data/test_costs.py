"""What measuring costs: counted in pieces, planned for any number of pictures."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_data.costs import (
    Cost,
    Machines,
    Spent,
    in_network,
    mean_cost,
    note_costs,
    plan_filters,
    read_costs,
    spent_since,
    spent_so_far,
)

PIECES = [("decode", 1.0, Cost(7.0, 0.0, 10)), ("text", 0.5, Cost(4.0, 30.0, 10, "H100"))]


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_networks_are_counted_apart_from_the_core_that_waits_for_them() -> None:
    before = spent_so_far()
    work(0.02)
    with in_network("cpu"):
        work(0.03)
    with in_network("cuda"):
        time.sleep(0.05)  # a core that waits
    core, network = spent_since(before)
    assert 0.02 <= core < 0.04 and 0.08 <= network < 0.12


def test_a_cost_is_a_mean_and_the_one_of_more_pictures_is_kept(tmp_path: Path) -> None:
    many = mean_cost([Spent(0.001, 0.0), Spent(0.003, 0.004)], "cpu")
    assert (many.core, many.network, many.num_pictures) == (2.0, 2.0, 2)
    path = tmp_path / "cache" / "costs.json"
    assert read_costs(path) == {}
    note_costs(path, {"decode": many})
    note_costs(path, {"decode": Cost(9.0, 9.0, 1), "looks": Cost(1.0, 0.0, 1)})
    assert read_costs(path) == {"decode": many, "looks": Cost(1.0, 0.0, 1)}
    note_costs(path, {"decode": Cost(9.0, 1.0, 1, "H100")})  # another machine
    assert read_costs(path)["decode"].device == "H100"


@given(st.integers(1, 10**10), st.integers(1, 10_000), st.floats(0, 2))
def test_a_plan_is_linear(num: int, workers: int, lost: float) -> None:
    one = plan_filters(PIECES, 3.6e6, Machines(1, 0, 2.0, 0.0))
    assert (one.core_hours, one.network_hours, one.hours, one.dollars) == (9.0, 15.0, 24.0, 48.0)
    plan = plan_filters(PIECES, num, Machines(workers, 0, 2.0, lost))
    assert plan.hours == pytest.approx(one.hours * num / 3.6e6 / workers * (1 + lost))
    assert sum(piece.core_hours for piece in plan.pieces) == pytest.approx(plan.core_hours)


def test_the_slower_of_workers_and_gpus_sets_the_pace() -> None:
    few, many = (plan_filters(PIECES, 3.6e6, Machines(workers, 1, 1.0, 0.0)) for workers in (1, 10))
    assert (few.bound, few.hours) == ("workers", 24.0)
    assert (many.bound, many.hours) == ("GPUs", 15.0)


def test_what_a_cpu_took_says_nothing_about_gpus() -> None:
    pieces = [("decode", 1.0, Cost(7.0, 0.0, 10)), ("text", 1.0, Cost(4.0, 30.0, 10))]
    with pytest.raises(ValueError, match="networks of text were measured on a CPU"):
        plan_filters(pieces, 1, Machines(8, 1, 1.0, 0.0))
    assert plan_filters(pieces[:1], 3.6e6, Machines(7, 1, 1.0, 0.0)).hours == 1.0
