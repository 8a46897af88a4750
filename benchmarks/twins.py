"""Finds re-posts of drawings and photographs, and says how much else it takes for a re-post.

    make bench NAME=twins          or: python benchmarks/twins.py --pictures FOLDER [--split tune] [--sheet FILE.png]

Without --pictures: the photographs that come with scikit-image and scikit-learn, and the demo's drawings. With it: all
PNG, JPEG and WebP of the folder, JPEG and WebP being photographs. Half of the pictures, by a hash of their bytes, are
the split that thresholds were tuned on, the other half the one that is claimed on.

Recall: of re-posts made by script (_reposts.py), how many share a cluster with their original, among all originals.
Precision: of what is dropped from the originals alone, how many are the same picture as the one that stays, by eye.
Judgements are in twins_judged.json (digests of a pair -> whether they are one picture); --sheet draws the pairs that it
lacks. The peer is imagehash's pHash, within 4 of 64 bits through any chain (scipy's connected components), as people
do it.
"""

import argparse
import hashlib
import io
import json
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._reposts import KINDS, as_jpeg

JUDGED = Path(__file__).with_name("twins_judged.json")
PEER_BITS = 4
MAX_SIDE = 512  # px; larger pictures are made smaller first, so that the run takes minutes
GOAL_RECALL, GOAL_PRECISION = 0.90, 0.95


@dataclass(frozen=True)
class Item:
    """One row of the benchmark's corpus. kind: "" of an original."""

    origin: str
    kind: str
    is_photograph: bool
    looks: str | None
    peer: int


def measure(picture: tuple[str, bytes, bool], with_copies: bool) -> list[Item]:
    """The original, and all its re-posts if it is not blank."""
    import imagehash

    from emu_data.samples import DecodeError, decode_rgb
    from emu_data.signals.looks import describe_picture

    name, data, is_photograph = picture
    try:
        image = decode_rgb(data)
    except DecodeError:
        return []
    image.thumbnail((MAX_SIDE, MAX_SIDE), reducing_gap=3.0)
    rng = np.random.default_rng(int(name[:8], 16))

    def item(kind: str, shown: Image.Image) -> Item:
        return Item(name, kind, is_photograph, describe_picture(shown)[0], int(str(imagehash.phash(shown)), 16))

    items = [item("", image)]
    if with_copies and items[0].looks is not None:
        items += [item(kind, as_jpeg(make(image, rng))) for kind, make in KINDS.items()]
    return items


def load_pictures(folder: Path | None, split: str, num: int) -> list[tuple[str, bytes, bool]]:
    """(SHA-256, bytes, whether it is a photograph), each picture once, at most `num` drawings and photographs each."""
    found: dict[str, tuple[str, bytes, bool]] = {}
    if folder is None:
        from benchmarks._images import load_drawings, load_photographs

        with tempfile.TemporaryDirectory() as packages:
            sources = (
                *((image, True) for image in load_photographs()),
                *((i, False) for i in load_drawings(Path(packages))),
            )
        encoded = []
        for image, is_photograph in sources:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            encoded.append((buffer.getvalue(), is_photograph))
    else:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        encoded = ((path.read_bytes(), path.suffix.lower() != ".png") for path in paths if path.is_file())
    for data, is_photograph in encoded:
        name = hashlib.sha256(data).hexdigest()
        if (int(name[:2], 16) % 2 == 0) == (split == "tune"):
            found[name] = (name, data, is_photograph)
    ordered = [found[name] for name in sorted(found)]
    return [one for kind in (True, False) for one in [x for x in ordered if x[2] is kind][:num]]


def our_clusters(items: list[Item]) -> np.ndarray:
    """The row of each item's centre, its own where it has none."""
    import duckdb

    from emu_data.near_twins import cluster_near_twins

    keys = [f"{row:09d}" for row in range(len(items))]
    rows = pd.DataFrame({"key": keys, "digest": pd.Series(keys, dtype="string")})
    rows["looks"] = pd.Series([item.looks for item in items], dtype="string")
    with duckdb.connect() as con:
        con.register("pictures", rows)
        cluster_near_twins(con, "pictures")
        found = con.execute("SELECT key, cluster FROM clusters").df()
    centres = np.arange(len(items))
    centres[found["key"].astype(int)] = found["cluster"].astype(int)
    return centres


def peer_clusters(items: list[Item]) -> np.ndarray:
    """The first row of each item's connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    hashes = np.array([item.peer for item in items], np.uint64)
    pairs = [np.flatnonzero(np.bitwise_count(hashes ^ value) <= PEER_BITS) for value in hashes]
    rows = np.repeat(np.arange(len(items)), [len(pair) for pair in pairs])
    graph = coo_array((np.ones(len(rows), bool), (rows, np.concatenate(pairs))), shape=(len(items), len(items)))
    labels = connected_components(graph, directed=False)[1]
    return np.unique(labels, return_index=True)[1][labels]


def recall_by_kind(items: list[Item], clusters: np.ndarray) -> dict[str, float]:
    origins = {item.origin: row for row, item in enumerate(items) if not item.kind}
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for row, item in enumerate(items):
        if item.kind:
            found[item.kind].append(bool(clusters[row] == clusters[origins[item.origin]]))
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def report_precision(items: list[Item], clusters: np.ndarray, name: str) -> tuple[float, list[str]]:
    """Print and return the share of right drops among those that were judged, and the pairs that were not."""
    judged: dict[str, bool] = json.loads(JUDGED.read_text())["pairs"] if JUDGED.is_file() else {}
    dropped = [(row, int(centre)) for row, centre in enumerate(clusters) if row != centre]
    pairs = ["-".join(sorted((items[a].origin[:16], items[b].origin[:16]))) for a, b in dropped]
    known = [judged[pair] for pair in pairs if pair in judged]
    sizes = Counter(clusters.tolist())
    precision = float(np.mean(known)) if known else float("nan")
    print(
        f"{name}: {len(dropped)} of {len(items)} originals dropped, {len(known)} judged, right {sum(known)} "
        f"({precision:.3f}); largest cluster {max(sizes.values(), default=0)}"
    )
    return precision, [pair for pair in pairs if pair not in judged]


def draw_sheet(pairs: list[str], pictures: dict[str, bytes], file: Path, side: int = 88, columns: int = 8) -> None:
    from PIL import ImageDraw

    from emu_data.samples import decode_rgb

    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * (2 * side + 8), rows * (side + 12)), (90, 90, 110))
    for number, pair in enumerate(pairs):
        x, y = number % columns * (2 * side + 8), number // columns * (side + 12)
        for place, name in enumerate(pair.split("-")):
            image = decode_rgb(pictures[name])
            image.thumbnail((side - 2, side - 2))
            sheet.paste(image, (x + place * side, y))
        ImageDraw.Draw(sheet).text((x, y + side - 1), str(number), fill=(255, 255, 0))
    sheet.save(file)
    file.with_suffix(".json").write_text(json.dumps(pairs))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--split", choices=["tune", "claim"], default="claim")
    parser.add_argument("--originals", type=int, default=1000, help="drawings, and as many photographs")
    parser.add_argument("--copied", type=int, default=100, help="of each, those that are re-posted")
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    pictures = load_pictures(given.pictures, given.split, given.originals)
    copied = {x[0] for kind in (True, False) for x in [x for x in pictures if x[2] is kind][: given.copied]}
    items: list[Item] = []
    with ProcessPoolExecutor(2) as pool:
        for with_copies in (False, True):
            part = [picture for picture in pictures if (picture[0] in copied) == with_copies]
            for found in pool.map(partial(measure, with_copies=with_copies), part, chunksize=8):
                items += found
    originals = [item for item in items if not item.kind]
    num_photographs = sum(item.is_photograph for item in originals)
    num_blank = sum(item.looks is None for item in originals)
    print(
        f"split {given.split}: {num_photographs} photographs, {len(originals) - num_photographs} drawings, {num_blank} "
        f"of them blank; {len(items) - len(originals)} re-posts"
    )
    ours, peers = our_clusters(items), peer_clusters(items)
    totals = {}
    for is_photograph, name in ((True, "photographs"), (False, "drawings")):
        chosen = {item.origin for item in originals if item.is_photograph is is_photograph}
        rows = np.array([item.origin in chosen for item in items])
        if not any(item.kind for item, here in zip(items, rows, strict=True) if here):
            continue
        part = [item for item, here in zip(items, rows, strict=True) if here]
        first = np.flatnonzero(rows)
        totals[name] = recall_by_kind(part, ours[rows]), recall_by_kind(part, peers[rows])
        assert len(first) == len(part)
        print(f"\nrecall on {name:12s} {'emu':>6s} {'pHash':>6s}")
        for kind in KINDS:
            print(f"  {kind:20s} {totals[name][0][kind]:6.3f} {totals[name][1][kind]:6.3f}")
    print("\noriginals alone:")
    precisions, unjudged = {}, []
    for is_photograph, name in ((True, "photographs"), (False, "drawings")):
        part = [item for item in originals if item.is_photograph is is_photograph]
        precisions[name], lacking = report_precision(part, our_clusters(part), f"emu on {name}")
        report_precision(part, peer_clusters(part), f"pHash on {name}")
        unjudged += lacking
        blank = {row for row, item in enumerate(part) if item.looks is None}
        clusters = our_clusters(part)
        num_joined = sum(clusters[row] != row or (clusters == row).sum() > 1 for row in blank)
        print(f"claim twins_blank_{name}_in_a_cluster: {num_joined} (goal 0)")
    if given.sheet and unjudged:
        draw_sheet(unjudged, {name[:16]: data for name, data, _ in pictures}, given.sheet)
    failed = False
    for name, (mine, peer) in totals.items():
        value = float(np.mean(list(mine.values())))
        print(f"claim twins_recall_{name}: {value:.3f} (goal {GOAL_RECALL}; pHash {np.mean(list(peer.values())):.3f})")
        failed |= value < GOAL_RECALL
    for name, value in precisions.items():
        if value == value:
            print(f"claim twins_precision_{name}: {value:.3f} (goal {GOAL_PRECISION}; by eye, of those judged)")
            failed |= value < GOAL_PRECISION
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
