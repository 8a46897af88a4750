"""In which order the cascade runs its signals: by cost / -log(pass rate), costs declared, rates measured on a pilot.

That order is next to the cheapest where gates are independent (by cost / (1 - pass rate) it would be the cheapest: for
gates that let half pass or more within 2 % of it): a gate early in the row should be cheap *and* turn many away, and
one that turns nothing away comes last, however cheap. Costs that signals share (decoding, the embedding) fall on
the first that needs them.

Which values are recorded of a picture that was turned away follows from the order, so the order must not follow from a
clock: costs are declared by the signals, pass rates are counted on the corpus's first rows, and every run, machine and
engine has the same plan. What the pilot took is kept in a cache and only told, beside what was declared
(docs/decisions/0011-no-clock-in-what-is-recorded.md).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from filelock import FileLock

from emu_data.cascade import Funnel, is_measured, load_signals, measure_shard, read_values
from emu_data.engine import Engine, Guard, run_shards
from emu_data.files import write_json
from emu_data.records import STATUS_SUCCESS
from emu_data.shards import read_rows
from emu_data.signals import Signal
from emu_data.signals.text_area import SMALLEST_HALF, TextAreaSignal
from emu_data.signals.text_probe import TextFeaturesSignal, TextProbe, fit_text_probe

NUM_PILOT = 512  # rows that are measured in full; chosen here: a pass rate of 0.9 is known to 0.03
# ms of one core for a picture, declared and measured as signals.Signal.cost says. The embedding is ViT-B/32's: of the
# demo's small models it is a hundredth of that, and what looks at it then comes later than it need.
SHARED_COSTS = {"decode": 2.0, "embedding": 150.0}
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Plan:
    """The order of the signals, and what it follows from.

    costs: ms a picture, as declared: "decode", "embedding" and each signal's own. pass_rates: 0..1, of the pilot's
    pictures by that signal alone. sources: what measures each signal, in words.
    """

    order: tuple[str, ...]
    costs: Mapping[str, float]
    pass_rates: Mapping[str, float]
    num_pilot: int
    sources: Mapping[str, str]

    def arrange(self, signals: Sequence[Signal]) -> list[Signal]:
        """Return the signals in the plan's order."""
        return sorted(signals, key=lambda signal: self.order.index(signal.name))


def make_plan(
    raw_dir: Path,
    shards: Sequence[str],
    signals: Sequence[Signal],
    funnel: Funnel,
    out_dir: Path,
    timings: Path,
    engine: Engine | None = None,
) -> Plan:
    """Return the plan for these signals and policies, which is written to out_dir/plan.json too.

    shards: the corpus's first few, in order: the pilot's rows are taken from their beginning; those that have not been
    measured are, on `engine`, and their values are written like any others. timings: a file in a cache, where it is
    noted what that took (see `measured_costs`). Only one process measures; others wait for it.
    """
    with _locked(out_dir):
        values, spent = _measure_rows(raw_dir, shards, signals, out_dir, engine)
        if spent:
            _note_seconds(timings, signals, spent)
        for old in (*out_dir.glob("plan-*.json"), out_dir / "pilot.json"):
            old.unlink(missing_ok=True)  # of earlier versions of this program: they held seconds
        pass_rates = {}
        for signal in signals:
            rows = values[list(signal.columns)].astype(object)
            records: list[dict[Any, Any]] = rows.where(rows.notna(), None).to_dict("records")
            rejected = [funnel.is_rejected(record) for record in records]
            pass_rates[signal.name] = 1.0 - sum(rejected) / max(1, len(rejected))
        costs = {**SHARED_COSTS, **{signal.name: signal.cost() for signal in signals}}
        sources = {signal.name: signal.describe() for signal in signals}
        plan = Plan(order_signals(signals, costs, pass_rates), costs, pass_rates, len(values), sources)
        write_json(out_dir / PLAN_FILE, asdict(plan))
    return plan


def read_plan(out_dir: Path) -> Plan | None:
    """Return the plan that was written last, None where there is none."""
    path = Path(out_dir) / PLAN_FILE
    if not path.is_file():
        return None
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Plan(**{**written, "order": tuple(written["order"])})


def order_signals(
    signals: Sequence[Signal], costs: Mapping[str, float], pass_rates: Mapping[str, float]
) -> tuple[str, ...]:
    """Return the signals' names by cost / -log(pass rate), each time the best of those left; what has been paid for
    already (decoding, the embedding) costs no more. costs: as in Plan, in any unit.
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
    """Return what a picture costs on average where signals run in this order and their gates are independent, in the
    unit of `costs`.
    """
    total, going, paid = 0.0, 1.0, set[str]()
    for signal in signals:
        total += going * (costs[signal.name] + sum(costs[piece] for piece in _shared(signal) if piece not in paid))
        going *= pass_rates[signal.name]
        paid.update(_shared(signal))
    return total


def measured_costs(timings: Path, signals: Sequence[Signal]) -> dict[str, float]:
    """Return what the pilot took on this machine, as Plan's costs: medians in ms, of what is known."""
    noted: dict[str, float] = json.loads(timings.read_text()) if timings.is_file() else {}
    names = {**{piece: piece for piece in SHARED_COSTS}, **{signal.name: _name(signal) for signal in signals}}
    return {piece: noted[name] for piece, name in names.items() if name in noted}


def _note_seconds(timings: Path, signals: Sequence[Signal], spent: Sequence[Mapping[str, float]]) -> None:
    noted: dict[str, float] = json.loads(timings.read_text()) if timings.is_file() else {}
    names = {**{piece: piece for piece in SHARED_COSTS}, **{signal.name: _name(signal) for signal in signals}}
    for piece, name in names.items():
        if took := [one[piece] for one in spent if one.get(piece)]:  # decoding: of those that were decoded
            noted[name] = 1000 * median(took)
    write_json(timings, noted)


def _name(signal: Signal) -> str:
    return f"{signal.name}@{signal.version}"


def pilot_keys(raw_dir: Path, shards: Sequence[str], num: int) -> dict[str, list[str]]:
    """Return shard -> keys of the first `num` rows that arrived."""
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
) -> tuple[pd.DataFrame, list[dict[str, float]]]:
    """Measure all signals on the pilot's rows: their values, of the pictures that can be read, and the seconds of each
    picture by piece, of those that had not been measured before.
    """
    rows = pilot_keys(raw_dir, shards, NUM_PILOT)
    waiting = [part for part in rows.items() if not is_measured(raw_dir, signals, out_dir, *part)]
    work = partial(_measure_part, Path(raw_dir), tuple(signals), Path(out_dir))
    spent = run_shards(work, waiting, partial(load_signals, tuple(signals), Funnel()), engine)
    values = read_values(raw_dir, list(rows), signals, out_dir)
    is_pilot = values["key"].isin([key for keys in rows.values() for key in keys])
    return values[is_pilot & values["error"].isna()], list(chain.from_iterable(spent))


def _measure_part(
    raw_dir: Path, signals: Sequence[Signal], out_dir: Path, part: tuple[str, list[str]], guard: Guard[Any]
) -> list[dict[str, float]]:
    shard, keys = part
    return measure_shard(raw_dir, signals, out_dir, Funnel(), shard, guard, keys)[1]


def _shared(signal: Signal) -> tuple[str, ...]:
    pieces = ("decode",) if signal.needs == "pixels" else ()
    return (*pieces, "embedding") if signal.needs_embedding else pieces


def with_text_probe(
    raw_dir: Path, shards: Sequence[str], signals: Sequence[Signal], out_dir: Path, engine: Engine | None = None
) -> tuple[list[Signal], str]:
    """Return the signals with a text probe in the text signal, if one can be fitted to the pilot, and how good it is.

    Fitted once for the text signal's settings, and written beside the signals: a policy that changes does not touch
    it, so that what was measured stands.
    """
    plain = next((signal for signal in signals if isinstance(signal, TextAreaSignal)), None)
    if plain is None or plain.canvas < 2 * SMALLEST_HALF:  # on a small canvas CRAFT costs little more than the probe
        return list(signals), "no probe: CRAFT's canvas is small; all go to CRAFT"
    path = Path(out_dir) / f"text_probe-{plain.version}.json"
    with _locked(path.parent):
        if not path.is_file():
            table, _ = _measure_rows(raw_dir, shards, (plain, TextFeaturesSignal()), out_dir, engine)
            features = table[list(TextFeaturesSignal.columns)].to_numpy(float)
            probe, told = fit_text_probe(features, table["text_area"].to_numpy(float))
            write_json(path, {"probe": None if probe is None else asdict(probe), "note": told})
    written = json.loads(path.read_text())
    if written["probe"] is None:
        return list(signals), written["note"]
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in written["probe"].items()
    }
    probed = replace(plain, probe=TextProbe(**fields))
    return [probed if signal is plain else signal for signal in signals], written["note"]


def _locked(out_dir: Path) -> FileLock:
    """The lock of a folder of signals, beside it: the folder itself is versioned."""
    out_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(out_dir.with_name(f".{out_dir.name}-plan.lock"))
