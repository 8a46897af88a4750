"""What filtering 1.1 billion pictures would take: machines, hours, storage, money. Prints the tables of docs/scale.md.

    python benchmarks/estimate.py          (in a project with data/signals: also bytes per row of its parquets)

Every input has its source. Nothing of this size was run: the estimate is arithmetic on rates that were measured on
small machines and on figures from data sheets. Only the near-twin join is measured while the script runs.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from emu_data.alike import HALVES, NUM_BITS, NUM_FLIPPED, NUM_FLIPPED_HALF, VIEWS
from emu_data.near_twins import CROWD


@dataclass(frozen=True)
class Input:
    """An input of the estimate. source: where the value is from, for the table."""

    value: float
    unit: str
    source: str


NOTES = "measured on 2 cores of a Xeon, docs/log.md and its sources"
ASSUMED = "assumed"
INPUTS = {
    "pictures": Input(1.1e9, "", "the paper's 1.1 billion pairs"),
    "bytes per picture": Input(100e3, "B", f"{ASSUMED}: photographs of about 512 px as img2dataset stores them"),
    "headers": Input(10_000, "pictures/s per core", NOTES),
    "decode and hash": Input(1_300, "pictures/s per core", NOTES),
    "CRAFT at 512 px": Input(187, "GFLOP", f"{NOTES} (counted)"),
    "CRAFT's side": Input(384, "px", f"{NOTES}: changes none of 60 decisions made at 512 px"),
    "ViT-L/14 at 224 px": Input(162, "GFLOP", "2 x 304 M weights x 257 tokens, and attention"),
    "H100, bf16": Input(989e3, "GFLOP/s", "NVIDIA's data sheet, dense"),
    "share of it, ViT": Input(0.40, "", ASSUMED),
    "share of it, CRAFT": Input(0.25, "", f"{ASSUMED}: a VGG with few channels and large maps"),
    "pass the cheap gates": Input(0.40, "", f"{ASSUMED}: header, caption, exact copies; decoded afterwards"),
    "seen by CRAFT (share)": Input(0.30, "of those", f"{ASSUMED}: what the text probe cannot decide, after alignment"),
    "control sample": Input(0.01, "", "the cascade's default"),
    "cores per GPU": Input(26, "", f"{ASSUMED}: 208 in a machine of 8"),
    "GPUs": Input(64, "", "chosen: 8 machines of 8"),
    "time lost": Input(0.25, "", f"{ASSUMED}: starts, retries, stragglers, waiting for storage"),
    "price per GPU": Input(3.0, "$/h", f"{ASSUMED}, its cores included"),
    "price of storage": Input(0.023, "$/GB/month", f"{ASSUMED}: object storage"),
    "bytes per row": Input(
        500, "B", "signals of the demo, 204 rows in 5 shards: at most this, since footers weigh most"
    ),
}


def value(name: str) -> float:
    """Return an input's value."""
    return INPUTS[name].value


def estimate(row_bytes: float, join_seconds_per_picture: float, num_cores_measured: int) -> list[tuple[str, str, str]]:
    """Return rows of (what, how it is computed, result). join_seconds_per_picture: of the clustering, as measured."""
    num = value("pictures")
    decoded = num * (value("pass the cheap gates") + value("control sample"))
    seen = num * (value("pass the cheap gates") * value("seen by CRAFT (share)") + value("control sample"))
    craft = value("CRAFT at 512 px") * (value("CRAFT's side") / 512) ** 2
    header_h = num / value("headers") / 3600
    decode_h = decoded / value("decode and hash") / 3600
    clip_h = decoded * value("ViT-L/14 at 224 px") / (value("H100, bf16") * value("share of it, ViT")) / 3600
    craft_h = seen * craft / (value("H100, bf16") * value("share of it, CRAFT")) / 3600
    # Cores and GPUs work at the same time: the slower of the two sets the pace.
    gpu_h = clip_h + craft_h
    core_h = header_h + decode_h
    pace = max(gpu_h, core_h / value("cores per GPU"))
    paid = pace * (1 + value("time lost"))
    all_h = num * (value("ViT-L/14 at 224 px") / value("share of it, ViT") + craft / value("share of it, CRAFT"))
    all_h /= value("H100, bf16") * 3600
    read = num * value("bytes per picture")
    stored, wholes, halves = len(VIEWS), 2 * 2**NUM_FLIPPED, len(HALVES) * 2 * 2**NUM_FLIPPED_HALF
    met = (stored * wholes + halves) * decoded**2 / 2**NUM_BITS
    load = stored * decoded / 2**NUM_BITS
    join_h = decoded * join_seconds_per_picture / 3600
    hours = paid / value("GPUs")
    return [
        ("decoded and embedded", "pictures x (cheap gates + control)", f"{decoded:.2e} pictures"),
        ("seen by CRAFT", "of those, the uncertain, and the control", f"{seen:.2e} pictures"),
        ("headers", "pictures / rate", f"{header_h:.0f} core-h"),
        ("decoding and hashes", "decoded / rate", f"{decode_h:.0f} core-h"),
        ("embedding, ViT-L/14", "decoded x GFLOP / (H100 x share)", f"{clip_h:.0f} GPU-h"),
        (f"CRAFT at 384 px ({craft:.0f} GFLOP)", "seen x GFLOP / (H100 x share)", f"{craft_h:.0f} GPU-h"),
        ("the same without a cascade", "everything on every picture", f"{all_h:.0f} GPU-h"),
        ("the pace", "the slower of GPUs and their cores", f"{pace:.0f} GPU-h"),
        ("paid for", "and the time lost", f"{paid:.0f} GPU-h"),
        ("wall time", f"on {value('GPUs'):.0f} H100s", f"{hours:.1f} h"),
        ("reading", "bytes / wall time", f"{read / 1e9 / hours / 3600:.1f} GB/s, of {read / 1e12:.0f} TB"),
        ("money, machines", "GPU-h x price", f"${paid * value('price per GPU'):,.0f}"),
        ("signals", "rows x bytes", f"{num * row_bytes / 1e12:.2f} TB"),
        ("ledger, written twice", "2 x rows x bytes", f"{2 * num * row_bytes / 1e12:.2f} TB"),
        (
            "money, storage per month",
            "raw pictures, signals, ledgers",
            f"${(read + 3 * num * row_bytes) / 1e9 * value('price of storage'):,.0f}",
        ),
        ("near-twins: pairs that share a key", f"{stored * wholes + halves} n² / 2²⁴, if keys are even", f"{met:.1e}"),
        ("near-twins: looks per key", f"{stored} n / 2²⁴; above {CROWD} only neighbours are compared", f"{load:.0f}"),
        (
            "near-twins: clustering",
            f"n x the rate below, assumed to be linear, on {num_cores_measured} cores",
            f"{join_h:.0f} h",
        ),
    ]


def measure_join(num_pictures: int) -> tuple[float, int]:
    """Cluster random looks with planted twins (a little noise), as the step on the whole corpus does; return the
    seconds, and how many of the planted twins were missed.
    """
    import base64

    import duckdb
    import numpy as np
    import pyarrow as pa

    from emu_data.ledger import MEMORY_LIMIT
    from emu_data.near_twins import cluster_near_twins
    from emu_data.signals.looks import COLOUR_SIDE, SIDE

    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (num_pictures, 8, 8), np.uint8).repeat(SIDE // 8, 1).repeat(SIDE // 8, 2)
    num_twins = num_pictures // 50
    noisy = grey[:num_twins].astype(np.int16) + rng.integers(-3, 4, (num_twins, SIDE, SIDE), np.int16)
    grey[-num_twins:] = noisy.clip(0, 255)
    rest = b"\x80" * (2 * COLOUR_SIDE**2 + 1)  # no colours, square
    keys = [f"{i:010d}" for i in range(num_pictures)]
    looks = [base64.b64encode(one.tobytes() + rest).decode() for one in grey]
    rows = pa.table({"key": keys, "digest": keys, "looks": looks})
    with (
        tempfile.TemporaryDirectory(prefix="emu-estimate-") as temporary,
        duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": temporary}) as con,
    ):
        con.register("given", rows)
        con.execute("CREATE TABLE pictures AS SELECT * FROM given")
        began = time.perf_counter()
        cluster_near_twins(con, "pictures")
        seconds = time.perf_counter() - began
        found = con.execute("SELECT count(*) FROM clusters").fetchone()
    assert found is not None
    return seconds, max(0, 2 * num_twins - int(found[0]))


def bytes_per_row(signals: Path) -> float | None:
    """Return bytes per row of the parquets of all signals; None if there are none."""
    import pyarrow.parquet as pq

    files = list(signals.glob("*/*.parquet"))
    if not files:
        return None
    num_rows: dict[Path, int] = {}
    for file in files:
        num_rows[file.parent] = num_rows.get(file.parent, 0) + pq.read_metadata(file).num_rows
    return sum(file.stat().st_size for file in files) / max(num_rows.values())


def main() -> None:
    import os

    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--twins", type=int, default=20_000, help="number of pictures for which near-twin clustering is measured"
    )
    given = parser.parse_args()
    seconds, num_missed = measure_join(given.twins)
    row_bytes = bytes_per_row(Path("data/signals"))
    num_cores = os.cpu_count() or 1
    print("| input | value | source |\n|---|---|---|")
    for name, one in INPUTS.items():
        print(f"| {name} | {one.value:,.10g} {one.unit} | {one.source} |".replace("  ", " "))
    print("\n| what | how | result |\n|---|---|---|")
    for row in estimate(value("bytes per row"), seconds / given.twins, num_cores):
        print(f"| {' | '.join(row)} |")
    print(
        f"\nNear-twin clustering measured now: {given.twins} pictures in {seconds:.1f} s on {num_cores} cores "
        f"({given.twins / seconds:,.0f} pictures per second); {num_missed} planted twins missed."
    )
    if row_bytes is not None:
        print(f"data/signals here: {row_bytes:.0f} bytes per row.")


if __name__ == "__main__":
    main()
