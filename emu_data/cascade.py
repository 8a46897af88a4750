"""Runs signals over groups of shards: one decode and one embedding a picture serve all signals, and a picture that
every policy has turned away is not looked at again.

Signals run in the order given (plan.py finds the best). A value that was not needed is not there; measuring again
adds what a new policy, or a new signal, asks for, and computes nothing twice. A control sample, a share of all keys
drawn by a seeded hash, goes through everything, so that the pass rate of every gate stays known whatever runs before
it. The set of kept pictures is the same whatever the order: a picture is dropped if any gate says no, and kept only
when all have said yes.

A file knows the bytes of the shard that it was measured on (SHARD_MARK, in its schema): a shard that is now another is
measured anew, whoever changed it, and one that comes back is not.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from emu_data.engine import Engine, Failure, Guard, run_shards
from emu_data.files import write_parquet
from emu_data.ledger import LIMITS, Limit, Thresholds
from emu_data.quarantine import unlisted_rows
from emu_data.records import STATUS_SUCCESS, DecodeError, RecordError, Sample
from emu_data.shards import read_rows, read_samples, shard_digest
from emu_data.signals import Record, Signal

BATCH = 64  # records that go to the measuring process at once; 200 MB of pixels at most (signals.MAX_SIDE)

SHARD_MARK = "emu.shard"  # in a file's schema: shards.shard_digest of what it was measured on

# Columns of the raw rows that the ledger carries on.
ROW_COLUMNS = ("key", "url", "caption", "status", "error_message", "sha256")


@dataclass(frozen=True)
class Funnel:
    """What decides who goes on.

    Args:
        policies: a picture goes on as long as one of them keeps it: filtering and pre-training may want different
            pictures. None of them: every picture gets every value.
        control_share: 0..1 of the keys that get every value whatever the policies say.
        seed: of the control sample.
    """

    policies: tuple[Thresholds, ...] = ()
    control_share: float = 0.0
    seed: int = 0

    def is_control(self, key: str) -> bool:
        """Whether a key belongs to the control sample."""
        drawn = int.from_bytes(hashlib.sha256(f"{self.seed}:{key}".encode()).digest()[:8], "big")
        return drawn < self.control_share * 2**64

    def is_rejected(self, values: Mapping[str, Any]) -> bool:
        """Whether every policy turns a row away by one of the values (column -> value) that it has by now."""
        return bool(self.policies) and all(
            any(_is_broken(limit, values.get(limit.column), policy) for limit in LIMITS) for policy in self.policies
        )


def _is_broken(limit: Limit, value: Any, policy: Thresholds) -> bool:
    """Whether a value is beyond its threshold; a missing value is not, nor is any without a threshold."""
    threshold = policy.get(limit.field)
    if threshold is None or value is None:
        return False
    return value < threshold if limit.is_minimum else value > threshold


@dataclass(frozen=True)
class Task:
    """One record for the child: what is known of it already (values of the signals in `done`)."""

    sample: Sample
    known: dict[str, Any]
    done: frozenset[str]
    is_control: bool


@dataclass
class Measured:
    """What the child found: values by column, the signals that gave them, and why the others could not."""

    values: dict[str, Any]
    signals: list[str]
    seconds: dict[str, float]  # "decode", "embedding", and each signal's own
    error: str | None = None


def measure_group(
    raw_dir: Path,
    shard_names: Sequence[str],
    signals: Sequence[Signal],
    out_dir: Path,
    funnel: Funnel | None = None,
    progress: bool = True,
    engine: Engine | None = None,
    told: Callable[[int, int], None] | None = None,
) -> int:
    """Bring out_dir/NAME@VERSION/NNNNN.parquet of each signal and shard up to date; return how many were written.

    Each file has a row for every picture that this signal was needed for, in key order: `key`, the signal's columns,
    and `error` (null, or why this record has no values); unlisted/NNNNN.parquet has one for what the tar holds beyond
    the shard's parquet. Signals run in their order; without a `funnel` all are measured on every picture. `told` hears
    how many shards are done and how many were to do. Raises RuntimeError where a signal cannot be loaded, or more than
    half of a shard's records raise: that is a fault of the signal, not of the records.
    """
    funnel = funnel or Funnel()
    work = partial(_bring_up_to_date, Path(raw_dir), tuple(signals), Path(out_dir), funnel)
    needed, waiting = _needed(Path(raw_dir), shard_names, signals, Path(out_dir), funnel)
    loaded = tuple(signal for signal in signals if any(signal.name in those for those in needed.values()))
    num_written = run_shards(
        work,
        waiting,
        partial(load_signals, loaded, funnel),
        engine,
        progress="signals" if progress and waiting else None,
        told=told,
    )
    return sum(num_written)


def _bring_up_to_date(*arguments: Any) -> int:
    """measure_shard without its seconds a record, which only the pilot wants: an engine keeps what a shard returns."""
    return measure_shard(*arguments)[0]


def read_values(raw_dir: Path, shard_names: Sequence[str], signals: Sequence[Signal], out_dir: Path) -> pd.DataFrame:
    """Return one row for every raw row of the shards, in key order: ROW_COLUMNS, `shard`, the columns of all signals
    by name, `error`, and `unmeasured`: the names of the signals that this row was not measured for, with commas
    between, "" if none.

    Raises ValueError where a signal's file is missing or of other bytes, or a key appears twice.
    """
    signals = sorted(signals, key=lambda signal: signal.name)  # not in the order that they ran
    frames = []
    for name in shard_names:
        rows = read_rows(Path(raw_dir) / f"{name}.parquet").astype({"key": "string"})
        digest = shard_digest(Path(raw_dir) / f"{name}.parquet")
        unlisted = _unlisted_file(out_dir, name)
        if _is_of(unlisted, digest) and len(more := pd.read_parquet(unlisted)):
            rows = pd.concat([rows, more], ignore_index=True).astype({"key": "string"})
        # strings, also of a column that the corpus lacks: of nothing but nulls pandas would make numbers
        frame = rows.reindex(columns=list(ROW_COLUMNS)).astype("string").assign(shard=name)
        arrived = (frame["status"] == STATUS_SUCCESS).fillna(False).to_numpy(bool)
        error = pd.Series(pd.NA, index=frame["key"], dtype="string")
        unmeasured = pd.Series("", index=frame["key"], dtype="string")
        for signal in signals:
            path = signal_file(out_dir, signal, name)
            if not _is_of(path, digest):
                told = "was measured on other bytes of the shard" if path.is_file() else "is missing"
                raise ValueError(f"{path} {told}: measure the shard first (measure_group)")
            values = pd.read_parquet(path).set_index("key")
            unmeasured = unmeasured.mask(arrived & ~unmeasured.index.isin(values.index), unmeasured + signal.name + ",")
            told = values.pop("error").reindex(frame["key"]).astype("string")
            error = error.fillna(f"{signal.name}: " + told)
            values = values.astype(dict(signal.columns)).reindex(frame["key"])
            frame = frame.join(values.reset_index(drop=True))
        frames.append(frame.assign(error=error.to_numpy(), unmeasured=unmeasured.str.removesuffix(",").to_numpy()))
    table = pd.concat(frames, ignore_index=True).astype({"error": "string", "unmeasured": "string"})
    twice = table.loc[table["key"].duplicated(), "key"]
    if len(twice):
        raise ValueError(f"{raw_dir}: {len(twice)} keys appear more than once, first {twice.iloc[0]}")
    return table.sort_values("key", kind="stable", ignore_index=True)


def signal_file(out_dir: Path, signal: Signal, shard: str) -> Path:
    return Path(out_dir) / f"{signal.name}@{signal.version}" / f"{shard}.parquet"


def _unlisted_file(out_dir: Path, shard: str) -> Path:
    """Rows for what the shard's tar holds beyond its parquet."""
    return Path(out_dir) / "unlisted" / f"{shard}.parquet"


def _is_of(path: Path, digest: str) -> bool:
    """Whether a file is there and was measured on the shard of that digest."""
    if not path.is_file():
        return False
    return (pq.read_schema(path).metadata or {}).get(SHARD_MARK.encode()) == digest.encode()


def measure_shard(
    raw_dir: Path,
    signals: Sequence[Signal],
    out_dir: Path,
    funnel: Funnel,
    shard: str,
    guard: Guard[Task],
    keys: Collection[str] | None = None,
) -> tuple[int, list[dict[str, float]]]:
    """Bring one shard's files up to date (for `keys` alone, where they are given). Return how many files were
    written, and what each measured record took, in seconds.
    """
    state = _State(raw_dir, signals, out_dir, shard)
    wanted = [key for key, names in state.todo(funnel).items() if names and (keys is None or key in keys)]
    unread = set(wanted)
    tar_errors: list[RecordError] = []
    results: dict[str, Measured | Failure] = {}
    waiting: list[Task] = []

    def flush() -> None:
        for task, result in zip(waiting, guard.map(waiting, BATCH), strict=True):
            results[task.sample.key] = result
        waiting.clear()

    found: list[str] = []  # keys, of the tar's samples
    is_whole = keys is None and (len(wanted) > 0 or state.lacks_file)
    for sample in read_samples(raw_dir / f"{shard}.tar", tar_errors.append) if is_whole or len(wanted) else ():
        found.append(sample.key)
        if sample.key in unread:
            unread.remove(sample.key)
            waiting.append(Task(sample, *state.known(sample.key), funnel.is_control(sample.key)))
            if len(waiting) == BATCH:  # so that no more of the tar is in memory
                flush()
    flush()
    raised = [result for result in results.values() if isinstance(result, Failure) and result.reason == "raised"]
    if len(raised) > len(results) / 2:
        raise RuntimeError(
            f"shard {shard}: {len(raised)} of {len(results)} records raised, so a signal is at fault: "
            f"{raised[0].detail}"
        )
    lost = {error.key: f"{error.reason}: {error.detail}" for error in tar_errors}
    for key in wanted:
        if key not in results:
            told = lost.get(key, "missing: its row says success, the tar does not hold it")
            results[key] = Measured({}, [], {}, told)
    num_written = 0
    if is_whole and not _is_of(unlisted := _unlisted_file(out_dir, shard), state.digest):
        tar = raw_dir / f"{shard}.tar"
        write_parquet(unlisted, unlisted_rows(tar, read_rows(tar), found, tar_errors), {SHARD_MARK: state.digest})
        num_written += 1
    num_written += sum(state.add(signal, results) for signal in signals)
    return num_written, [result.seconds for result in results.values() if isinstance(result, Measured)]


def is_measured(raw_dir: Path, signals: Sequence[Signal], out_dir: Path, shard: str, keys: Collection[str]) -> bool:
    """Whether all signals have been measured on these pictures of a shard as it is."""
    state = _State(Path(raw_dir), signals, Path(out_dir), shard)
    todo = state.todo(Funnel())
    return len(state.fitting) == len(signals) and not any(todo[key] for key in keys)


class _State:
    """What is known of a shard: its files, and which rows arrived."""

    def __init__(self, raw_dir: Path, signals: Sequence[Signal], out_dir: Path, shard: str):
        rows = read_rows(raw_dir / f"{shard}.parquet")
        self.keys: list[str] = sorted(rows.loc[rows["status"] == STATUS_SUCCESS, "key"])
        self.paths = {signal.name: signal_file(out_dir, signal, shard) for signal in signals}
        self.signals = signals
        self.digest = shard_digest(raw_dir / f"{shard}.parquet")
        self.fitting = {name for name, path in self.paths.items() if _is_of(path, self.digest)}
        self.lacks_file = len(self.fitting) < len(signals) or not _is_of(_unlisted_file(out_dir, shard), self.digest)
        self.tables: dict[str, pd.DataFrame] = {}
        for signal in signals:
            dtypes = {"key": "string", **signal.columns, "error": "string"}
            path = self.paths[signal.name]
            table = pd.read_parquet(path) if signal.name in self.fitting else pd.DataFrame(columns=list(dtypes))
            self.tables[signal.name] = table.astype(dtypes).set_index("key")

    def todo(self, funnel: Funnel) -> dict[str, list[str]]:
        """Return key -> the signals that it may need, as far as is known by now."""
        needed = {}
        for key in self.keys:
            values, done = self.known(key)
            settled = funnel.is_rejected(values) and not funnel.is_control(key)
            needed[key] = [] if settled else [signal.name for signal in self.signals if signal.name not in done]
        return needed

    def known(self, key: str) -> tuple[dict[str, Any], frozenset[str]]:
        """Return the values of a record that are in the files, and the signals that they are of."""
        done = frozenset(name for name, rows in self._rows.items() if key in rows)
        return {column: value for name in done for column, value in self._rows[name][key].items()}, done

    @cached_property
    def _rows(self) -> dict[str, dict[Any, dict[Any, Any]]]:
        tables = {name: table.drop(columns="error").astype(object) for name, table in self.tables.items()}
        return {name: table.where(table.notna(), None).to_dict("index") for name, table in tables.items()}

    def add(self, signal: Signal, results: dict[str, Measured | Failure]) -> bool:
        """Write the signal's file with the rows of `results` added, if it lacks any or is not of these bytes; return
        whether.
        """
        table, path = self.tables[signal.name], self.paths[signal.name]
        added = []
        for key, result in results.items():
            if key in table.index:
                continue
            if isinstance(result, Failure):
                added.append({"key": key, "error": f"{result.reason}: {result.detail}"})
            elif signal.name in result.signals:
                added.append({"key": key, "error": None, **{c: result.values[c] for c in signal.columns}})
            elif result.error is not None:
                added.append({"key": key, "error": result.error})
        if signal.name in self.fitting and not added:
            return False
        columns = ["key", *signal.columns, "error"]
        dtypes = {"key": "string", **signal.columns, "error": "string"}
        fresh = pd.DataFrame(added, columns=columns).astype(dtypes)
        rows = pd.concat([table.reset_index()[columns], fresh]).sort_values("key").astype(dtypes)
        write_parquet(path, rows, {SHARD_MARK: self.digest})
        return True


def _needed(
    raw_dir: Path, shards: Sequence[str], signals: Sequence[Signal], out_dir: Path, funnel: Funnel
) -> tuple[dict[str, set[str]], list[str]]:
    """Return for each shard the names of the signals that some record of it may need, and the shards that have to be
    brought up to date.
    """
    needed, waiting = {}, []
    for shard in shards:
        state = _State(raw_dir, signals, out_dir, shard)
        needed[shard] = {name for names in state.todo(funnel).values() for name in names}
        if needed[shard] or state.lacks_file:
            waiting.append(shard)
    return needed, waiting


def load_signals(signals: tuple[Signal, ...], funnel: Funnel) -> Callable[[list[Task]], list[Measured]]:
    """In the child: load the signals, and return the function that takes a batch through them."""
    loaded = [(signal, signal.load()) for signal in signals]

    def measure(batch: list[Task]) -> list[Measured]:
        records = [Record(task.sample) for task in batch]
        results = [Measured(dict(task.known), [], record.seconds) for task, record in zip(batch, records, strict=True)]
        going = list(range(len(batch)))

        def settled(i: int) -> bool:
            return funnel.is_rejected(results[i].values) and not batch[i].is_control

        for signal, function in loaded:
            ready = [
                i for i in going if signal.name not in batch[i].done and _prepare(records[i], results[i], signal.needs)
            ]
            if ready:
                before = [sum(records[i].seconds.values()) for i in ready]
                start = time.perf_counter()
                columns = function([records[i] for i in ready])
                own = time.perf_counter() - start - sum(sum(records[i].seconds.values()) for i in ready) + sum(before)
                for column, values in columns.items():
                    assert column in signal.columns and len(values) == len(ready), (signal.name, column)
                    for i, value in zip(ready, values, strict=True):
                        results[i].values[column] = value
                for i in ready:
                    results[i].signals.append(signal.name)
                    results[i].seconds[signal.name] = own / len(ready)
            going = [i for i in going if results[i].error is None and not settled(i)]
        for i in going:  # a picture is kept only if it can be decoded, whichever signals there are
            if not _prepare(records[i], results[i], "pixels"):
                results[i].signals.clear()
        return results

    return measure


def _prepare(record: Record, result: Measured, needs: str) -> bool:
    """Give the record what a signal needs; where that fails it is written down, and False."""
    try:
        if needs == "header":
            _ = record.size
        elif needs == "pixels":
            _ = record.image
    except DecodeError as error:
        result.error = f"{error.reason}: {error}"
    return result.error is None
