"""Finds the order of the cascade's signals: by declared cost / -log(pass rate), with rates measured on a pilot.

If gates are independent, this order is close to the cheapest (cost / (1 - pass rate) would give the cheapest; if every
gate passes at least half, the difference is at most 2 %). An early gate should be cheap *and* reject many pictures; one
that rejects nothing comes last, however cheap it is. Costs that signals share (decoding, the embedding) count for the
first signal that needs them.

The order determines which values of a rejected picture are recorded, so it must not depend on a clock: signals declare
their costs, pass rates are counted on the corpus's first rows, and every run, machine and engine has the same order.
What the pilot really cost is kept in a cache, displayed beside the declared costs, and used by `emu plan filters`
(docs/decisions/0011-no-clock-in-what-is-recorded.md).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from emu_data.cascade import Measured, StopRule, is_measured, load_signals, measure_shard, read_values
from emu_data.costs import READING, Cost, mean_cost, note_costs, read_costs
from emu_data.engine import Engine, Guard, run_shards
from emu_data.files import write_json
from emu_data.samples import STATUS_SUCCESS
from emu_data.shards import read_rows
from emu_data.signals import Signal

NUM_PILOT = 512  # rows measured by every signal; chosen here: a pass rate of 0.9 is then known to 0.03
# ms of one core per picture, declared and measured as signals.Signal.cost says. The embedding's cost is ViT-B/32's;
# the demo's small models take a hundredth of it, so that signals on the embedding come later than they need to.
SHARED_COSTS = {"decode": 2.0, "embedding": 150.0}
ORDER_FILE = "order.json"


@dataclass(frozen=True)
class CascadeOrder:
    """The order of the signals, and what determined it.

    costs: ms per picture, as declared: "decode", "embedding" and each signal. pass_rates: 0..1, the share of the
    pilot's pictures that pass that signal alone. reached: 0..1, the share of them that the signal is asked about in
    this order, since nothing before it rejected them (the control sample left aside). sources: what measures each
    signal, in words.
    """

    order: tuple[str, ...]
    costs: Mapping[str, float]
    pass_rates: Mapping[str, float]
    reached: Mapping[str, float]
    num_pilot: int
    sources: Mapping[str, str]

    def arrange(self, signals: Sequence[Signal]) -> list[Signal]:
        """Return the signals in this order."""
        return sorted(signals, key=lambda signal: self.order.index(signal.name))


def find_order(
    raw_dir: Path,
    shards: Sequence[str],
    signals: Sequence[Signal],
    rule: StopRule,
    out_dir: Path,
    timings: Path,
    engine: Engine | None = None,
) -> CascadeOrder:
    """Return the order for these signals and policies, and write it to out_dir/order.json.

    shards: the corpus's first few, in order: the pilot's rows are their first NUM_PILOT. Rows that have not been
    measured yet are measured on `engine`, and their values are written like any others. timings: a cache file, which
    receives what this cost (see `measured_costs`). Only one process measures; others wait for it.
    """
    with _locked(out_dir):
        values, measured = _measure_rows(raw_dir, shards, signals, out_dir, engine)
        note_costs(timings, _costs_of(signals, measured))
        for old in (*out_dir.glob("plan*.json"), out_dir / "pilot.json"):
            old.unlink(missing_ok=True)  # earlier versions of this program wrote these files, with seconds in them
        rejects = {signal.name: _rejects(rule, values, [signal]) for signal in signals}
        pass_rates = {name: 1.0 - _share(rejected) for name, rejected in rejects.items()}
        costs = {**SHARED_COSTS, **{signal.name: signal.cost() for signal in signals}}
        sources = {signal.name: signal.describe() for signal in signals}
        names = order_signals(signals, costs, pass_rates)
        arranged = sorted(signals, key=lambda signal: names.index(signal.name))
        reached = {
            signal.name: 1.0 - _share(_rejects(rule, values, arranged[:position]))
            for position, signal in enumerate(arranged)
        }
        order = CascadeOrder(names, costs, pass_rates, reached, len(values), sources)
        write_json(out_dir / ORDER_FILE, asdict(order))
    return order


def read_order(out_dir: Path) -> CascadeOrder | None:
    """Return the order that was last written to out_dir/order.json, None if there is none of this version's."""
    path = Path(out_dir) / ORDER_FILE
    if not path.is_file():
        return None
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if written.keys() != {field.name for field in fields(CascadeOrder)}:
        return None
    written["order"] = tuple(written["order"])
    return CascadeOrder(**written)


def order_signals(
    signals: Sequence[Signal], costs: Mapping[str, float], pass_rates: Mapping[str, float]
) -> tuple[str, ...]:
    """Return the signals' names in the order of cost / -log(pass rate), each time the best of those left. A shared
    piece (decoding, the embedding) costs nothing after its first use. costs: as in CascadeOrder, in any unit.
    """
    left, order, paid = list(signals), [], set[str]()

    def rank(signal: Signal) -> tuple[float, float, str]:
        cost = costs[signal.name] + sum(costs[piece] for piece in _shared(signal) if piece not in paid)
        passing = pass_rates[signal.name]
        weight = math.inf if passing <= 0 else -math.log(passing)
        return (cost / weight if weight > 0 else math.inf), cost, signal.name

    while left:
        best = min(left, key=rank)
        left.remove(best)
        order.append(best.name)
        paid.update(_shared(best))
    return tuple(order)


def expected_cost(signals: Sequence[Signal], costs: Mapping[str, float], pass_rates: Mapping[str, float]) -> float:
    """Return the mean cost of a picture, in the unit of `costs`, if signals run in this order and their gates are
    independent.
    """
    total, going, paid = 0.0, 1.0, set[str]()
    for signal in signals:
        total += going * (costs[signal.name] + sum(costs[piece] for piece in _shared(signal) if piece not in paid))
        going *= pass_rates[signal.name]
        paid.update(_shared(signal))
    return total


def _rejects(rule: StopRule, values: pd.DataFrame, signals: Sequence[Signal]) -> list[bool]:
    """Return of each row whether what these signals measured rejects it."""
    rows = values[[column for signal in signals for column in signal.columns]].astype(object)
    records: list[dict[Any, Any]] = rows.where(rows.notna(), None).to_dict("records")
    return [rule.is_rejected(record) for record in records]


def _share(rejected: Sequence[bool]) -> float:
    return sum(rejected) / max(1, len(rejected))


def measured_costs(timings: Path, signals: Sequence[Signal]) -> dict[str, Cost]:
    """Return what the pilot's pieces cost on this machine, as far as known: costs.READING, "decode", "embedding" and
    each signal.
    """
    noted = read_costs(timings)
    return {piece: noted[name] for piece, name in _pieces(signals).items() if name in noted}


def shares_reached(order: CascadeOrder, signals: Sequence[Signal], control_share: float) -> dict[str, float]:
    """Return the share (0..1) of all pictures that each piece is asked about, in the cascade's order: costs.READING,
    "decode" and "embedding" before the first signal that needs them, and each signal.

    A picture of the control sample is asked by every signal, and one that nothing rejects is decoded at the end.
    """
    shares = {READING: 1.0}
    for signal in order.arrange(signals):
        share = order.reached[signal.name]
        for piece in (*_shared(signal), signal.name):
            shares.setdefault(piece, share + control_share * (1.0 - share))
    return shares


def _pieces(signals: Sequence[Signal]) -> dict[str, str]:
    """Return piece -> the name under which its cost is noted, which says what measured it."""
    return {piece: piece for piece in (READING, *SHARED_COSTS)} | {signal.name: _name(signal) for signal in signals}


def _costs_of(signals: Sequence[Signal], measured: Sequence[Measured]) -> dict[str, Cost]:
    """Return what the pieces cost, by the names under which they are noted: means over the pictures that each was asked
    about, without the first batch of each child, if there are others.
    """
    found = {}
    for piece, name in _pieces(signals).items():
        asked = [one for one in measured if piece in one.spent]
        counted = [one for one in asked if one.is_warm] or asked
        if counted:
            found[name] = mean_cost([one.spent[piece] for one in counted], counted[0].device)
    return found


def _name(signal: Signal) -> str:
    return f"{signal.name}@{signal.version}"


def pilot_keys(raw_dir: Path, shards: Sequence[str], num: int) -> dict[str, list[str]]:
    """Return shard -> keys, of the first `num` rows with status `success`."""
    keys: dict[str, list[str]] = {}
    for shard in shards:
        rows = read_rows(Path(raw_dir) / f"{shard}.parquet")
        arrived = sorted(rows.loc[rows["status"] == STATUS_SUCCESS, "key"])
        keys[shard] = arrived[: num - sum(map(len, keys.values()))]
        if sum(map(len, keys.values())) >= num:
            break
    return keys


def _measure_rows(
    raw_dir: Path, shards: Sequence[str], signals: Sequence[Signal], out_dir: Path, engine: Engine | None
) -> tuple[pd.DataFrame, list[Measured]]:
    """Measure all signals on the pilot's rows. Return the values of the pictures that can be read, and what was
    measured of those that had not been measured before.
    """
    rows = pilot_keys(raw_dir, shards, NUM_PILOT)
    waiting = [part for part in rows.items() if not is_measured(raw_dir, signals, out_dir, *part)]
    work = partial(_measure_part, Path(raw_dir), tuple(signals), Path(out_dir))
    measured = run_shards(work, waiting, partial(load_signals, tuple(signals), StopRule()), engine)
    values = read_values(raw_dir, list(rows), signals, out_dir)
    is_pilot = values["key"].isin([key for keys in rows.values() for key in keys])
    return values[is_pilot & values["error"].isna()], list(chain.from_iterable(measured))


def _measure_part(
    raw_dir: Path, signals: Sequence[Signal], out_dir: Path, part: tuple[str, list[str]], guard: Guard[Any]
) -> list[Measured]:
    shard, keys = part
    measured = measure_shard(raw_dir, signals, out_dir, StopRule(), shard, guard, keys)[1]
    return [replace(one, values={}) for one in measured]  # they are in the files, and need not travel


def _shared(signal: Signal) -> tuple[str, ...]:
    pieces = ("decode",) if signal.needs == "pixels" else ()
    return (*pieces, "embedding") if signal.needs_embedding else pieces


def _locked(out_dir: Path) -> FileLock:
    """Return the lock of a folder of signals. It lies beside the folder, since the folder itself is versioned."""
    out_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(out_dir.with_name(f".{out_dir.name}-order.lock"))
