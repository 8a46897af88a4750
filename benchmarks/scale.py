"""How a training's rows scale: `make bench NAME=scale`. Made-up rows without pictures, in growing numbers.

For each number of rows, a table as write_gated_rows leaves it (key, caption of 3 to 20 words, shard, digest, size;
10 000 rows per shard, whose files are empty) becomes a training's rows, with 9 aspect buckets and batches of 2 048.
Every figure is of a process of its own, which does what a training does before its first step.

building  the first start: the Arrow file is written, by one process. Seconds, and the peak of its memory
start     any other start, of any process: rows and their buckets are opened, and the order of the first pass is known
memory    what such a process has in memory of its own (RssAnon) after 100 steps, beyond a process that has imported
          the same; pages of the file are the system's, shared by all processes of a machine
step      milliseconds for the numbers, keys, captions and digests of a step's rows, median of 100
resume    the steps from the middle of the second pass on are the same in a process that begins there
order     whether the batches of the first pass, of the smallest number of rows, use every row

    python benchmarks/scale.py [--rows 100000 1000000 10000000] [--plot FILE.png] [--folder FOLDER]

10 million rows need 4 GB of disk, 100 million 40 GB (the table, sorted as it is, and the file).
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

compute: Any = pyarrow.compute  # its functions are made at run time, unseen by type checkers

ROWS = (100_000, 1_000_000, 10_000_000)
PER_SHARD, PER_GROUP = 10_000, 1_000_000
BATCH, NUM_BUCKETS, RESOLUTION, MULTIPLE, SEED, NUM_STEPS = 2048, 9, 256, 64, 0, 100
WORDS = 2_000  # different words in captions
START_GOAL = 60.0  # seconds at 100 million rows; of issue 15
FLAT_GOAL = 100.0  # MB by which a process's memory may grow from the fewest rows to the most; chosen here


def write_table(folder: Path, num_rows: int) -> tuple[Path, Path]:
    """Write made-up rows and their empty shards; return the folder of shards and the table."""
    from emu_data.shards import shard_digest, shard_name
    from emu_models.training.jobs import SHARD_MARKS

    shards, table = folder / "shards", folder / "rows.parquet"
    shards.mkdir(parents=True)
    for number in range(-(-num_rows // PER_SHARD)):
        (shards / f"{shard_name(number)}.tar").touch()
    # empty shards all have the same digest
    mark = shard_digest(shards / f"{shard_name(0)}.tar")
    names = [shard_name(number) for number in range(-(-num_rows // PER_SHARD))]
    schema = pa.schema(
        {
            "key": pa.string(),
            "caption": pa.string(),
            "shard": pa.string(),
            "digest": pa.binary(32),
            "width": pa.int32(),
            "height": pa.int32(),
        },
        {SHARD_MARKS: json.dumps(dict.fromkeys(names, mark))},
    )
    words = pa.array([hashlib.sha256(str(i).encode()).hexdigest()[: 2 + i % 9] for i in range(WORDS)])
    with pq.ParquetWriter(table, schema, compression="zstd") as writer:
        for start in range(0, num_rows, PER_GROUP):
            writer.write_table(make_rows(start, min(PER_GROUP, num_rows - start), words).cast(schema))
    return shards, table


def make_rows(start: int, num: int, words: pa.Array) -> pa.Table:
    rng = np.random.default_rng([SEED, start])
    number = np.arange(start, start + num)
    shard = compute.utf8_lpad(pa.array(number // PER_SHARD).cast(pa.string()), 5, "0")
    place = compute.utf8_lpad(pa.array(number % PER_SHARD).cast(pa.string()), 4, "0")
    lengths = rng.integers(3, 21, num)
    offsets = pa.array(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))
    chosen = words.take(pa.array(rng.integers(0, WORDS, int(lengths.sum()))))
    caption = compute.binary_join(pa.ListArray.from_arrays(offsets, chosen), " ")
    digest = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), num, [None, pa.py_buffer(rng.bytes(32 * num))])
    width, height = rng.integers(300, 1200, (2, num)).astype(np.int32)
    columns = {"key": compute.binary_join_element_wise(shard, place, ""), "caption": caption, "shard": shard}
    return pa.table({**columns, "digest": digest, "width": width, "height": height})


def memory(name: str) -> float:
    """Return this process's memory in MB: RssAnon, what it has of its own, or VmHWM, the peak with the file's pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(folder: Path, first: int, in_windows: bool) -> dict:
    """Do what a training does before step `first`, and then NUM_STEPS steps; in a process of its own."""
    from emu_models.training.buckets import bucket_sizes
    from emu_models.training.order import BatchOrder
    from emu_models.training.row_file import open_rows
    from emu_models.training.rows import PictureRows

    before, began = memory("RssAnon"), time.perf_counter()
    buckets = bucket_sizes(RESOLUTION, MULTIPLE, NUM_BUCKETS)
    file = open_rows(folder / "shards", folder / "rows.parquet", folder / "cache")
    rows = PictureRows(folder / "shards", file, buckets, BATCH)
    order = BatchOrder(rows.trained, BATCH, SEED, in_windows)
    step = first if first >= 0 else order.batches_per_pass * 3 // 2
    order.indices(step)
    started = time.perf_counter() - began
    seconds, steps, used = [], [], hashlib.sha256()
    for number in range(step, step + NUM_STEPS):
        began = time.perf_counter()
        index = order.indices(number)
        file.read(index, "key", "caption", "digest")
        seconds.append(time.perf_counter() - began)
        steps.append(hashlib.sha256(index.tobytes()).hexdigest()[:16])
        assert len(np.unique(rows.every.buckets_of(index))) == 1
        used.update(index.tobytes())
    return {
        "start": started,
        "memory": memory("RssAnon") - before,
        "peak": memory("VmHWM"),
        "step": 1e3 * median(seconds),
        "first": step,
        "steps": steps,
        "num_rows": len(file),
    }


def covers_every_row(folder: Path, in_windows: bool) -> bool:
    """Whether the first pass uses every row that is trained on, and none far more often than another of its bucket."""
    from emu_models.training.buckets import bucket_sizes
    from emu_models.training.order import BatchOrder
    from emu_models.training.row_file import open_rows
    from emu_models.training.rows import PictureRows

    file = open_rows(folder / "shards", folder / "rows.parquet", folder / "cache")
    rows = PictureRows(folder / "shards", file, bucket_sizes(RESOLUTION, MULTIPLE, NUM_BUCKETS), BATCH)
    order = BatchOrder(rows.trained, BATCH, SEED, in_windows)
    used = np.concatenate([order.indices(step) for step in range(order.batches_per_pass)])
    times = np.bincount(used, minlength=len(file))
    trained = np.zeros(len(file), bool)
    trained[rows.trained.rows(np.arange(len(rows.trained)))] = True
    return bool((times[trained] >= 1).all() and (times[~trained] == 0).all() and times.max() <= 2)


def apart(folder: Path, first: int, in_windows: bool) -> dict:
    """Return what `measure` finds in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), str(first), str(int(in_windows))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, num_rows: int) -> dict:
    began = time.perf_counter()
    write_table(folder, num_rows)
    made = time.perf_counter() - began
    first = apart(folder, 0, True)
    (link,) = (folder / "cache" / "rows").glob("start-*.json")
    name = json.loads(link.read_text())["name"]
    size = sum(f.stat().st_size for f in (folder / "cache" / "rows" / name).rglob("*") if f.is_file())
    later = apart(folder, 0, True)
    middle = apart(folder, -1, True)
    again = apart(folder, middle["first"] + NUM_STEPS // 2, True)
    resumes = middle["steps"][NUM_STEPS // 2 :] == again["steps"][: NUM_STEPS // 2]
    found = {
        "rows": num_rows,
        "building": first["start"],
        "building_peak": first["peak"],
        "start": later["start"],
        "memory": max(later["memory"], middle["memory"]),
        "step": later["step"],
        "resumes": resumes and first["steps"] == later["steps"],
        "bytes": size / num_rows,
    }
    print(
        f"{num_rows:>11,} rows, {found['bytes']:.0f} bytes each on disk (the table was made in {made:.0f} s): building "
        f"{found['building']:.1f} s, peak {found['building_peak']:.0f} MB · start {found['start']:.2f} s · memory "
        f"{found['memory']:.0f} MB · a step's rows {found['step']:.1f} ms · resumes {found['resumes']}",
        flush=True,
    )
    return found


def plot(found: list[dict], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [f["rows"] for f in found]
    left.plot(rows, [f["building"] for f in found], marker="o", label="first start, which writes the file")
    left.plot(rows, [f["start"] for f in found], marker="o", label="any other start")
    left.set(title="seconds until the first step's rows", xscale="log", yscale="log", xlabel="rows")
    left.legend()
    right.plot(rows, [f["memory"] for f in found], marker="o", label="now")
    right.plot(rows, [606e-6 * n for n in rows], linestyle=":", color="grey", label="before: 606 bytes a row")
    right.set(title="MB of its own per process", xscale="log", yscale="log", xlabel="rows")
    right.legend()
    figure.savefig(file, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--folder", type=Path, help="where the rows are made, by default a temporary folder")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        folder, first, in_windows = given.measure
        print(json.dumps(measure(Path(folder), int(first), bool(int(in_windows)))))
        return 0
    found, covered = [], True
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        for num_rows in sorted(given.rows):
            folder = Path(scratch) / str(num_rows)
            found.append(compare(folder, num_rows))
            if len(found) == 1:
                covered = all(covers_every_row(folder, in_windows) for in_windows in (False, True))
            shutil.rmtree(folder)
    if given.plot:
        plot(found, given.plot)
    most, fewest = found[-1], found[0]
    growth = most["memory"] - fewest["memory"]
    resumes = all(f["resumes"] for f in found) and covered
    at = f"{most['rows']:,} rows"
    print(f"claim scale_start_seconds: {most['start']:.2f} (goal <= {START_GOAL:g}) at {at}")
    print(f"claim scale_memory_growth_mb: {growth:.1f} (goal <= {FLAT_GOAL:g}) from {fewest['rows']:,} rows to {at}")
    print(f"claim scale_order_and_resume: {int(resumes)} (goal >= 1)")
    return 0 if most["start"] <= START_GOAL and growth <= FLAT_GOAL and resumes else 1


if __name__ == "__main__":
    sys.exit(main())
