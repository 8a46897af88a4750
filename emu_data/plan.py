"""In which order the cascade runs its signals: by cost / -log(pass rate), both measured on a pilot.

That order is the cheapest where gates are independent: a gate early in the row should be cheap *and* turn many away,
and one that turns nothing away comes last, however cheap. Costs that signals share (decoding, the embedding) fall on
the first that needs them. The plan is measured once, on the first rows of the corpus, and written down: every shard
group, machine and engine uses the same one, so that their ledgers are equal to the byte.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from filelock import FileLock

from emu_data.cascade import BATCH, Funnel, Measured, Task, load_signals, measure_shard, read_values
from emu_data.engine import Engine, Guard, run_shards
from emu_data.files import fingerprint, write_json
from emu_data.records import STATUS_SUCCESS
from emu_data.shards import read_rows, read_samples
from emu_data.signals import Signal
from emu_data.signals.text_area import SMALLEST_HALF, TextAreaSignal
from emu_data.signals.text_probe import TextFeaturesSignal, TextProbe, fit_text_probe

NUM_PILOT = 512  # rows that are measured in full; chosen here: a pass rate of 0.9 is known to 0.03
NUM_TIMED = 32


@dataclass(frozen=True)
class Plan:
    """The order of the signals, and what it follows from.

    seconds: of a picture, medians: "decode", "embedding" and each signal's own. pass_rates: 0..1, of the pilot's
    pictures by that signal alone. sources: what measures each signal, in words.
    """

    order: tuple[str, ...]
    seconds: Mapping[str, float]
    pass_rates: Mapping[str, float]
    num_pilot: int
    sources: Mapping[str, str]

    def arrange(self, signals: Sequence[Signal]) -> list[Signal]:
        """Return the signals in the plan's order."""
        return sorted(signals, key=lambda signal: self.order.index(signal.name))


def plan_path(signals: Sequence[Signal], funnel: Funnel, out_dir: Path) -> Path:
    """Return where the plan for these signals and policies lies: one for each, so that none is ever out of date."""
    versions = sorted((signal.name, signal.version) for signal in signals)
    return Path(out_dir) / f"plan-{fingerprint([versions, funnel])}.json"


def read_or_make_plan(
    raw_dir: Path,
    shards: Sequence[str],
    signals: Sequence[Signal],
    funnel: Funnel,
    out_dir: Path,
    engine: Engine | None = None,
) -> Plan:
    """Return the plan for these signals and policies; measure and write it where there is none.

    shards: the corpus's first few, in order: the pilot's rows are taken from their beginning, and their values are
    written like any others. Only one process measures, on `engine`; the others wait for it.
    """
    path = plan_path(signals, funnel, out_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock(path.parent)):
        if not path.is_file():
            write_json(path, asdict(_make_plan(raw_dir, shards, signals, funnel, out_dir, engine)))
    written: dict[str, Any] = json.loads(path.read_text())
    return Plan(**{**written, "order": tuple(written["order"])})


def order_signals(
    signals: Sequence[Signal], seconds: Mapping[str, float], pass_rates: Mapping[str, float]
) -> tuple[str, ...]:
    """Return the signals' names by cost / -log(pass rate), each time the best of those left; what has been paid for
    already (decoding, the embedding) costs no more.
    """
    left, order, paid = list(signals), [], set[str]()

    def rank(signal: Signal) -> tuple[float, float, str]:
        cost = seconds[signal.name] + sum(seconds[piece] for piece in _shared(signal) if piece not in paid)
        passing = pass_rates[signal.name]
        weight = math.inf if passing <= 0 else -math.log(passing)
        return (cost / weight if weight > 0 else math.inf), cost, signal.name

    while left:
        best = min(left, key=rank)
        left.remove(best)
        order.append(best.name)
        paid.update(_shared(best))
    return tuple(order)


def pilot_keys(raw_dir: Path, shards: Sequence[str], num: int = NUM_PILOT) -> dict[str, list[str]]:
    """Return shard -> keys of the first `num` rows that arrived."""
    keys: dict[str, list[str]] = {}
    for shard in shards:
        rows = read_rows(Path(raw_dir) / f"{shard}.parquet")
        arrived = sorted(rows.loc[rows["status"] == STATUS_SUCCESS, "key"])
        keys[shard] = arrived[: num - sum(map(len, keys.values()))]
        if sum(map(len, keys.values())) >= num:
            break
    return keys


def _make_plan(
    raw_dir: Path,
    shards: Sequence[str],
    signals: Sequence[Signal],
    funnel: Funnel,
    out_dir: Path,
    engine: Engine | None,
) -> Plan:
    values, seconds = _measure_pilot(raw_dir, shards, signals, out_dir, engine)
    pass_rates = {}
    for signal in signals:
        rows = values[list(signal.columns)].astype(object)
        records: list[dict[Any, Any]] = rows.where(rows.notna(), None).to_dict("records")
        rejected = [funnel.is_rejected(record) for record in records]
        pass_rates[signal.name] = 1.0 - sum(rejected) / max(1, len(rejected))
    sources = {signal.name: signal.describe() for signal in signals}
    return Plan(order_signals(signals, seconds, pass_rates), seconds, pass_rates, len(values), sources)


def _measure_pilot(
    raw_dir: Path, shards: Sequence[str], signals: Sequence[Signal], out_dir: Path, engine: Engine | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the pilot's values, of the pictures that can be read, and the median seconds of a picture by piece.

    What is measured is kept in the signals' files, and what it took in pilot.json, so that a plan for another policy
    measures nothing again.
    """
    names = {signal.name: f"{signal.name}@{signal.version}" for signal in signals}
    path = Path(out_dir) / "pilot.json"
    stored: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    values, spent = _measure_rows(raw_dir, shards, signals, out_dir, engine)
    if any(names[name] not in stored and not any(name in one for one in spent) for name in names):
        # Its values were there, what they took is not known: a few are measured again, and only timed.
        load = partial(load_signals, tuple(signals), Funnel())
        spent += run_shards(partial(_time_again, Path(raw_dir)), shards[:1], load, engine)[0]
    seconds = {}
    for piece in ("decode", "embedding", *names):
        took = [one[piece] for one in spent if piece in one]
        seconds[piece] = median(took) if took else stored.get(names.get(piece, piece), 0.0)
    write_json(path, {**stored, **{names.get(piece, piece): value for piece, value in seconds.items()}})
    return values, seconds


def _measure_rows(
    raw_dir: Path, shards: Sequence[str], signals: Sequence[Signal], out_dir: Path, engine: Engine | None
) -> tuple[pd.DataFrame, list[dict[str, float]]]:
    """Measure all signals on the pilot's rows: their values, of the pictures that can be read, and the seconds of each
    picture by piece, of those that had not been measured before.
    """
    rows = pilot_keys(raw_dir, shards)
    work = partial(_measure_part, Path(raw_dir), tuple(signals), Path(out_dir))
    spent = run_shards(work, list(rows.items()), partial(load_signals, tuple(signals), Funnel()), engine)
    values = read_values(raw_dir, list(rows), signals, out_dir)
    is_pilot = values["key"].isin([key for keys in rows.values() for key in keys])
    return values[is_pilot & values["error"].isna()], list(chain.from_iterable(spent))


def _measure_part(
    raw_dir: Path, signals: Sequence[Signal], out_dir: Path, part: tuple[str, list[str]], guard: Guard[Any]
) -> list[dict[str, float]]:
    shard, keys = part
    return measure_shard(raw_dir, signals, out_dir, Funnel(), shard, guard, keys)[1]


def _time_again(raw_dir: Path, shard: str, guard: Guard[Any]) -> list[dict[str, float]]:
    samples = islice(read_samples(raw_dir / f"{shard}.tar", lambda error: None), NUM_TIMED)
    tasks = [Task(sample, {}, frozenset(), True) for sample in samples]
    return [found.seconds for found in guard.map(tasks, BATCH) if isinstance(found, Measured)]


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock(path.parent)):
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


def _lock(out_dir: Path) -> Path:
    """The lock of a folder of signals, beside it: the folder itself is versioned."""
    return out_dir.with_name(f".{out_dir.name}-plan.lock")
