"""Runs signals over groups of shards: one decode a picture serves all signals, one file a signal and shard is
written.

A file that is there is not computed again. All signals are measured on every picture that can be read: the
ledger can then be decided again under any thresholds, and every gate's precision and recall be known.
(Skipping the dear signals where a cheap gate has already said no, with a control sample that goes through
all, is for corpora larger than this.)
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from emu_data.engine import Engine, Failure, Guard, run_shards
from emu_data.files import write_parquet
from emu_data.quarantine import unlisted_rows
from emu_data.records import STATUS_SUCCESS, Decoded, DecodeError, RecordError, Sample, decode_rgb
from emu_data.shards import read_rows, read_samples
from emu_data.signals import Signal

BATCH = 32  # records that go to the measuring process at once

# Columns of the raw rows that the ledger carries on.
ROW_COLUMNS = ("key", "url", "caption", "status", "error_message", "sha256")


def measure_group(
    raw_dir: Path,
    shard_names: Sequence[str],
    signals: Sequence[Signal],
    out_dir: Path,
    progress: bool = True,
    engine: Engine | None = None,
) -> int:
    """Write out_dir/NAME@VERSION/NNNNN.parquet for each signal and shard that lacks one; return how many were
    written.

    Each file has a row for every row of the shard's parquet that says success, in key order: `key`, the
    signal's columns, and `error` (null, or why this record has no values). Raises RuntimeError where a signal
    cannot be loaded, or fails on more than half of a shard: that is a fault of the signal, not of the
    records.
    """
    missing = {name: _missing(name, signals, out_dir) for name in shard_names}
    waiting = [name for name, those in missing.items() if those]
    needed = tuple(signal for signal in signals if any(signal in those for those in missing.values()))
    num_written = run_shards(
        partial(_measure_shard, Path(raw_dir), signals, Path(out_dir)),
        waiting,
        partial(_load, needed),
        engine,
        progress="signals" if progress and waiting else None,
    )
    return sum(num_written)


def read_values(raw_dir: Path, shard_names: Sequence[str], signals: Sequence[Signal], out_dir: Path) -> pd.DataFrame:
    """Return one row for every raw row of the shards, in key order: ROW_COLUMNS, `shard`, all signals'
    columns, `error`.

    Raises ValueError where a signal's file is missing, or a key appears twice.
    """
    frames = []
    for name in shard_names:
        rows = read_rows(Path(raw_dir) / f"{name}.parquet").astype({"key": "string"})
        if (unlisted := _unlisted_file(out_dir, name)).is_file():
            rows = pd.concat([rows, pd.read_parquet(unlisted)], ignore_index=True).astype({"key": "string"})
        frame = rows.reindex(columns=list(ROW_COLUMNS)).assign(shard=name)
        error = pd.Series(pd.NA, index=frame["key"], dtype="string")
        for signal in signals:
            path = _signal_file(out_dir, signal, name)
            if not path.is_file():
                raise ValueError(f"{path} is missing: measure the shard first (measure_group)")
            values = pd.read_parquet(path).set_index("key")
            told = values.pop("error").reindex(frame["key"]).astype("string")
            error = error.fillna(f"{signal.name}: " + told)
            values = values.astype(dict(signal.columns)).reindex(frame["key"])
            frame = frame.join(values.reset_index(drop=True))
        frames.append(frame.assign(error=error.to_numpy()))
    table = pd.concat(frames, ignore_index=True).astype({"error": "string"})
    twice = table.loc[table["key"].duplicated(), "key"]
    if len(twice):
        raise ValueError(f"{raw_dir}: {len(twice)} keys appear more than once, first {twice.iloc[0]}")
    return table.sort_values("key", kind="stable", ignore_index=True)


def _signal_file(out_dir: Path, signal: Signal, shard: str) -> Path:
    return Path(out_dir) / f"{signal.name}@{signal.version}" / f"{shard}.parquet"


def _unlisted_file(out_dir: Path, shard: str) -> Path:
    """Rows for what the shard's tar holds beyond its parquet."""
    return Path(out_dir) / "unlisted" / f"{shard}.parquet"


def _missing(shard: str, signals: Sequence[Signal], out_dir: Path) -> list[Signal]:
    return [signal for signal in signals if not _signal_file(out_dir, signal, shard).is_file()]


def _measure_shard(raw_dir: Path, signals: Sequence[Signal], out_dir: Path, shard: str, guard: Guard[Any]) -> int:
    missing = _missing(shard, signals, out_dir)
    rows = read_rows(raw_dir / f"{shard}.parquet")
    expected = set(rows.loc[rows["status"] == STATUS_SUCCESS, "key"])
    tar_errors: list[RecordError] = []
    found = list(read_samples(raw_dir / f"{shard}.tar", tar_errors.append))
    unlisted = unlisted_rows(raw_dir / f"{shard}.tar", rows, [sample.key for sample in found], tar_errors)
    if len(unlisted):
        write_parquet(_unlisted_file(out_dir, shard), unlisted)
    else:
        _unlisted_file(out_dir, shard).unlink(missing_ok=True)
    samples = [sample for sample in found if sample.key in expected]
    names = tuple(signal.name for signal in missing)
    results = guard.map([(names, sample) for sample in samples], BATCH)
    values = {sample.key: result for sample, result in zip(samples, results, strict=True)}
    raised = [value for value in values.values() if isinstance(value, Failure) and value.reason == "raised"]
    if len(raised) > len(values) / 2:
        raise RuntimeError(
            f"shard {shard}: {len(raised)} of {len(values)} records raised, so a signal is at fault: {raised[0].detail}"
        )
    reasons = {error.key: f"{error.reason}: {error.detail}" for error in tar_errors}
    for signal in missing:
        table = []
        for key in sorted(expected):
            value = values.get(key)
            if isinstance(value, dict):
                table.append({"key": key, "error": None, **{c: value[c] for c in signal.columns}})
                continue
            told = f"{value.reason}: {value.detail}" if isinstance(value, (Failure, RecordError)) else None
            error = told or reasons.get(key, "missing: its row says success, the tar does not hold it")
            table.append({"key": key, "error": error, **dict.fromkeys(signal.columns)})
        frame = pd.DataFrame(table, columns=["key", *signal.columns, "error"])
        frame = frame.astype({"key": "string", "error": "string", **signal.columns})
        write_parquet(_signal_file(out_dir, signal, shard), frame)
    return len(missing)


def _load(signals: tuple[Signal, ...]) -> Callable[[list[Any]], list[Any]]:
    """In the child: load the signals and return the function of batches of (signal names, sample)."""
    loaded = {signal.name: signal.load() for signal in signals}

    def measure(batch: list[tuple[tuple[str, ...], Sample]]) -> list[dict[str, Any] | RecordError]:
        results: list[dict[str, Any] | RecordError] = []
        decoded: list[Decoded] = []
        for _, sample in batch:
            try:
                image = decode_rgb(sample.image)
            except DecodeError as error:
                results.append(RecordError(sample.key, error.reason, str(error)))
                continue
            digest = hashlib.sha256(sample.image).hexdigest()
            decoded.append(Decoded(sample.key, sample.caption, sample.meta, image, len(sample.image), digest))
            results.append({})
        good = [result for result in results if isinstance(result, dict)]
        for name in batch[0][0] if decoded else ():
            for column, column_values in loaded[name](decoded).items():
                assert len(column_values) == len(good), (name, column)
                for result, value in zip(good, column_values, strict=True):
                    result[column] = value
        return results

    return measure
