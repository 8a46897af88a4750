"""Runs signals over groups of shards: each picture is decoded and embedded once for all signals, and a picture that
every policy has rejected is not measured further.

Signals run in the order given (cascade_order.py finds the best). Values that were not needed are missing; measuring
again adds what a new policy or a new signal needs, and computes nothing twice. A control sample, a share of all keys
drawn by a seeded hash, goes through every signal, so that the pass rate of every gate is known whatever runs before
it. The set of kept pictures does not depend on the order: a picture is dropped if any gate rejects it, and kept only
if all accept it.

A file of values records the digest of the shard that it was measured on (SHARD_MARK, in its schema): if the shard's
bytes change, it is measured again; if they come back, it is not.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from emu_data.costs import READING, Spent, spent_since, spent_so_far
from emu_data.engine import Engine, Failure, Guard, run_shards
from emu_data.files import write_parquet
from emu_data.ledger import LIMITS, Limit, Thresholds
from emu_data.quarantine import unlisted_rows
from emu_data.samples import STATUS_SUCCESS, DecodeError, Sample, SampleError
from emu_data.shards import read_rows, read_samples, shard_digest
from emu_data.signals import LazySample, Signal
from emu_data.signals.networks import name_device
from emu_data.texts import steady

BATCH = 64  # samples per call of the measuring process; 200 MB of pixels at most (signals.SIDE); chosen here

SHARD_MARK = "emu.shard"  # in a file's schema: the shards.shard_digest of the shard that was measured

# Columns of the raw rows that the ledger keeps.
ROW_COLUMNS = ("key", "url", "caption", "status", "error_message", "sha256")


@dataclass(frozen=True)
class StopRule:
    """Which pictures are measured further.

    Args:
        policies: a picture is measured further as long as one of them keeps it, since filtering and pretraining may
            want different pictures. Without policies, every picture is measured by every signal.
        control_share: 0..1, the share of keys that are measured by every signal whatever the policies say.
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
        """Whether every policy rejects a row by one of the values (column -> value) measured so far."""
        return bool(self.policies) and all(
            any(_is_broken(limit, values.get(limit.column), policy) for limit in LIMITS) for policy in self.policies
        )


def _is_broken(limit: Limit, value: Any, policy: Thresholds) -> bool:
    """Whether a value is beyond its threshold; False if either is missing."""
    threshold = policy.get(limit.field)
    if threshold is None or value is None:
        return False
    return value < threshold if limit.is_minimum else value > threshold


@dataclass(frozen=True)
class Task:
    """One sample for the child process. known: column -> value, of the signals in `done`, measured earlier."""

    sample: Sample
    known: dict[str, Any]
    done: frozenset[str]
    is_control: bool


@dataclass
class Measured:
    """What the child measured: values by column, the signals that gave them, and why the others could not.

    spent: on "decode", "embedding" and each signal, of those that were asked. is_warm: whether the child had measured
    others before: its first batch takes longer. device: where networks ran, costs.Cost.device.
    """

    values: dict[str, Any]
    signals: list[str]
    spent: dict[str, Spent]
    error: str | None = None
    is_warm: bool = False
    device: str = "cpu"


def measure_group(
    raw_dir: Path,
    shard_names: Sequence[str],
    signals: Sequence[Signal],
    out_dir: Path,
    rule: StopRule | None = None,
    progress: bool = True,
    engine: Engine | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Bring out_dir/NAME@VERSION/NNNNN.parquet of each signal and shard up to date; return how many files were written.

    Each file has a row for every picture that needed this signal, in key order: `key`, the signal's columns, and
    `error` (null, or why this sample has no values). unlisted/NNNNN.parquet has a row for each sample of the tar that
    the shard's parquet does not list. Signals run in the order given; without a `rule`, every picture is measured by
    all of them. `on_progress` receives the numbers of shards that are done and in total. Raises RuntimeError if a
    signal cannot be loaded, or if more than half of a shard's samples raise: then the signal is at fault, not the
    samples.
    """
    rule = rule or StopRule()
    work = partial(_bring_up_to_date, Path(raw_dir), tuple(signals), Path(out_dir), rule)
    needed, waiting = _needed(Path(raw_dir), shard_names, signals, Path(out_dir), rule)
    loaded = tuple(signal for signal in signals if any(signal.name in those for those in needed.values()))
    num_written = run_shards(
        work,
        waiting,
        partial(load_signals, loaded, rule),
        engine,
        progress="signals" if progress and waiting else None,
        on_progress=on_progress,
    )
    return sum(num_written)


def _bring_up_to_date(*arguments: Any) -> int:
    """measure_shard without what it measured, since an engine keeps all results and only the pilot needs them."""
    return measure_shard(*arguments)[0]


def read_values(raw_dir: Path, shard_names: Sequence[str], signals: Sequence[Signal], out_dir: Path) -> pd.DataFrame:
    """Return one row for every raw row of the shards, in key order: ROW_COLUMNS, `shard`, the columns of all signals
    by name, `error`, and `unmeasured`: the signals that did not measure this row, separated by commas, "" if none.

    Raises ValueError if a key appears twice, or if a file of a signal or of unlisted rows is missing or was measured
    on other bytes.
    """
    signals = sorted(signals, key=lambda signal: signal.name)  # not in the order in which they ran
    frames = []
    for name in shard_names:
        rows = read_rows(Path(raw_dir) / f"{name}.parquet").astype({"key": "string"})
        digest = shard_digest(Path(raw_dir) / f"{name}.parquet")
        if len(more := pd.read_parquet(_checked(_unlisted_file(out_dir, name), digest))):
            rows = pd.concat([rows, more], ignore_index=True).astype({"key": "string"})
        # strings, even if the corpus lacks a column: pandas would make numbers of a column of nulls
        frame = rows.reindex(columns=list(ROW_COLUMNS)).astype("string").assign(shard=name)
        arrived = (frame["status"] == STATUS_SUCCESS).fillna(False).to_numpy(bool)
        error = pd.Series(pd.NA, index=frame["key"], dtype="string")
        unmeasured = pd.Series("", index=frame["key"], dtype="string")
        for signal in signals:
            values = pd.read_parquet(_checked(signal_file(out_dir, signal, name), digest)).set_index("key")
            unmeasured = unmeasured.mask(arrived & ~unmeasured.index.isin(values.index), unmeasured + signal.name + ",")
            reason = values.pop("error").reindex(frame["key"]).astype("string")
            error = error.fillna(f"{signal.name}: " + reason)
            values = values.astype(dict(signal.columns)).reindex(frame["key"])
            frame = frame.join(values.reset_index(drop=True))
        frames.append(frame.assign(error=error.to_numpy(), unmeasured=unmeasured.str.removesuffix(",").to_numpy()))
    table = pd.concat(frames, ignore_index=True).astype({"error": "string", "unmeasured": "string"})
    twice = table.loc[table["key"].duplicated(), "key"]
    if len(twice):
        raise ValueError(f"{raw_dir}: {len(twice)} keys appear more than once, first {twice.iloc[0]}")
    return table.sort_values("key", kind="stable", ignore_index=True)


def signal_file(out_dir: Path, signal: Signal, shard: str) -> Path:
    """Return the path of a signal's values for a shard. shard: its five digits."""
    return Path(out_dir) / f"{signal.name}@{signal.version}" / f"{shard}.parquet"


def _unlisted_file(out_dir: Path, shard: str) -> Path:
    """Rows for the samples of the shard's tar that its parquet does not list."""
    return Path(out_dir) / "unlisted" / f"{shard}.parquet"


def _is_of(path: Path, digest: str) -> bool:
    """Whether a file exists and was measured on the shard with that digest."""
    if not path.is_file():
        return False
    return (pq.read_schema(path).metadata or {}).get(SHARD_MARK.encode()) == digest.encode()


def _checked(path: Path, digest: str) -> Path:
    """Return `path`. Raises ValueError if that file was not measured on the shard with that digest."""
    if not _is_of(path, digest):
        problem = "was measured on other bytes of the shard" if path.is_file() else "is missing"
        raise ValueError(f"{path} {problem}: measure the shard first (measure_group)")
    return path


def measure_shard(
    raw_dir: Path,
    signals: Sequence[Signal],
    out_dir: Path,
    rule: StopRule,
    shard: str,
    guard: Guard[Task],
    keys: Collection[str] | None = None,
) -> tuple[int, list[Measured]]:
    """Bring one shard's files up to date, for `keys` only if they are given. Return how many files were written, and
    what the child measured; to what each took, this process's own part is added as costs.READING. Raises RuntimeError
    if more than half of the samples raise, because then a signal is at fault.
    """
    began = time.thread_time()  # not the process's, in which other threads read other shards
    state = _State(raw_dir, signals, out_dir, shard)
    wanted = [key for key, names in state.todo(rule).items() if names and (keys is None or key in keys)]
    unread = set(wanted)
    tar_errors: list[SampleError] = []
    results: dict[str, Measured | Failure] = {}
    waiting: list[Task] = []

    def flush() -> None:
        for task, result in zip(waiting, guard.map(waiting, BATCH), strict=True):
            results[task.sample.key] = result
        waiting.clear()

    found: list[str] = []  # keys of the tar's samples
    unlisted = _unlisted_file(out_dir, shard)
    # Every pass over the tar also records its unlisted samples, even the pilot's: it may be the only pass.
    is_seen = _is_of(unlisted, state.digest)
    for sample in read_samples(raw_dir / f"{shard}.tar", tar_errors.append) if wanted or not is_seen else ():
        found.append(sample.key)
        if sample.key in unread:
            unread.remove(sample.key)
            waiting.append(Task(sample, *state.known(sample.key), rule.is_control(sample.key)))
            if len(waiting) == BATCH:  # bounds how much of the tar is in memory
                flush()
    flush()
    raised = [result for result in results.values() if isinstance(result, Failure) and result.reason == "raised"]
    if len(raised) > len(results) / 2:
        raise RuntimeError(
            f"shard {shard}: {len(raised)} of {len(results)} samples raised, so a signal is at fault: "
            f"{raised[0].detail}"
        )
    lost = {error.key: f"{error.reason}: {error.detail}" for error in tar_errors}
    for key in wanted:
        if key not in results:
            reason = lost.get(key, "missing: its row says success, but the tar does not hold it")
            results[key] = Measured({}, [], {}, reason)
    num_written = 0
    if not is_seen:
        tar = raw_dir / f"{shard}.tar"
        write_parquet(unlisted, unlisted_rows(tar, read_rows(tar), found, tar_errors), {SHARD_MARK: state.digest})
        num_written += 1
    num_written += sum(state.add(signal, results) for signal in signals)
    measured = [result for result in results.values() if isinstance(result, Measured)]
    for result in measured:
        result.spent[READING] = Spent(core=(time.thread_time() - began) / len(measured))
    return num_written, measured


def is_measured(raw_dir: Path, signals: Sequence[Signal], out_dir: Path, shard: str, keys: Collection[str]) -> bool:
    """Whether all signals have been measured on these pictures of a shard, with its present bytes."""
    state = _State(Path(raw_dir), signals, Path(out_dir), shard)
    todo = state.todo(StopRule())
    return not state.lacks_file and not any(todo[key] for key in keys)


class _State:
    """What is known about a shard: its files, and which rows have the status `success`."""

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

    def todo(self, rule: StopRule) -> dict[str, list[str]]:
        """Return key -> the signals that it may still need, judging by the values known so far."""
        needed = {}
        for key in self.keys:
            values, done = self.known(key)
            settled = rule.is_rejected(values) and not rule.is_control(key)
            needed[key] = [] if settled else [signal.name for signal in self.signals if signal.name not in done]
        return needed

    def known(self, key: str) -> tuple[dict[str, Any], frozenset[str]]:
        """Return a sample's values from the files, by column, and the signals that measured them."""
        done = frozenset(name for name, rows in self._rows.items() if key in rows)
        return {column: value for name in done for column, value in self._rows[name][key].items()}, done

    @cached_property
    def _rows(self) -> dict[str, dict[Any, dict[Any, Any]]]:
        tables = {name: table.drop(columns="error").astype(object) for name, table in self.tables.items()}
        return {name: table.where(table.notna(), None).to_dict("index") for name, table in tables.items()}

    def add(self, signal: Signal, results: dict[str, Measured | Failure]) -> bool:
        """Add the rows of `results` to the signal's file, if it lacks any or was measured on other bytes; return
        whether it was written.
        """
        table, path = self.tables[signal.name], self.paths[signal.name]
        added: list[dict[str, Any]] = []
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
    raw_dir: Path, shards: Sequence[str], signals: Sequence[Signal], out_dir: Path, rule: StopRule
) -> tuple[dict[str, set[str]], list[str]]:
    """Return the names of the signals that some sample of each shard may need, and the shards that must be brought up
    to date.
    """
    needed, waiting = {}, []
    for shard in shards:
        state = _State(raw_dir, signals, out_dir, shard)
        needed[shard] = {name for names in state.todo(rule).values() for name in names}
        if needed[shard] or state.lacks_file:
            waiting.append(shard)
    return needed, waiting


def load_signals(signals: tuple[Signal, ...], rule: StopRule) -> Callable[[list[Task]], list[Measured]]:
    """Load the signals, in the child process, and return the function that measures a batch."""
    loaded = [(signal, signal.load()) for signal in signals]
    num_batches = count()

    def measure(batch: list[Task]) -> list[Measured]:
        samples, is_warm, device = [LazySample(task.sample) for task in batch], next(num_batches) > 0, name_device()
        results = [
            Measured(dict(task.known), [], sample.spent, is_warm=is_warm, device=device)
            for task, sample in zip(batch, samples, strict=True)
        ]
        going = list(range(len(batch)))

        def settled(i: int) -> bool:
            return rule.is_rejected(results[i].values) and not batch[i].is_control

        for signal, function in loaded:
            shared, before = _total(results[i].spent for i in going), spent_so_far()
            ready = [i for i in going if signal.name not in batch[i].done and _prepare(samples[i], results[i], signal)]
            if ready:
                columns = function([samples[i] for i in ready])
                own = spent_since(before).plus(_total(results[i].spent for i in going).plus(shared, -1), -1)
                for column, values in columns.items():
                    assert column in signal.columns and len(values) == len(ready), (signal.name, column)
                    for i, value in zip(ready, values, strict=True):
                        results[i].values[column] = value
                for i in ready:
                    results[i].signals.append(signal.name)
                    results[i].spent[signal.name] = Spent().plus(own, 1 / len(ready))
            going = [i for i in going if results[i].error is None and not settled(i)]
        for i in going:  # a picture is kept only if it can be decoded, even if no signal needs its pixels
            if not _prepare(samples[i], results[i]):
                results[i].signals.clear()
        return results

    return measure


def _total(parts: Iterable[Mapping[str, Spent]]) -> Spent:
    return reduce(Spent.plus, (spent for part in parts for spent in part.values()), Spent())


def _prepare(sample: LazySample, result: Measured, signal: Signal | None = None) -> bool:
    """Decode what a signal needs, or the picture. If that fails, note the error in the result and return False."""
    try:
        if signal is None or signal.needs == "pixels":
            _ = sample.image if signal is None else sample.at(signal.side())
        elif signal.needs == "header":
            _ = sample.size
    except DecodeError as error:
        result.error = f"{error.reason}: {steady(str(error))}"
    return result.error is None
